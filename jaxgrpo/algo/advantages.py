"""Group-relative advantages (GRPO, arXiv 2402.03300 eq. 4; arXiv 2509.25300). P prompts, G samples per prompt."""

import jax
import jax.numpy as jnp


def group_advantages(rewards_PG, *, std_normalise: bool = True, eps: float = 1e-6) -> jax.Array:
    """Advantages [P, G] in float32: reward minus the group's mean, divided by (its sample standard deviation + eps).

    The standard deviation is the unbiased one (G - 1 in the denominator), as in the published runs; `std_normalise=False`
    only subtracts the mean (Dr. GRPO, arXiv 2503.20783). A group with equal rewards gives zeros; a group of one sample has
    nothing to be compared with and keeps its reward (mean 0, deviation 1).
    """
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards must have shape [prompts, samples], not {rewards_PG.shape}.")
    if rewards_PG.shape[1] == 1:
        return rewards_PG / (1.0 + eps) if std_normalise else rewards_PG
    shifted_PG = rewards_PG - rewards_PG[:, :1]  # equal rewards become exact zeros, whatever the rounding of their mean
    centred_PG = shifted_PG - shifted_PG.mean(axis=1, keepdims=True)
    if not std_normalise:
        return centred_PG
    return centred_PG / (shifted_PG.std(axis=1, ddof=1, keepdims=True) + eps)
