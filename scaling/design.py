"""The arrays a fit works on: curves of one family, padded to a rectangle, with their weights; and the three objectives.

Shapes: M models (sizes), T points (padded, weight 0), R replicates. t = log10 X, y = log10 L.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.projection import LN10, Solution, solve_huber, solve_linear, solve_log
from scaling.runs import DataError, Runs

OBJECTIVES = ("log", "linear", "huber")
WEIGHTS = ("model", "point", "variance")
MINIMUM_POINTS = 4  # two parameters of a line, and at least two degrees of freedom for its scatter
HUBER_SIGMAS = 1.35  # 95 % efficiency for Gaussian residuals


@dataclass(frozen=True)
class Design:
    """t_MT, y_MT: log10 X and log10 L, shape (M, T); w_MT weights, 0 where padded; sizes, shape (M,), in parameters."""

    t_MT: np.ndarray
    y_MT: np.ndarray
    w_MT: np.ndarray
    sizes: np.ndarray
    labels: tuple[str, ...]
    family: str
    x: str
    test_n: np.ndarray
    repeats_MT: np.ndarray
    notes: tuple[str, ...]

    @property
    def present(self) -> np.ndarray:
        return self.w_MT > 0

    @property
    def counts(self) -> np.ndarray:
        return self.present.sum(1)

    @property
    def loss_MT(self) -> np.ndarray:
        return 10.0**self.y_MT

    def index(self, n: float) -> int | None:
        """The row of size n, None where it was not fitted."""
        hits = np.flatnonzero(np.isclose(self.sizes, n, rtol=1e-9))
        return int(hits[0]) if len(hits) else None


def design(runs: Runs, x: str = "compute", weights: str = "model", minimum_sizes: int = 2) -> Design:
    """Average repeated runs and lay one family's curves out for a fit of L against X = `x`.

    weights: 'model' gives every size the same total weight (the paper's), 'point' every point, 'variance' starts as
    'point' and is refined by `variance_weights`. Raises DataError for several families, too few sizes or too few points
    of one.
    """
    if weights not in WEIGHTS:
        raise DataError(f"weights={weights!r} is not known: choose one of {', '.join(WEIGHTS)}")
    if len(runs.families) > 1:
        raise DataError(
            f"the law is fitted to one family at a time, here are {', '.join(runs.families)}: "
            f"choose with runs.select(family={runs.families[0]!r}) or --family"
        )
    if len({curve.reuse_factor or 1 for curve in runs}) > 1:
        raise DataError("the runs differ in reuse_factor: choose with runs.select(reuse_factor=...), or use scaling.reuse")
    curves = runs.mean()
    if len(curves.sizes) < minimum_sizes:
        raise DataError(
            f"the joint law needs at least {minimum_sizes} model sizes, here is {len(curves.sizes)} "
            f"({', '.join(c.size for c in curves)}): add runs of other sizes (a power law for each size "
            "alone: scaling.fit_each in Python)"
        )
    for curve in curves:
        if len(curve) < MINIMUM_POINTS:
            raise DataError(
                f"{curve.where()} has {len(curve)} evaluated steps, a slope and its scatter need at least "
                f"{MINIMUM_POINTS}: evaluate more often, or leave this size out"
            )
        if np.ptp(curve.x(x)) == 0:
            raise DataError(f"{curve.where()}: {x} is {curve.x(x)[0]:g} at every point, there is no slope to fit")
    length = max(len(curve) for curve in curves)
    t, y, w = np.zeros((3, len(curves), length))
    repeats = np.ones((len(curves), length))
    for row, curve in enumerate(curves):
        k = len(curve)
        t[row, :k], y[row, :k], repeats[row, :k] = np.log10(curve.x(x)), np.log10(curve.loss), curve.repeats
        t[row, k:] = t[row, k - 1]
        w[row, :k] = 1.0 / k if weights == "model" else 1.0
    test_n = np.array([np.nanmedian(c.test_n) if np.isfinite(c.test_n).any() else np.nan for c in curves])
    return Design(
        t,
        y,
        w,
        np.array([c.n for c in curves]),
        tuple(c.size for c in curves),
        curves.families[0],
        x,
        test_n,
        repeats,
        curves.notes,
    )


def solve(
    d: Design,
    objective: str,
    y_RMT: np.ndarray | None = None,
    start: Solution | None = None,
    fixed_v: float | None = None,
) -> Solution:
    """Fit the joint law to `y_RMT` (default: the data, R = 1) with weights d.w_MT. `fixed_v` holds log10 N_0."""
    if objective not in OBJECTIVES:
        raise DataError(f"objective={objective!r} is not known: choose one of {', '.join(OBJECTIVES)}")
    y = d.y_MT[None] if y_RMT is None else y_RMT
    log = solve_log(d.t_MT, y, d.w_MT, d.sizes, fixed_v)
    if objective == "log":
        return log
    if objective == "huber":
        return solve_huber(d.t_MT, y, d.w_MT, d.sizes, huber_thresholds(d), fixed_v)
    if start is not None:
        repeat = len(y) if len(start.k_max) == 1 else 1
        begin = Solution(
            np.repeat(start.k_max, repeat),
            np.repeat(start.n0, repeat),
            start.e_RM,
            start.cost,
            start.gradient,
            start.at_bound,
            0,
        )
    else:
        begin = log
    return solve_linear(d.t_MT, 10.0**y, d.w_MT, d.sizes, begin, fixed_v)


def huber_thresholds(d: Design) -> np.ndarray:
    """1.35 robust standard deviations (from the median absolute residual of each model's own power law), shape (M,)."""
    residual = np.abs(d.y_MT - free_lines(d)[2])
    sigma = np.array([np.median(residual[i, d.present[i]]) for i in range(len(d.sizes))]) / 0.6745
    return HUBER_SIGMAS * np.maximum(sigma, 1e-12)


def free_lines(d: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares line of every model by itself: slopes k (M,), intercepts E (M,), fitted y (M, T)."""
    w = d.w_MT
    total = w.sum(1, keepdims=True)
    t_mean, y_mean = (w * d.t_MT).sum(1, keepdims=True) / total, (w * d.y_MT).sum(1, keepdims=True) / total
    dt = d.t_MT - t_mean
    k = -(w * dt * (d.y_MT - y_mean)).sum(1, keepdims=True) / (w * dt**2).sum(1, keepdims=True)
    return k[:, 0], (y_mean + k * t_mean)[:, 0], y_mean - k * dt


def fitted(d: Design, solution: Solution, replicate: int = 0) -> np.ndarray:
    """log10 L of the law at every point, shape (M, T)."""
    k = solution.slopes(d.sizes)[replicate]
    return solution.e_RM[replicate][:, None] - k[:, None] * d.t_MT


def variance_weights(d: Design, rounds: int = 5) -> Design:
    """`d` with weights 1 / variance of log10 L: binomial noise of the evaluation plus a scatter of each model.

    var(log10 L) = [ (1 - L) / (L n R) + sigma_m^2 ] / ln(10)^2 with n questions and R averaged runs (n unknown:
    sigma_m^2 alone); sigma_m^2 by the moment equation on the residuals, repeated `rounds` times. L is the fitted one,
    never the noisy one.
    """
    current = d
    for _ in range(rounds):
        fit = fitted(current, solve_log(current.t_MT, current.y_MT[None], current.w_MT, current.sizes))
        loss = np.minimum(10.0**fit, 1 - 1e-6)
        binomial = np.where(np.isfinite(d.test_n)[:, None], (1 - loss) / (loss * d.test_n[:, None] * d.repeats_MT), 0.0)
        weight = np.zeros_like(d.w_MT)
        for i, present in enumerate(d.present):
            squares = (LN10 * (d.y_MT - fit)[i, present]) ** 2
            spread = max(squares.sum() / (len(squares) - 2) - binomial[i, present].mean(), 0.05 * squares.mean(), 1e-12)
            weight[i, present] = 1.0 / (binomial[i, present] + spread)
        current = Design(
            d.t_MT, d.y_MT, weight / weight.max(), d.sizes, d.labels, d.family, d.x, d.test_n, d.repeats_MT, d.notes
        )
    return current
