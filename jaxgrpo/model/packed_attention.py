"""Attention of the trainer over flat rows, in which many sequences lie one after another and a group's prompt lies once.

A row is cut into spans: runs of tokens that see a common prefix (the prompt of their group, elsewhere in the row) and,
causally, themselves. Matrix products of the layers read the flat row; only here are spans gathered into tiles, by length, so
that short ones do not pay for long ones. One device attends to its own row; the number of tiles is data: nothing is recompiled.

Backends: "xla" (CPU, and float32 on a GPU), "cudnn" (GPU, bf16), "splash" (TPU: a Pallas kernel that knows segment ids, and so
no shared prompts; "interpret" is the same step by step on any machine).

Shapes: B rows, one of each device; T tokens of a row, S spans, n spans of a tile, R queries and L keys of a span in a tile,
N query heads, K kv heads, G = N/K, H head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxgrpo.model.attention import MASKED
from jaxgrpo.parallel.sharding import RULES

SPLASH_TILE = 128
BUCKETS = 8
BUCKET_MULTIPLE = 32
TILE_TOKENS = {"xla": 1536, "cudnn": 16_384}  # keys of a tile: enough work for one product, and little memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spans:
    """Int arrays [..., S], ordered by falling bucket, and the number of spans in each bucket [..., len(buckets)]."""

    start: np.ndarray  # of the span's own tokens in the row
    length: np.ndarray
    first: np.ndarray  # own tokens that another span computes: a long one is cut, its parts see all that precedes them
    prefix_start: np.ndarray
    prefix_length: np.ndarray
    counts: np.ndarray
    buckets: tuple[int, ...] = field(metadata={"static": True})  # falling; a span's prefix and own tokens fit its bucket
    queries: int = field(metadata={"static": True})  # most own tokens that a span computes


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """Falling lengths from `longest` (rounded up) on, in steps of about 3/4 and 2/3; at most BUCKETS of them."""
    wanted = [longest / 2 ** (i // 2) * (1 - i % 2 / 4) for i in range(2 * BUCKETS)]
    rounded = sorted({-(-int(np.ceil(w)) // BUCKET_MULTIPLE) * BUCKET_MULTIPLE for w in wanted}, reverse=True)
    return tuple(rounded[:BUCKETS])


def attention_backend(mesh, dtype) -> str:
    """Which backend computes on the devices of `mesh` in `dtype`."""
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform in ("gpu", "cuda") and jnp.dtype(dtype) == jnp.bfloat16 else "xla"


def packed_attention(backend: str, spans: Spans, segment_ids_BT: jax.Array, mesh) -> Callable:
    """`attend(q_BTNH, k_BTKH, v_BTKH) -> out_BTNH` over rows spread over the mesh's batch axes; heads over `tensor` where it
    divides K.

    Padding (tokens of no span) comes out as zero, or as anything finite with "splash". Spans may be None with "splash".
    """

    batch = tuple(axis for axis in RULES["batch"] if axis in mesh.shape)

    def attend(q_BTNH, k_BTKH, v_BTKH):
        tensor = mesh.shape.get("tensor", 1)
        heads = P(batch, None, "tensor" if k_BTKH.shape[2] % tensor == 0 else None, None)
        per_row = jax.tree.map(lambda _: P(batch, None), spans)

        def local(q, k, v, segments, spans):
            if backend in ("splash", "interpret"):
                return jax.vmap(partial(splash, interpret=backend == "interpret"))(q, k, v, segments)
            rows = [attend_spans(backend, q[b], k[b], v[b], jax.tree.map(lambda x, b=b: x[b], spans)) for b in range(len(q))]
            return jnp.stack(rows)

        run = jax.shard_map(
            local, mesh=mesh, in_specs=(heads, heads, heads, P(batch, None), per_row), out_specs=heads, check_vma=False
        )
        return run(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, spans)

    return attend


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_spans(backend: str, q_TNH: jax.Array, k_TKH: jax.Array, v_TKH: jax.Array, spans: Spans) -> jax.Array:
    """[T, N, H]: own token i of a span sees the span's prefix and own tokens 0..i. Arrays of one row, spans [S]."""
    return _attend_spans_forward(backend, q_TNH, k_TKH, v_TKH, spans)[0]


def _attend_spans_forward(backend, q_TNH, k_TKH, v_TKH, spans):
    def body(tile, carry):
        out_TNH, logz_TN = carry
        out, logz = attend_tile(backend, _take(q_TNH, tile.queries), _take(k_TKH, tile.keys), _take(v_TKH, tile.keys), tile)
        if logz_TN is not None:
            logz_TN = logz_TN.at[tile.results].set(logz, mode="drop")
        return out_TNH.at[tile.results].set(out, mode="drop"), logz_TN

    logz_TN = jnp.zeros(q_TNH.shape[:2], jnp.float32) if backend == "xla" else None
    out_TNH, logz_TN = _for_tiles(backend, spans, len(q_TNH), body, (jnp.zeros_like(q_TNH), logz_TN))
    out_TNH, logz_TN = checkpoint_name((out_TNH, logz_TN), "attention")
    return out_TNH, (q_TNH, k_TKH, v_TKH, spans, out_TNH, logz_TN)


