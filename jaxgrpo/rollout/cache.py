"""The KV cache of one layer, in blocks of T positions with the block number outermost.

Every block is multiplied by a product of one shape, however many blocks there are, and adding a block in which a sequence has
nothing adds exact zeros: what a sequence says does not depend, to the bit, on how long the others are. Growing or shrinking the
cache with the longest sequence copies whole blocks, so that decoding reads no further than it must.

Every sample of a group has its own copy of the prompt's blocks. Sharing them would give a group's slots back together: with
response lengths like the published ones (a mean of a quarter of the limit) 512 sequences of groups of 8 then take 404 decoding
steps in 128 slots instead of 223, far more than the reads of a prompt that it saves.

Shapes: n blocks, B slots, R prompts of a prefill, T positions of a block, K kv heads, H head size.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxgrpo.model.decode_attention import write_cache
from jaxgrpo.model.quantised import quantise

LOGICAL_AXES = {  # B is "batch" in the slots' cache; a prefix is the same on every replica
    "k": ("kv_heads", None, None),
    "v": ("kv_heads", None, None),
    "k_scale": ("kv_heads", None),
    "v_scale": ("kv_heads", None),
}


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "k_scale", "v_scale"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """K [n, B, K, H, T] and V [n, B, K, T, H]: on CPU the score product over [.., T, H] would be eight times slower. In int8
    both have a float32 scale [n, B, K, T] per position and head; otherwise the scales are None."""

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


def empty(blocks: int, slots: int, kv_heads: int, head_dim: int, block: int, dtype) -> LayerCache:
    scale = partial(jnp.zeros, (blocks, slots, kv_heads, block), jnp.float32)
    quantised = jnp.dtype(dtype) == jnp.int8
    return LayerCache(
        jnp.zeros((blocks, slots, kv_heads, head_dim, block), dtype),
        jnp.zeros((blocks, slots, kv_heads, block, head_dim), dtype),
        scale() if quantised else None,
        scale() if quantised else None,
    )


def from_prompts(k_RSKH: jax.Array, v_RSKH: jax.Array, block: int, dtype) -> LayerCache:
    """The cache of freshly computed prompts, B = R; positions are padded with zeros up to whole blocks."""
    R, S, K, H = k_RSKH.shape
    blocks = -(-S // block)

    def fold(x_RSKH):
        x = jnp.pad(x_RSKH, ((0, 0), (0, blocks * block - S), (0, 0), (0, 0))).reshape(R, blocks, block, K, H)
        return x.transpose(1, 0, 3, 2, 4)

    return _stored(fold(k_RSKH), fold(v_RSKH), dtype)


def _stored(k_nBKTH: jax.Array, v_nBKTH: jax.Array, dtype) -> LayerCache:
    if jnp.dtype(dtype) == jnp.int8:
        k, v = quantise(k_nBKTH, -1), quantise(v_nBKTH, -1)
        return LayerCache(k.values.swapaxes(-1, -2), v.values, k.scale, v.scale)
    return LayerCache(k_nBKTH.swapaxes(-1, -2).astype(dtype), v_nBKTH.astype(dtype))


def write(cache: LayerCache, position_B: jax.Array, k_BKH: jax.Array, v_BKH: jax.Array, backend: str = "xla") -> LayerCache:
    """Put one position per slot; a position behind the last block is dropped."""
    new = _stored(k_BKH[:, :, None], v_BKH[:, :, None], cache.k.dtype)
    k, v = write_cache(cache.k, cache.v, position_B, new.k[..., 0], new.v[:, :, 0], backend=backend)
    if cache.k_scale is None:
        return LayerCache(k, v)
    n, block = cache.k.shape[0], cache.k.shape[-1]
    here_nBKT = (jnp.arange(n * block).reshape(n, 1, block) == position_B[:, None])[:, :, None]
    scales = ((cache.k_scale, new.k_scale), (cache.v_scale, new.v_scale))
    return LayerCache(k, v, *(jnp.where(here_nBKT, fresh, old) for old, fresh in scales))


def insert(cache: LayerCache, prefix: LayerCache, row, slot) -> LayerCache:
    """Copy one prompt's blocks into one slot."""

    def put(old, new):
        window = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
        return jax.lax.dynamic_update_slice(old, window, (0, slot, *(0,) * (old.ndim - 2)))

    return jax.tree.map(put, cache, prefix)


def resize(cache: LayerCache, blocks: int) -> LayerCache:
    """The first `blocks` blocks, with empty ones behind them where there were fewer."""

    def fit(x):
        return jnp.pad(x[:blocks], ((0, max(0, blocks - x.shape[0])), *((0, 0),) * (x.ndim - 1)))

    return jax.tree.map(fit, cache)
