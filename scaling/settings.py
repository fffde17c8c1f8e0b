"""One model trained in different settings, such as other numbers of samples per prompt: slopes and last losses side by side.

Intervals hold the scatter of evaluations within the averaged curve, not that between training runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.resampling import noise
from scaling.runs import DataError, Runs

BLOCK = 5
FEWEST = 5


@dataclass(frozen=True)
class Setting:
    """One setting: k the slope of log10 L in log10 X, final the mean loss of the last points, difference that minus the first
    setting's, each with a 95 % interval; end is the last X."""

    name: str
    points: int
    runs: int
    end: float
    k: float
    k_interval: tuple[float, float]
    final: float
    final_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def compare(arms: dict[str, Runs], x: str = "data", last: int = 5, draws: int = 2000, seed: int = 0) -> list[Setting]:
    """Compare settings of one family and size over X; the first is the reference. DataError for fewer than two settings,
    several models, or curves of fewer than 5 points."""
    models = {(curve.family, curve.n) for runs in arms.values() for curve in runs}
    if len(arms) < 2 or len(models) != 1:
        raise DataError(f"{len(arms)} settings of {len(models)} models: compare at least two settings of one model")
    rng = np.random.default_rng(seed)
    found, reference = [], None
    for name, runs in arms.items():
        curve = runs.mean().curves[0]
        if len(curve) < FEWEST:
            raise DataError(f"{name}: {curve.where()} has {len(curve)} points; {FEWEST} are needed: evaluate more often")
        t, y = np.log10(curve.x(x)), np.log10(curve.loss)
        slope, intercept = np.polyfit(t, y, 1)
        line = intercept + slope * t
        drawn = noise(y - line, draws, BLOCK, rng)
        dt = t - t.mean()
        slopes = -slope - (dt * drawn).sum(1) / (dt**2).sum()
        final = float(curve.loss[-last:].mean())
        finals = final * (1 + np.log(10) * drawn[:, -last:].mean(1))
        if reference is None:
            reference = (final, finals)
        apart = finals - reference[1] if found else np.zeros(draws)
        found.append(
            Setting(
                name,
                len(curve),
                int(curve.repeats.max()),
                float(10.0 ** t.max()),
                float(-slope),
                _interval(slopes),
                final,
                _interval(finals),
                final - reference[0],
                _interval(apart),
            )
        )
    return found


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
