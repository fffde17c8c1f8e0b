"""Differences of log-probabilities, kept where their exponential is finite."""

import jax
import jax.numpy as jnp

LARGEST = 20.0  # as in verl and Tunix: exp(20) is 5e8, and from 89 on exp is infinite in float32


def clamp_log_ratio(difference: jax.Array) -> jax.Array:
    """The difference where it lies in [-20, 20], to the bit and with its gradient; past them the nearer bound, with gradient 0.

    Without it the exponential of one token is infinite, its gradient 0 x inf = NaN, and a whole minibatch is lost."""
    return jnp.where(jnp.abs(difference) > LARGEST, jnp.sign(difference) * LARGEST, difference)
