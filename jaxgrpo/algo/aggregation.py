"""How token losses become one number: every rule is a weight per token, and the loss is the weighted sum.

`token-mean`: every completion token of the minibatch weighs the same (the published code, but exact over all devices and
micro-batches). `seq-mean-token-mean`: every sequence weighs the same, its tokens share its weight (eq. 3 of the paper).
"""

import jax
import jax.numpy as jnp

AGGREGATIONS = ("token-mean", "seq-mean-token-mean")


def token_weights(
    mask_BT: jax.Array, aggregation: str, *, segment_ids_BT: jax.Array | None = None, denominator=None
) -> jax.Array:
    """Weights [B, T] of the completion tokens (mask 1), zero elsewhere.

    segment_ids_BT: in packed rows, the number (1, 2, ...) of the sequence that each token belongs to; without it a row is one
    sequence. denominator: the count over the whole minibatch (tokens, or sequences for `seq-mean-token-mean`) when these rows
    are one micro-batch of many; the weights of all micro-batches then add up to 1. Without it, the count of these rows.
    """
    mask_BT = mask_BT.astype(jnp.float32)
    if aggregation == "token-mean":
        count = mask_BT.sum() if denominator is None else denominator
        return mask_BT / jnp.maximum(count, 1.0)
    if aggregation != "seq-mean-token-mean":
        raise ValueError(f"unknown aggregation {aggregation!r}; known: {', '.join(AGGREGATIONS)}.")
    B, T = mask_BT.shape
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((B, T), jnp.int32)
    rows_B1 = jnp.arange(B)[:, None]
    tokens_BS = jnp.zeros((B, T + 1), jnp.float32).at[rows_B1, segment_ids_BT].add(mask_BT)
    count = (tokens_BS > 0).sum() if denominator is None else denominator
    own_length_BT = jnp.take_along_axis(tokens_BS, segment_ids_BT, axis=1)
    return mask_BT / jnp.maximum(own_length_BT, 1.0) / jnp.maximum(count, 1.0)
