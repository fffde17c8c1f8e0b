"""Attention of one new position a slot against the KV cache: the backends behind one function, and the bytes that each reads.

`xla` runs everywhere and reads the whole cache. `ragged` and `triton` are the Pallas kernels for TPUs and for GPUs, which read
what the sequences fill; `interpret` and `interpret-triton` are these kernels step by step on any machine, to check numbers.

Shapes: n blocks, B slots, T positions of a block, N query heads, K kv heads, H head size.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxgrpo.model import ragged_attention, ragged_gpu
from jaxgrpo.model.attention import attend_blocks
from jaxgrpo.model.ragged_attention import write_position

_KERNELS = {
    "ragged": ragged_attention.attend_ragged,
    "interpret": partial(ragged_attention.attend_ragged, interpret=True),
    "triton": ragged_gpu.attend_ragged,
    "interpret-triton": partial(ragged_gpu.attend_ragged, interpret=True),
}
BACKENDS = ("xla", *_KERNELS)


def can_run(backend: str, platform: str, block: int, head_dim: int) -> bool:
    """Whether the devices of `platform` compute with `backend` over a cache with these sizes."""
    if backend == "ragged":
        return platform == "tpu" and ragged_attention.supports(block, head_dim)
    return backend != "triton" or (platform in ("gpu", "cuda") and ragged_gpu.supports(block, head_dim))


def choose_backend(platform: str, block: int, head_dim: int) -> str:
    """`ragged` where it can run and therefore reads less. `triton` must be asked for until a GPU has run it."""
    return "ragged" if can_run("ragged", platform, block, head_dim) else "xla"


def attend_cache(
    q_BNH: jax.Array,
    k_nBKHT: jax.Array,
    v_nBKTH: jax.Array,
    lengths_B: jax.Array,
    k_scale_nBKT: jax.Array | None = None,
    v_scale_nBKT: jax.Array | None = None,
    *,
    backend: str,
) -> jax.Array:
    """[B, N, H]: one query a row against the first `lengths_B[b]` positions of its cache, as `attend_blocks` describes it."""
    scales = () if k_scale_nBKT is None else (k_scale_nBKT, v_scale_nBKT)
    if backend == "xla":
        return attend_blocks(q_BNH, k_nBKHT, v_nBKTH, lengths_B, *scales)
    heads = _head_axis(k_nBKHT.shape[2])
    cache = P(None, None, heads)
    specs = (P(None, heads), cache, cache, P(), *(cache for _ in scales))
    return _per_chip(_KERNELS[backend], specs, P(None, heads))(q_BNH, k_nBKHT, v_nBKTH, lengths_B, *scales)


def write_cache(
    k_nBKHT: jax.Array, v_nBKTH: jax.Array, position_B: jax.Array, k_BKH: jax.Array, v_BKH: jax.Array, *, backend: str
) -> tuple[jax.Array, jax.Array]:
    """The cache with one position a slot replaced; a position behind the last block is dropped."""
    if backend not in ("ragged", "interpret"):
        B, T = position_B.shape[0], k_nBKHT.shape[-1]
        block_B, slot_B, at_B = position_B // T, np.arange(B), position_B % T
        return k_nBKHT.at[block_B, slot_B, :, :, at_B].set(k_BKH), v_nBKTH.at[block_B, slot_B, :, at_B].set(v_BKH)
    kernel = partial(write_position, interpret=backend == "interpret")
    heads = _head_axis(k_nBKHT.shape[2])
    cache, new = P(None, None, heads), P(None, heads)
    return _per_chip(kernel, (cache, cache, P(), new, new), (cache, cache))(k_nBKHT, v_nBKTH, position_B, k_BKH, v_BKH)


def _head_axis(kv_heads: int) -> str | None:
    """The mesh axis of the heads; none where every chip holds all K/V heads, and computes all of them."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return "tensor" if kv_heads % tensor == 0 else None


def _per_chip(kernel, in_specs: tuple, out_specs):
    """The kernel on each chip's part: the compiler cannot partition a Pallas call by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" not in mesh.axis_names:
        return kernel
    return jax.shard_map(kernel, in_specs=in_specs, out_specs=out_specs, axis_names={"tensor"}, check_vma=False)


def bytes_read(backend: str, lengths_B, blocks: int, block: int, bytes_per_position: int) -> int:
    """Bytes of K and V that one decoded token of all slots reads in one layer."""
    if backend == "xla":
        return len(lengths_B) * blocks * block * bytes_per_position
    needed_B = np.clip(-(-np.asarray(lengths_B) // block), 1, blocks)
    return int(needed_B.sum()) * block * bytes_per_position