def _attend_spans_backward(backend, saved, dout_TNH):
    """Scores are computed again, tile by tile. dk and dv of a prefix add up over its spans, in float32."""
    q_TNH, k_TKH, v_TKH, spans, out_TNH, logz_TN = saved

    def body(tile, gradients):
        dq_TNH, dk_TKH, dv_TKH = gradients
        q, k, v, dout = (
            _take(q_TNH, tile.queries),
            _take(k_TKH, tile.keys),
            _take(v_TKH, tile.keys),
            _take(dout_TNH, tile.results),
        )
        if backend == "xla":
            dq, dk, dv = _tile_gradients(q, k, v, dout, _take(out_TNH, tile.results), _take(logz_TN, tile.results), tile)
        else:
            dq, dk, dv = jax.vjp(lambda q, k, v: attend_tile(backend, q, k, v, tile)[0], q, k, v)[1](dout)
        return (
            dq_TNH.at[tile.results].set(dq, mode="drop"),
            dk_TKH.at[tile.keys].add(dk.astype(jnp.float32), mode="drop"),
            dv_TKH.at[tile.keys].add(dv.astype(jnp.float32), mode="drop"),
        )

    zeros = jnp.zeros_like(q_TNH), jnp.zeros(k_TKH.shape, jnp.float32), jnp.zeros(v_TKH.shape, jnp.float32)
    dq, dk, dv = _for_tiles(backend, spans, len(q_TNH), body, zeros)
    return dq, dk.astype(k_TKH.dtype), dv.astype(v_TKH.dtype), None


