"""Attention backends of the forward pass. Scores and softmax are float32; K/V heads are never repeated in memory.

Shapes: B batch, T query positions, S key positions, N query heads, K kv heads, G = N/K queries a kv head, H head size.
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


def attend_cache(q_BNH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """One query a row against its KV cache; row b sees its first `lengths_B[b]` entries. Returns [B, N, H].

    K is kept [.., H, S] because on CPU the score product over [.., S, H] is three times slower (jax 0.10).
    """
    B, N, H = q_BNH.shape
    K, S = v_BKSH.shape[1:3]
    q_BKGH = q_BNH.reshape(B, K, N // K, H) * H**-0.5
    scores_BKGS = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS, preferred_element_type=jnp.float32)
    seen_BS = jnp.arange(S) < lengths_B[:, None]
    probs_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], scores_BKGS, MASKED), axis=-1).astype(q_BNH.dtype)
    return jnp.einsum("BKGS,BKSH->BKGH", probs_BKGS, v_BKSH).reshape(B, N, H)
