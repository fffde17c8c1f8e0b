"""Decoding attention over the blocked KV cache on a GPU, by a Pallas kernel that Triton compiles: one program for each slot and
kv head reads the cache tile by tile, no further than the slot's sequence reaches. The numbers are those of `attend_blocks`.

It has been compiled for GPUs and checked step by step (`interpret`), and has not yet run on one.

Shapes: n blocks, B slots, T positions of a block, K kv heads, G queries a kv head, H head size, S positions of a tile.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxgrpo.model.attention import MASKED

TILE = 64  # positions: enough for one product of tensor cores, few enough for registers
QUERIES = 16  # the fewest rows that a product of tensor cores has


def supports(block: int, head_dim: int) -> bool:
    """Whether the kernel takes a cache with these sizes: Triton's arrays have powers of two."""
    return block % TILE == 0 and head_dim in (32, 64, 128)


def attend_ragged(
    q_BNH: jax.Array,
    k_nBKHT: jax.Array,
    v_nBKTH: jax.Array,
    lengths_B: jax.Array,
    k_scale_nBKT: jax.Array | None = None,
    v_scale_nBKT: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """What `attend_blocks` computes, from the tiles below each length alone; lengths of at least 1."""
    B, N, H = q_BNH.shape
    n, _, K, T, _ = v_nBKTH.shape
    G = N // K
    rows = max(QUERIES, 1 << (G - 1).bit_length())
    q_BKGH = jnp.pad((q_BNH * H**-0.5).reshape(B, K, G, H), ((0, 0), (0, 0), (0, rows - G), (0, 0)))

    def of_head(*rest):
        return pl.BlockSpec((n, None, None, *rest), lambda b, k: (0, b, k, *(0,) * len(rest)))

    of_slot = pl.BlockSpec((None, None, rows, H), lambda b, k: (b, k, 0, 0))
    scales = () if k_scale_nBKT is None else (k_scale_nBKT, v_scale_nBKT)
    out_BKGH = pl.pallas_call(
        partial(_attend_one_head, block=T),
        out_shape=jax.ShapeDtypeStruct(q_BKGH.shape, q_BNH.dtype),
        grid=(B, K),
        in_specs=[
            pl.BlockSpec((None,), lambda b, k: (b,)),
            of_slot,
            of_head(H, T),
            of_head(T, H),
            *(of_head(T) for _ in scales),
        ],
        out_specs=of_slot,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attend_ragged",
    )(jnp.clip(lengths_B, 1, n * T).astype(jnp.int32), q_BKGH, k_nBKHT, v_nBKTH, *scales)
    return out_BKGH[:, :, :G].reshape(B, N, H)


def _attend_one_head(length, q_GH, k_nHT, v_nTH, *rest, block: int):
    """One slot and kv head: the running maximum, sum and weighted values of a softmax that arrives tile by tile."""
    *scales, out_GH = rest
    q, end = q_GH[...], length[...]
    G, H = q.shape
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = partial(jnp.dot, precision=exact, preferred_element_type=jnp.float32)

    per_block = jnp.int32(block // TILE)

    def tile(index, carry):
        largest_G, total_G, values_GH = carry
        n, S = jax.lax.div(index, per_block), pl.ds(jax.lax.rem(index, per_block) * TILE, TILE)
        scores_GS = dot(q, k_nHT[n, :, S].astype(q.dtype))
        if scales:
            scores_GS *= scales[0][n, S][None]
        seen_S = index * TILE + jax.lax.broadcasted_iota(jnp.int32, (TILE,), 0) < end
        scores_GS = jnp.where(seen_S[None], scores_GS, MASKED)
        new_G = jnp.maximum(largest_G, jnp.max(scores_GS, axis=1))
        weights_GS, shrink_G = jnp.exp(scores_GS - new_G[:, None]), jnp.exp(largest_G - new_G)
        total_G = total_G * shrink_G + jnp.sum(weights_GS, axis=1)
        if scales:
            weights_GS *= scales[1][n, S][None]
        v_SH = v_nTH[n, S, :].astype(q.dtype)
        values_GH = values_GH * shrink_G[:, None] + dot(weights_GS.astype(q.dtype), v_SH)
        return new_G, total_G, values_GH

    start = jnp.full((G,), MASKED, jnp.float32), jnp.zeros((G,), jnp.float32), jnp.zeros((G, H), jnp.float32)
    _, total_G, values_GH = jax.lax.fori_loop(0, jax.lax.div(end + TILE - 1, jnp.int32(TILE)), tile, start)
    out_GH[...] = (values_GH / total_G[:, None]).astype(out_GH.dtype)
