"""One model trained in different settings, such as other numbers of samples per prompt: slopes and last losses side by side.

Intervals hold the scatter of evaluations within the averaged curve, not that between training runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.resampling import interval, noise
from scaling.runs import Curve, DataError, Runs

BLOCK = 5
FEWEST = 5


@dataclass(frozen=True)
class Measured:
    """A curve's power law over X, log10 L = intercept - k log10 X, and the mean loss of its last points; with the replicates of
    slope and loss, shape (R,), that blocks of its residuals give."""

    k: float
    intercept: float
    k_draws: np.ndarray
    final: float
    final_draws: np.ndarray


@dataclass(frozen=True)
class Setting:
    """One setting: its averaged curve over X, k the slope of log10 L in log10 X, final the mean loss of the last points,
    difference that minus the first setting's, each with a 95 % interval."""

    name: str
    curve: Curve
    k: float
    intercept: float
    k_interval: tuple[float, float]
    final: float
    final_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def measure(curve: Curve, x: str, last: int, draws: int, rng: np.random.Generator) -> Measured:
    """Slope and last loss of one curve of at least FEWEST points."""
    t, y = np.log10(curve.x(x)), np.log10(curve.loss)
    slope, intercept = np.polyfit(t, y, 1)
    line = intercept + slope * t
    drawn = noise(y - line, draws, BLOCK, rng)
    dt = t - t.mean()
    k_draws = -(dt * (line + drawn)).sum(1) / (dt**2).sum()
    final = float(curve.loss[-last:].mean())
    final_draws = np.clip(final * (1 + np.log(10) * drawn[:, -last:].mean(1)), 0, 1)
    return Measured(float(-slope), float(intercept), k_draws, final, final_draws)


def compare(arms: dict[str, Runs], x: str = "data", last: int = 5, draws: int = 2000, seed: int = 0) -> list[Setting]:
    """Compare settings of one family and size over X; the first is the reference. DataError for fewer than two settings,
    several models, or curves of fewer than 5 points."""
    models = {(curve.family, curve.n) for runs in arms.values() for curve in runs}
    if len(arms) < 2 or len(models) != 1:
        raise DataError(f"{len(arms)} settings of {len(models)} models: compare at least two settings of one model")
    rng = np.random.default_rng(seed)
    curves = {name: runs.mean().curves[0] for name, runs in arms.items()}
    for name, curve in curves.items():
        if len(curve) < FEWEST:
            raise DataError(f"{name}: {curve.where()} has {len(curve)} points; {FEWEST} are needed: evaluate more often")
    measured = {name: measure(curve, x, last, draws, rng) for name, curve in curves.items()}
    reference = next(iter(measured.values()))
    return [
        Setting(
            name,
            curves[name],
            m.k,
            m.intercept,
            interval(m.k_draws),
            m.final,
            interval(m.final_draws),
            m.final - reference.final,
            interval(m.final_draws - reference.final_draws),
        )
        for name, m in measured.items()
    ]
