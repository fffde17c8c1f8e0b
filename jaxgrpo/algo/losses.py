"""The clipped policy-gradient loss of GRPO with dual clip and a KL term, as the published runs compute it.

ratio = exp(logp - old_logp);  loss = max(-A ratio, -A clip(ratio, 1 - low, 1 + high));  for A < 0 at most -A * dual_clip
(arXiv 1912.09729);  plus kl_coef * KL(policy || reference). Deviation: the token mean is exact over the whole minibatch,
where the published code averages micro-batch means (and so depends on the number of GPUs). The log of every ratio is clamped
to [-20, 20] before it is exponentiated (`clamp_log_ratio`).

Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), off
by default: each token's policy term is multiplied by min(exp(old_logp - behaviour_logp), cap), a constant to the gradient,
which pays for a sampler whose probabilities are not the trainer's. The clipped term is multiplied as a whole, KL is not.
"""

import jax
import jax.numpy as jnp

from jaxgrpo.algo.aggregation import token_weights
from jaxgrpo.algo.kl import token_kl
from jaxgrpo.algo.ratio import clamp_log_ratio


def policy_loss(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    advantages_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    ref_logp_BT: jax.Array | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    kl_coef: float = 0.0,
    kl: str = "k3",
    aggregation: str = "token-mean",
    segment_ids_BT: jax.Array | None = None,
    denominator=None,
    behaviour_logp_BT: jax.Array | None = None,
    tis_cap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss (float32 scalar, differentiable in logp_BT) and metrics of completion tokens (mask 1) [B, T].

    segment_ids_BT and denominator: see `token_weights`. With a denominator, loss and metrics are this micro-batch's share and
    add up over the micro-batches. Metrics, all weighted like the loss: `policy_loss`, `kl` (0 without ref_logp_BT),
    `clip_fraction` (the clipped branch was larger), `dual_clip_fraction`, `ratio`. Tokens outside the mask may hold anything.

    tis_cap > 0 weighs tokens by truncated importance sampling against the sampler's behaviour_logp_BT (ValueError without it)
    and adds the metrics `tis_weight` and `tis_clip_fraction` (tokens whose weight the cap cut).
    """
    weights_BT = token_weights(mask_BT, aggregation, segment_ids_BT=segment_ids_BT, denominator=denominator)
    return weighted_policy_loss(
        logp_BT,
        old_logp_BT,
        advantages_BT,
        weights_BT,
        ref_logp=ref_logp_BT,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        kl=kl,
        behaviour_logp=behaviour_logp_BT,
        tis_cap=tis_cap,
    )


def weighted_policy_loss(
    logp, old_logp, advantages, weights, *, ref_logp, clip_low, clip_high, dual_clip, kl_coef, kl, behaviour_logp, tis_cap
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`policy_loss` of any tokens whose weights are known, such as one chunk of a row: a sum over them."""
    if tis_cap and behaviour_logp is None:
        raise ValueError("tis_cap is set, but behaviour_logp_BT is missing.")
    inside = weights > 0
    ratio = _ratio(logp, old_logp, inside)
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    pessimistic = jnp.maximum(unclipped, clipped)
    cap = -advantages * dual_clip
    dual = (advantages < 0) & (pessimistic > cap)
    token_loss = jnp.where(dual, cap, pessimistic)
    importance = {}
    if tis_cap:
        whole = jax.lax.stop_gradient(_ratio(old_logp, behaviour_logp, inside))
        tis = jnp.minimum(whole, tis_cap)
        token_loss = token_loss * tis
        importance = {"tis_weight": tis, "tis_clip_fraction": whole > tis_cap}

    def weighted(value):
        return jnp.sum(jnp.where(inside, value, 0.0) * weights)

    policy = weighted(token_loss)
    divergence = jnp.zeros(())
    if ref_logp is not None:
        divergence = weighted(token_kl(jnp.where(inside, logp, 0.0), jnp.where(inside, ref_logp, 0.0), kl))
    metrics = {
        "policy_loss": policy,
        "kl": divergence,
        "clip_fraction": weighted(clipped > unclipped),
        "dual_clip_fraction": weighted(dual),
        "ratio": weighted(ratio),
    } | {name: weighted(value) for name, value in importance.items()}
    return policy + kl_coef * divergence, jax.lax.stop_gradient(metrics)


def _ratio(logp: jax.Array, other_logp: jax.Array, inside: jax.Array) -> jax.Array:
    """exp(logp - other_logp) in float32, 1 outside the weighted tokens."""
    return jnp.exp(clamp_log_ratio(jnp.where(inside, logp - other_logp, 0.0).astype(jnp.float32)))
