"""Rewards: one small file per grader, and worker processes that can be killed. Nothing here imports jax."""

from jaxgrpo.reward.grade import Grade
from jaxgrpo.reward.pool import GraderPool
from jaxgrpo.reward.router import known_data_sources, score

__all__ = ["Grade", "GraderPool", "known_data_sources", "score"]
