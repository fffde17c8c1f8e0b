"""GRPO as pure functions of arrays: group advantages, clipped policy loss, KL estimators, aggregation. Imports only jax."""

from jaxgrpo.algo.advantages import group_advantages
from jaxgrpo.algo.aggregation import AGGREGATIONS, token_weights
from jaxgrpo.algo.kl import KL_ESTIMATORS
from jaxgrpo.algo.losses import policy_loss, weighted_policy_loss

__all__ = ["AGGREGATIONS", "KL_ESTIMATORS", "group_advantages", "policy_loss", "token_weights", "weighted_policy_loss"]
