"""Attention backends of the forward pass. Scores and softmax are float32; K/V heads are never repeated in memory.

Shapes: B batch, T query positions (or positions of a cache block), S key positions, N query heads, K kv heads, G = N/K queries
a kv head, H head size, n cache blocks.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers and not NaN


def causal_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """[B, 1, T, T] bool: position t sees s <= t of the same segment. Segment 0 is padding, which sees only padding."""
    T = segment_ids_BT.shape[1]
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return (same_BTS & jnp.tril(jnp.ones((T, T), bool)))[:, None]


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_B1TS: jax.Array) -> jax.Array:
    """Grouped-query attention over whole sequences. Returns [B, T, N, H] in the dtype of q."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    probs_BKGTS = jax.nn.softmax(jnp.where(mask_B1TS[:, :, None], scores_BKGTS, MASKED), axis=-1).astype(q_BTNH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH).reshape(B, T, N, H)


def attend_blocks(
    q_BNH: jax.Array,
    k_nBKHT: jax.Array,
    v_nBKTH: jax.Array,
    lengths_B: jax.Array,
    k_scale_nBKT: jax.Array | None = None,
    v_scale_nBKT: jax.Array | None = None,
) -> jax.Array:
    """One query a row against its KV cache in n blocks of T positions; row b sees its first `lengths_B[b]` positions.

    Returns [B, N, H] in the dtype of q. Block by block every product has the same shape, and what a masked block adds is an
    exact zero, so the result does not depend on n. With int8 K and V, the scales multiply scores and probabilities.
    """
    B, N, H = q_BNH.shape
    n, _, K, T, _ = v_nBKTH.shape
    q_nBKGH = jnp.broadcast_to((q_BNH * H**-0.5).reshape(1, B, K, N // K, H), (n, B, K, N // K, H))
    scores = jnp.einsum("nBKGH,nBKHT->nBKGT", q_nBKGH, k_nBKHT.astype(q_BNH.dtype), preferred_element_type=jnp.float32)
    if k_scale_nBKT is not None:
        scores *= k_scale_nBKT[:, :, :, None]
    seen_nBT = jnp.arange(n * T).reshape(n, 1, T) < lengths_B[None, :, None]
    scores = jnp.where(seen_nBT[:, :, None, None], scores, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=(0, -1), keepdims=True))
    total_BKG = weights.sum(axis=-1).sum(axis=0)
    if v_scale_nBKT is not None:
        weights *= v_scale_nBKT[:, :, :, None]
    out = jnp.einsum(
        "nBKGT,nBKTH->nBKGH", weights.astype(q_BNH.dtype), v_nBKTH.astype(q_BNH.dtype), preferred_element_type=jnp.float32
    )
    return (out.sum(axis=0) / total_BKG[..., None]).reshape(B, N, H).astype(q_BNH.dtype)