attend_spans.defvjp(_attend_spans_forward, _attend_spans_backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tile:
    """Where the queries and keys of n spans lie in the row; T, one past its end, stands for none."""

    queries: jax.Array  # [n, R] read from here
    results: jax.Array  # [n, R] written there
    keys: jax.Array  # [n, L]
    before: jax.Array  # [n] keys that query 0 sees besides itself
    total: jax.Array  # [n] keys of the span


def attend_tile(backend: str, q_nRNH: jax.Array, k_nLKH: jax.Array, v_nLKH: jax.Array, tile: Tile):
    """([n, R, N, H], with "xla" [n, R, N] log-sum-exp of scores): query i sees the first `before + i + 1` keys of its span."""
    if backend == "cudnn":
        lengths = jnp.maximum(tile.total, 1).astype(jnp.int32)
        out_nRNH = jax.nn.dot_product_attention(
            q_nRNH,
            k_nLKH,
            v_nLKH,
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return out_nRNH, None
    q_nKMH, k_nKLH, v_nKLH = _heads_first(q_nRNH, k_nLKH.shape[2]), jnp.moveaxis(k_nLKH, 1, 2), jnp.moveaxis(v_nLKH, 1, 2)
    scores_nKML = _scores(q_nKMH, k_nKLH, tile, q_nRNH.shape)
    largest_nKM = scores_nKML.max(axis=-1)
    weights_nKML = jnp.exp(scores_nKML - largest_nKM[..., None])
    total_nKM = weights_nKML.sum(axis=-1)
    out_nKMH = jnp.einsum("nKML,nKLH->nKMH", weights_nKML.astype(v_nKLH.dtype), v_nKLH, preferred_element_type=jnp.float32)
    out_nKMH = (out_nKMH / total_nKM[..., None]).astype(q_nRNH.dtype)
    return _heads_last(out_nKMH, q_nRNH.shape), _heads_last(largest_nKM + jnp.log(total_nKM), q_nRNH.shape[:3])


def _tile_gradients(q_nRNH, k_nLKH, v_nLKH, dout_nRNH, out_nRNH, logz_nRN, tile: Tile):
    """(dq, dk, dv) from the saved result and log-sum-exp of the scores."""
    K, H = k_nLKH.shape[2:]
    q_nKMH, k_nKLH, v_nKLH = _heads_first(q_nRNH, K), jnp.moveaxis(k_nLKH, 1, 2), jnp.moveaxis(v_nLKH, 1, 2)
    dout_nKMH, logz_nKM = _heads_first(dout_nRNH, K), _heads_first(logz_nRN, K)
    along_nKM = _heads_first(jnp.sum(dout_nRNH.astype(jnp.float32) * out_nRNH.astype(jnp.float32), axis=-1), K)
    probs_nKML = jnp.exp(_scores(q_nKMH, k_nKLH, tile, q_nRNH.shape) - logz_nKM[..., None])
    dprobs_nKML = jnp.einsum("nKMH,nKLH->nKML", dout_nKMH, v_nKLH, preferred_element_type=jnp.float32)
    dscores_nKML = (probs_nKML * (dprobs_nKML - along_nKM[..., None]) * H**-0.5).astype(q_nRNH.dtype)
    dq_nKMH = jnp.einsum("nKML,nKLH->nKMH", dscores_nKML, k_nKLH)
    dk_nKLH = jnp.einsum("nKML,nKMH->nKLH", dscores_nKML, q_nKMH)
    dv_nKLH = jnp.einsum("nKML,nKMH->nKLH", probs_nKML.astype(q_nRNH.dtype), dout_nKMH)
    return _heads_last(dq_nKMH, q_nRNH.shape), jnp.moveaxis(dk_nKLH, 2, 1), jnp.moveaxis(dv_nKLH, 2, 1)


def _scores(q_nKMH, k_nKLH, tile: Tile, shape) -> jax.Array:
    """[n, K, M, L] float32, MASKED where a query does not see a key; M = G x R queries of a kv head."""
    n, R, N, H = shape
    K, L = k_nKLH.shape[1:3]
    scores_nKML = jnp.einsum("nKMH,nKLH->nKML", q_nKMH, k_nKLH, preferred_element_type=jnp.float32) * H**-0.5
    seen_nRL = jnp.arange(L) <= (tile.before[:, None] + jnp.arange(R))[..., None]
    masked = jnp.where(seen_nRL[:, None, None], scores_nKML.reshape(n, K, N // K, R, L), MASKED)
    return masked.reshape(scores_nKML.shape)


def _heads_first(x_nRN: jax.Array, K: int) -> jax.Array:
    """[n, R, N, ...] -> [n, K, G x R, ...]."""
    n, R, N, *rest = x_nRN.shape
    return jnp.moveaxis(x_nRN, 1, 2).reshape(n, K, N // K * R, *rest)


def _heads_last(x_nKM: jax.Array, shape) -> jax.Array:
    """The inverse of `_heads_first`, to [n, R, N, ...]."""
    n, R, N, *rest = shape
    return jnp.moveaxis(x_nKM.reshape(n, N, R, *rest), 1, 2)


def _for_tiles(backend: str, spans: Spans, T: int, body: Callable, carry):
    """`carry = body(tile, carry)` over the tiles of every bucket; the buckets' loops are laid out, their lengths are data."""
    first = 0
    for index, L in enumerate(spans.buckets):
        n = max(1, min(TILE_TOKENS[backend] // L, len(spans.start)))
        end = first + spans.counts[index]

        def step(i, carry, L=L, n=n, first=first, end=end):
            return body(_tile(backend, spans, T, L, first + i * n + jnp.arange(n), end), carry)

        carry = jax.lax.fori_loop(0, (spans.counts[index] + n - 1) // n, step, carry)
        first = end
    return carry


def _tile(backend: str, spans: Spans, T: int, L: int, which_n: jax.Array, end) -> Tile:
    """The spans `which_n`, those from `end` on left empty, with room for L keys. cuDNN's causal mask wants as many queries
    as keys: there the prefix is queried too, and its results are dropped."""
    at = lambda array: jnp.where(which_n < end, _take(array, which_n), 0)[:, None]  # noqa: E731
    places = spans.start, spans.length, spans.first, spans.prefix_start, spans.prefix_length
    start, length, first, prefix_start, prefix = map(at, places)
    key = jnp.arange(L)
    keys = jnp.where(key < prefix, prefix_start + key, start + key - prefix)
    keys = jnp.where(key < prefix + length, keys, T)
    total = (prefix + length)[:, 0]
    if backend == "cudnn":
        return Tile(keys, jnp.where(key < prefix, T, keys), keys, jnp.zeros_like(total), total)
    query = first + jnp.arange(min(L, spans.queries))
    queries = jnp.where(query < length, start + query, T)
    return Tile(queries, queries, keys, (prefix + first)[:, 0], total)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


def splash(q_TNH: jax.Array, k_TKH: jax.Array, v_TKH: jax.Array, segment_ids_T: jax.Array, interpret=False) -> jax.Array:
    """[T, N, H] on a TPU: causal attention within segments by the splash Pallas kernel, forward and backward.

    T must be a multiple of SPLASH_TILE. `interpret` runs the kernel's program on any device, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, N, H = q_TNH.shape
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * N)
    block = next(size for size in (512, 256, SPLASH_TILE) if T % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    attend = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)
    heads_first = lambda x: jnp.moveaxis(x, 1, 0)  # noqa: E731
    segments = kernel.SegmentIds(segment_ids_T, segment_ids_T)
    out_NTH = attend(heads_first(q_TNH) * H**-0.5, heads_first(k_TKH), heads_first(v_TKH), segment_ids=segments)
    return jnp.moveaxis(out_NTH, 0, 1)
