"""The clipped policy-gradient loss of GRPO with dual clip and a KL term, as the published runs compute it.

ratio = exp(logp - old_logp);  loss = max(-A ratio, -A clip(ratio, 1 - low, 1 + high));  for A < 0 at most -A * dual_clip
(arXiv 1912.09729);  plus kl_coef * KL(policy || reference). Deviation: the token mean is exact over the whole minibatch,
where the published code averages micro-batch means (and so depends on the number of GPUs).

Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), off
by default: each token's policy term is multiplied by min(exp(old_logp - behaviour_logp), cap), a constant to the gradient,
which pays for a sampler whose probabilities are not the trainer's. The clipped term is multiplied as a whole, KL is not.
"""

import jax
import jax.numpy as jnp

from jaxgrpo.algo.aggregation import token_weights
from jaxgrpo.algo.kl import token_kl


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
    if tis_cap and behaviour_logp_BT is None:
        raise ValueError("tis_cap is set, but behaviour_logp_BT is missing.")
    weights_BT = token_weights(mask_BT, aggregation, segment_ids_BT=segment_ids_BT, denominator=denominator)
    inside = weights_BT > 0
    log_ratio_BT = jnp.where(inside, logp_BT - old_logp_BT, 0.0).astype(jnp.float32)
    ratio_BT = jnp.exp(log_ratio_BT)
    unclipped_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    pessimistic_BT = jnp.maximum(unclipped_BT, clipped_BT)
    cap_BT = -advantages_BT * dual_clip
    dual_BT = (advantages_BT < 0) & (pessimistic_BT > cap_BT)
    token_loss_BT = jnp.where(dual_BT, cap_BT, pessimistic_BT)
    importance = {}
    if tis_cap:
        mismatch_BT = jnp.where(inside, jax.lax.stop_gradient(old_logp_BT - behaviour_logp_BT), 0.0).astype(jnp.float32)
        whole_BT = jnp.exp(mismatch_BT)
        tis_BT = jnp.minimum(whole_BT, tis_cap)
        token_loss_BT = token_loss_BT * tis_BT
        importance = {"tis_weight": tis_BT, "tis_clip_fraction": whole_BT > tis_cap}

    def weighted(value_BT):
        return jnp.sum(jnp.where(inside, value_BT, 0.0) * weights_BT)

    policy = weighted(token_loss_BT)
    divergence = jnp.zeros(())
    if ref_logp_BT is not None:
        masked = jnp.where(inside, logp_BT, 0.0), jnp.where(inside, ref_logp_BT, 0.0)
        divergence = weighted(token_kl(*masked, kl))
    metrics = {
        "policy_loss": policy,
        "kl": divergence,
        "clip_fraction": weighted(clipped_BT > unclipped_BT),
        "dual_clip_fraction": weighted(dual_BT),
        "ratio": weighted(ratio_BT),
    } | {name: weighted(value_BT) for name, value_BT in importance.items()}
    return policy + kl_coef * divergence, jax.lax.stop_gradient(metrics)
