"""Errors on data that were not fitted: the largest size from the smaller ones, and the rest of a curve from its
beginning.

Every row is labelled with what it was allowed to see. 'new size' saw nothing of the size it predicts; 'calibrated on m
points' saw its first m points; 'calibrated on all points' is the paper's extrapolation, whose intercept is fitted to
the curve it predicts.

Shapes: T points of the predicted part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling import goodness
from scaling.extrapolation import Prediction, level_line
from scaling.law import INTERVAL_LEVEL, Law, fit
from scaling.runs import Curve, DataError, Runs

CALIBRATION_POINTS = (5, 10, 20)
END_SHARE = 10  # the end of a curve is its last tenth
LAST_VALUE_POINTS = 5


@dataclass(frozen=True)
class HeldOut:
    """Errors of one prediction of L. All but `r2` in units of loss, mape relative.

    mae, mape: mean absolute errors; end_bias: mean signed error (predicted minus observed) over the last tenth;
    coverage: share of points inside the interval of a new evaluation, None where there is no interval; width: its mean
    width.
    """

    basis: str
    points: int
    mae: float
    mape: float
    end_bias: float
    r2: float
    coverage: float | None
    width: float | None


def errors(prediction: Prediction, observed: np.ndarray, basis: str | None = None) -> HeldOut:
    """Compare a prediction with what was measured at its points, shape (T,)."""
    off = prediction.loss - observed
    end = max(1, len(off) // END_SHARE)
    inside = width = None
    if prediction.low is not None:
        inside = float(((prediction.low <= observed) & (observed <= prediction.high)).mean())
        width = float((prediction.high - prediction.low).mean())
    return HeldOut(
        basis=basis or prediction.basis,
        points=len(off),
        mae=float(np.abs(off).mean()),
        mape=float(np.abs(off / observed).mean()),
        end_bias=float(off[-end:].mean()),
        r2=goodness.r2(observed, prediction.loss, np.ones(len(off), bool)),
        coverage=inside,
        width=width,
    )


def largest_out(
    runs: Runs,
    x: str = "compute",
    n: float | None = None,
    objective: str = "log",
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = INTERVAL_LEVEL,
    **how,
) -> tuple[Law, list[HeldOut]]:
    """Fit the law to the sizes below `n` (default: the largest) and predict `n`: without its data, and calibrated on
    some.

    Returns the law of the smaller sizes and one row per way of setting the intercept. Calibrated rows are scored on the
    points after the calibration only. The baseline takes the measured curve of the next smaller size at equal place in
    its own X. `how` goes to `fit`: weights, resample, block.
    """
    averaged = runs.mean()
    n = max(averaged.sizes) if n is None else n
    target = averaged.select(n=n).curves[0]
    below = [size for size in averaged.sizes if size < n * (1 - 1e-9)]
    if len(below) < 2:
        raise DataError(f"{len(below)} sizes lie below {target.size}: at least two are needed to predict it")
    law = fit(runs.select(n=below), x=x, objective=objective, bootstrap=bootstrap, seed=seed, **how)
    at = target.x(x)
    rows = [errors(law.predict(n, at, level), target.loss)]
    line = level_line(law.design, law.solution, n, at_pivot=False)
    naive = Prediction(
        n, at, 10.0 ** (line.intercept[0] - law.k(n) * np.log10(at)), level, "new size, line through E(N) itself"
    )
    rows.append(errors(naive, target.loss))
    for m in CALIBRATION_POINTS:
        if m < len(target) // 2:
            rows.append(errors(law.predict(n, at[m:], level, calibrate=(at[:m], target.loss[:m])), target.loss[m:]))
    rows.append(
        errors(
            law.predict(n, at, level, calibrate=(at, target.loss)),
            target.loss,
            "calibrated on all points (the paper's, not a prediction)",
        )
    )
    rows.append(errors(_neighbour(averaged.select(n=max(below)).curves[0], target, at, level), target.loss))
    return law, rows


def _neighbour(smaller: Curve, target: Curve, at: np.ndarray, level: float) -> Prediction:
    """The curve of the next smaller size, step for step: what one would guess without a law."""
    loss = np.interp(target.step, smaller.step, smaller.loss)
    return Prediction(target.n, at, loss, level, f"baseline: same as {smaller.size} at that step")


def size_ladder(
    runs: Runs, x: str = "compute", objective: str = "log", bootstrap: int = 500, seed: int = 0
) -> dict[str, HeldOut]:
    """Leave-largest-out for every size that has three smaller ones: {size: its error as a new size}."""
    averaged = runs.mean()
    found = {}
    for n in averaged.sizes[3:]:
        _, rows = largest_out(averaged, x, n, objective, bootstrap, seed)
        found[averaged.select(n=n).curves[0].size] = rows[0]
    return found


@dataclass(frozen=True)
class Trajectory:
    """The rest of every curve from its first `fraction`: per size and pooled, with the last-value baseline beside
    it."""

    fraction: float
    law: Law
    pooled: HeldOut
    baseline_mae: float
    per_size: dict[str, HeldOut]


def remaining(
    runs: Runs,
    x: str = "compute",
    fraction: float = 0.25,
    objective: str = "log",
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = INTERVAL_LEVEL,
) -> Trajectory:
    """Fit all sizes on their first `fraction` of points and predict the remaining ones."""
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction}: must lie in (0, 1), so that points remain to be predicted")
    averaged = runs.mean()
    early = averaged.head(fraction)
    law = fit(early, x=x, objective=objective, bootstrap=bootstrap, seed=seed)
    per_size, pieces, baseline = {}, [], []
    for curve, begun in zip(averaged, early, strict=True):
        rest = curve.take(np.arange(len(curve)) >= len(begun))
        prediction = law.predict(curve.n, rest.x(x), level)
        per_size[curve.size] = errors(prediction, rest.loss)
        pieces.append((prediction, rest.loss))
        baseline.append(np.abs(begun.loss[-LAST_VALUE_POINTS:].mean() - rest.loss))
    return Trajectory(fraction, law, _pooled(pieces, per_size, level), float(np.concatenate(baseline).mean()), per_size)


def _pooled(pieces: list[tuple[Prediction, np.ndarray]], per_size: dict[str, HeldOut], level: float) -> HeldOut:
    """One row over all sizes; the end bias is the mean of theirs."""
    observed = np.concatenate([loss for _, loss in pieces])
    parts = {
        name: np.concatenate([getattr(p, name) for p, _ in pieces]) if pieces[0][0].low is not None or name == "loss" else None
        for name in ("loss", "low", "high")
    }
    row = errors(Prediction(np.nan, np.empty(0), parts["loss"], level, "all sizes", parts["low"], parts["high"]), observed)
    bias = float(np.mean([one.end_bias for one in per_size.values()]))
    return HeldOut(row.basis, row.points, row.mae, row.mape, bias, row.r2, row.coverage, row.width)


def coverage_table(
    runs: Runs,
    x: str = "compute",
    fractions: Sequence[float] = (0.25, 0.5, 0.75),
    objective: str = "log",
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[Trajectory]:
    """`remaining` at several origins: the held-out coverage of the prediction intervals."""
    return [remaining(runs, x, fraction, objective, bootstrap, seed) for fraction in fractions]
