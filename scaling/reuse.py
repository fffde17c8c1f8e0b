"""Data reuse: how often may the same prompts be repeated before the held-out loss suffers?

For every reuse factor tau (epochs over a subset, total prompts held fixed): the mean loss of the last steps, its
difference to tau = 1, and the slope of log10 L in log10 step. Errors come from blocks of the residuals of one run: they
hold the scatter of evaluations, not that between runs, for which a second seed is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.resampling import noise
from scaling.runs import DataError, Runs

BLOCK = 5
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
    found = {}
    for curve in curves:
        if len(curve) < max(last, 5):
            raise DataError(f"{curve.where()} has {len(curve)} points from step {FIRST_STEP} on; {max(last, 5)} are needed")
        t, y = np.log10(curve.step), np.log10(curve.loss)
        slope, intercept = np.polyfit(t, y, 1)
        line = intercept + slope * t
        drawn = noise(y - line, draws, BLOCK, rng)
        slopes = -(((t - t.mean()) * (line + drawn)).sum(1) / ((t - t.mean()) ** 2).sum())
        final = curve.loss[-last:].mean()
        found[curve.reuse_factor] = (curve, final, final * (1 + np.log(10) * drawn[:, -last:].mean(1)), -slope, slopes)
    reference, reference_draws = found[1.0][1], found[1.0][2]
    result = []
    for factor, (curve, final, final_draws, k, slopes) in found.items():
        difference = final_draws - reference_draws if factor != 1.0 else np.zeros(draws)
        result.append(
            Reuse(
                factor,
                float(final),
                _interval(final_draws),
                float(final - reference),
                _interval(difference),
                float(k),
                _interval(slopes),
                int(curve.repeats.max()),
            )
        )
    return result


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
