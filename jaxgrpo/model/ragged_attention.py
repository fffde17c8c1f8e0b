"""Pallas TPU kernels for decoding over the blocked KV cache: attention that reads no further than each sequence reaches, and
the write of one position in place.

XLA's `attend_blocks` reads all n blocks of every slot. Here the grid is a list of the (slot, block) pairs that hold something,
made on the device from the lengths, so that neither bytes nor grid steps are spent on the rest. XLA's scatter of one position
per slot wants the cache in a layout of its own and copies all of it into that layout and back in every chunk; the kernel reads
and writes one tile of 128 positions a slot where it lies.

TPU arrays are tiled by 128 in their last dimension, and XLA lays an array whose last dimension is smaller than that out with
its last two dimensions exchanged, if that saves padding. With heads of 64 the kernels therefore see V as [n, B, K, H, T], as it
lies.

Shapes: n blocks, B slots, T positions of a block, K kv heads, G queries a kv head, H head size, W (slot, block) pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgrpo.model.attention import MASKED

LANES = 128  # of a TPU register and of the last dimension's tiles
ROWS = 32  # of a tile in the last but one dimension: enough for every dtype


def supports(block: int, head_dim: int) -> bool:
    """Whether the kernels take a cache with these sizes without padding it."""
    return block % LANES == 0 and (head_dim % LANES == 0 or head_dim in (32, 64))


def work_list(lengths_B: jax.Array, blocks: int, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(count, slot_W, block_W), W = B * blocks: the first `count` entries are the pairs that hold something, slot by slot."""
    needed_B = jnp.clip(-(-lengths_B // block), 1, blocks)
    ends_B = jnp.cumsum(needed_B)
    index_W = jnp.arange(lengths_B.shape[0] * blocks)
    slot_W = jnp.minimum(jnp.searchsorted(ends_B, index_W, side="right", method="compare_all"), lengths_B.shape[0] - 1)
    return ends_B[-1], slot_W.astype(jnp.int32), (index_W - (ends_B - needed_B)[slot_W]).astype(jnp.int32)


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
    """What `attend_blocks` computes, from the blocks below each length alone; lengths of at least 1."""
    B, N, H = q_BNH.shape
    n, _, K, T, _ = v_nBKTH.shape
    count, slot_W, block_W = work_list(lengths_B, n, T)
    q_BKGH = (q_BNH * H**-0.5).reshape(B, K, N // K, H)
    transposed = H < LANES
    v = v_nBKTH.swapaxes(-1, -2) if transposed else v_nBKTH

    def of_block(*rest):
        return pl.BlockSpec((1, 1, K, *rest), lambda w, slot, block, _: (block[w], slot[w], 0, *(0,) * len(rest)))

    of_slot = pl.BlockSpec((1, K, N // K, H), lambda w, slot, *_: (slot[w], 0, 0, 0))
    scales = () if k_scale_nBKT is None else (k_scale_nBKT, v_scale_nBKT)
    out_BKGH = pl.pallas_call(
        partial(_attend_one_block, transposed=transposed),
        out_shape=jax.ShapeDtypeStruct(q_BKGH.shape, q_BNH.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(count,),
            in_specs=[of_slot, of_block(H, T), of_block(*v.shape[-2:]), *(of_block(T) for _ in scales)],
            out_specs=of_slot,
            scratch_shapes=[
                pltpu.VMEM((K, N // K, LANES), jnp.float32),
                pltpu.VMEM((K, N // K, LANES), jnp.float32),
                pltpu.VMEM((K, N // K, H), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="attend_ragged",
    )(slot_W, block_W, lengths_B.astype(jnp.int32), q_BKGH, k_nBKHT, v, *scales)
    return out_BKGH.reshape(B, N, H)


def _attend_one_block(slot_W, block_W, lengths_B, q, k, v, *rest, transposed: bool):
    """One (slot, block) pair: the running maximum, sum and weighted values of a softmax that arrives block by block."""
    *scales, out, largest, total, values = rest
    w = pl.program_id(0)
    index, length = block_W[w], lengths_B[slot_W[w]]
    K, T = k.shape[2], k.shape[4]

    @pl.when(index == 0)
    def start():
        largest[...] = jnp.full_like(largest, MASKED)
        total[...] = jnp.zeros_like(total)
        values[...] = jnp.zeros_like(values)

    G = q.shape[2]
    seen_GT = index * T + jax.lax.broadcasted_iota(jnp.int32, (G, T), 1) < length
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    for head in range(K):
        q_GH = q[0, head]
        scores_GT = jax.lax.dot_general(
            q_GH, k[0, 0, head].astype(q.dtype), (((1,), (0,)), ((), ())), precision=exact, preferred_element_type=jnp.float32
        )
        if scales:
            scores_GT *= scales[0][0, 0, head][None]
        scores_GT = jnp.where(seen_GT, scores_GT, MASKED)
        old_G1 = largest[head][:, :1]
        new_G1 = jnp.maximum(old_G1, jnp.max(scores_GT, axis=-1, keepdims=True))
        weights_GT, shrink_G1 = jnp.exp(scores_GT - new_G1), jnp.exp(old_G1 - new_G1)
        largest[head] = jnp.broadcast_to(new_G1, (G, LANES))
        total[head] = total[head] * shrink_G1 + jnp.sum(weights_GT, axis=-1, keepdims=True)
        if scales:
            weights_GT *= scales[1][0, 0, head][None]
        values[head] = values[head] * shrink_G1 + jax.lax.dot_general(
            weights_GT.astype(q.dtype),
            v[0, 0, head].astype(q.dtype),
            (((1,), (1 if transposed else 0,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )

    @pl.when((index + 1) * T >= length)
    def finish():
        for head in range(K):
            out[0, head] = (values[head] / total[head][:, :1]).astype(out.dtype)


def write_position(
    k_nBKHT: jax.Array,
    v_nBKTH: jax.Array,
    position_B: jax.Array,
    k_BKH: jax.Array,
    v_BKH: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The cache with one position a slot replaced, in place where the caller gives it away; a position behind the last block is
    dropped. k_BKH and v_BKH have the cache's dtype."""
    n, B, K, T, H = v_nBKTH.shape
    transposed = H < LANES
    v = v_nBKTH.swapaxes(-1, -2) if transposed else v_nBKTH

    def tile(axis, size):
        def index(b, position):
            at = jnp.minimum(position[b], n * T - 1)
            rest = [0, 0]
            rest[axis] = at % T // size
            return (at // T, b, 0, *rest)

        return pl.BlockSpec((1, 1, K, size, H) if axis == 0 else (1, 1, K, H, size), index)

    tiles = tile(1, LANES), tile(1, LANES) if transposed else tile(0, ROWS)
    row = pl.BlockSpec((1, K, H), lambda b, _: (b, 0, 0))
    k, v = pl.pallas_call(
        partial(_write_one_slot, positions=n * T, transposed=transposed),
        out_shape=(jax.ShapeDtypeStruct(k_nBKHT.shape, k_nBKHT.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(B,), in_specs=[row, row, *tiles], out_specs=tiles, scratch_shapes=[]
        ),
        input_output_aliases={3: 0, 4: 1},  # counted with the prefetched positions
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="write_position",
    )(position_B.astype(jnp.int32), k_BKH, v_BKH, k_nBKHT, v)
    return k, v.swapaxes(-1, -2) if transposed else v


def _write_one_slot(position_B, new_k, new_v, k, v, k_out, v_out, *, positions: int, transposed: bool):
    at = position_B[pl.program_id(0)]
    inside = at < positions
    for head in range(k.shape[2]):
        k_out[0, 0, head] = _with_column(k[0, 0, head], new_k[0, head], at, inside)
        if transposed:
            v_out[0, 0, head] = _with_column(v[0, 0, head], new_v[0, head], at, inside)
        else:
            rows = v.shape[3]
            hit = (jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) == at % rows) & inside
            v_out[0, 0, head] = _select(hit, new_v[0, head][None], v[0, 0, head])


def _with_column(tile_HT, new_H, at, inside):
    """The tile with one column replaced. The vector lies along the lanes and the column across them: an outer product with a
    unit vector turns it, exactly, since every sum has one term that is not zero."""
    hit_1T = (jax.lax.broadcasted_iota(jnp.int32, (1, tile_HT.shape[1]), 1) == at % LANES) & inside
    wide = jnp.float32 if tile_HT.dtype == jnp.float32 else jnp.bfloat16
    column_HT = jax.lax.dot_general(
        new_H[None].astype(wide),
        hit_1T.astype(wide),
        (((0,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if wide == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return _select(hit_1T, column_HT, tile_HT)


def _select(hit, new, old):
    """jnp.where in float32, which holds every value of the cache's dtypes: the chips before v6e have no narrower select."""
    return jnp.where(hit, new.astype(jnp.float32), old.astype(jnp.float32)).astype(old.dtype)
