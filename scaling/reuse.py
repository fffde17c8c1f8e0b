"""Data reuse: how often may the same prompts be repeated before the held-out loss suffers?

For every reuse factor tau (epochs over a subset, total prompts held fixed): the mean loss of the last evaluations, its
difference to tau = 1, and the slope of log10 L in log10 step. Errors come from blocks of the residuals of one run: they
hold the scatter of evaluations, not that between runs, for which a second seed is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.resampling import interval
from scaling.runs import DataError, Runs
from scaling.settings import FEWEST, measure

FIRST_STEP = 10  # the paper fits steps 10 to 100


@dataclass(frozen=True)
class Reuse:
    """One reuse factor: final is the mean loss of the last steps, difference that minus tau = 1, each with a 95 %
    interval.

    k: slope of the run, with its interval; runs: how many runs were averaged.
    """

    factor: float
    final: float
    final_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    k: float
    k_interval: tuple[float, float]
    runs: int


def analyse(runs: Runs, last: int = 10, draws: int = 2000, seed: int = 0) -> list[Reuse]:
    """Compare the reuse factors of one family and size. DataError without tau = 1, or with several families or
    sizes."""
    if len(runs.families) != 1 or len(runs.sizes) != 1:
        raise DataError(
            f"reuse is compared within one model, here are {', '.join(runs.families)} of {len(runs.sizes)} sizes: "
            "choose with runs.select(...)"
        )
    curves = sorted(runs.mean().between(first=FIRST_STEP), key=lambda c: c.reuse_factor or 0)
    factors = [curve.reuse_factor for curve in curves]
    if 1.0 not in factors or len(factors) < 2:
        raise DataError(f"reuse factors are {factors}: tau = 1 and at least one other are needed")
    rng = np.random.default_rng(seed)
    measured = {}
    for curve in curves:
        if len(curve) < max(last, FEWEST):
            raise DataError(
                f"{curve.where()} has {len(curve)} points from step {FIRST_STEP} on; {max(last, FEWEST)} are needed"
            )
        measured[curve.reuse_factor] = measure(curve, "step", last, draws, rng)
    reference = measured[1.0]
    return [
        Reuse(
            curve.reuse_factor,
            m.final,
            interval(m.final_draws),
            m.final - reference.final,
            interval(m.final_draws - reference.final_draws),
            m.k,
            interval(m.k_draws),
            int(curve.repeats.max()),
        )
        for curve, m in zip(curves, measured.values(), strict=True)
    ]
