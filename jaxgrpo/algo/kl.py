"""Per-token estimators of KL(policy || reference) from samples of the policy (J. Schulman, "Approximating KL divergence").

With d = log ref - log policy: k1 = -d (unbiased, high variance), k2 = d^2 / 2 (biased, low variance),
k3 = exp(d) - d - 1 (unbiased, never negative). As in the published runs every estimate is clipped to [-10, 10].
"""

import jax
import jax.numpy as jnp

KL_ESTIMATORS = {
    "k1": lambda d: -d,
    "k2": lambda d: 0.5 * d * d,
    "k3": lambda d: jnp.exp(d) - d - 1.0,
}


def token_kl(logp_BT: jax.Array, ref_logp_BT: jax.Array, estimator: str) -> jax.Array:
    """[B, T] estimates, differentiable in logp_BT."""
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {', '.join(KL_ESTIMATORS)}.")
    return jnp.clip(KL_ESTIMATORS[estimator](ref_logp_BT - logp_BT), -10.0, 10.0)
