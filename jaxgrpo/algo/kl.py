"""Per-token estimators of KL(policy || reference) from samples of the policy (J. Schulman, "Approximating KL divergence").

With d = log ref - log policy: k1 = -d (unbiased, high variance), k2 = d^2 / 2 (biased, low variance),
k3 = exp(d) - d - 1 (unbiased, never negative). k3 alone grows without measure, and as in the published runs (verl) takes d
within [-20, 20] and is clipped to at most 10; past either its gradient is zero. k1 and k2 are not clipped.
"""

import jax
import jax.numpy as jnp

from jaxgrpo.algo.ratio import clamp_log_ratio


def _k3(d: jax.Array) -> jax.Array:
    d = clamp_log_ratio(d)
    return jnp.minimum(jnp.exp(d) - d - 1.0, 10.0)


KL_ESTIMATORS = {"k1": lambda d: -d, "k2": lambda d: 0.5 * d * d, "k3": _k3}


def token_kl(logp_BT: jax.Array, ref_logp_BT: jax.Array, estimator: str) -> jax.Array:
    """[B, T] estimates, differentiable in logp_BT."""
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {', '.join(KL_ESTIMATORS)}.")
    return KL_ESTIMATORS[estimator](ref_logp_BT - logp_BT)
