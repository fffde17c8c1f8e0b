"""Predictions: along a fitted curve, and to a size that was not fitted.

A new size needs an intercept. E(N) itself is a poor thing to extrapolate, above all for compute, where it is the value
of the law 18 decades away from any data. So the level is extrapolated: log10 L at a pivot X_p(N) in the middle of the
data, with X_p proportional to N for compute (equal data at every size) and constant for data and steps. The level at N
is read off the line through the two fitted sizes nearest to it in log N; E(N) = level + k(N) log10 X_p(N). Two was
chosen on the published curves up to 32B, where lines through three or four sizes miss the next size by two to three
times as much.

How wrong that is cannot be seen in the scatter of one law. It is measured by doing the same with less: the law and the
line are fitted to the sizes below each fitted size, which is then predicted, and the errors of level and slope per
decade of N are kept. A prediction for a new size carries errors of that scale (Student t with as many degrees of
freedom as there were such errors).

A fitted size has an error of this kind too: its own slope is not exactly the law's k(N). The scatter of own slopes
around the law beyond their sampling error is a random effect that intervals of new evaluations carry (about the centre
of the data), while the band of the law holds the uncertainty of its parameters only.

Shapes: M models, T points, R replicates, P requested points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scaling import goodness, resampling
from scaling.design import Design, free_lines, solve
from scaling.projection import Solution
from scaling.runs import X_LABELS, DataError, size_label

if TYPE_CHECKING:
    from scaling.law import Law

NEAREST = 2
FEWEST_SIZES = (3, 2)  # sizes below one that is predicted: two where three leave fewer than two errors to learn from
GROWS_WITH_N = {"compute": 1.0, "compute_total": 1.0, "data": 0.0, "step": 0.0}
INSIDE = np.log10(1.0001)  # an X beyond the last point by less than this counts as inside
FAR = 2.0  # decades outside the data from which on a wrong unit is likelier than a bold question


@dataclass(frozen=True)
class Prediction:
    """Loss of one size at P points.

    basis: 'fitted' (slope and intercept from this model's data, every X among its points), 'extrapolated' (the same, but
    some X outside its points), 'new size' (neither is its own), 'calibrated' (slope from the law, intercept from the first
    points given). mean_low, mean_high: band of the law; low, high: interval of one new evaluation, all cut at a loss of 1.
    The four are None where `reason` says why there is no interval. `loss` is what the law gives, also where that is no
    loss, as `possible` says; decades: how far each X lies outside the data, 0 inside, negative below (of a new size: outside
    the X that the fitted sizes were trained with). `cautions` are for the reader of the numbers.
    """

    n: float
    x: np.ndarray
    loss: np.ndarray
    level: float
    basis: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    mean_low: np.ndarray | None = None
    mean_high: np.ndarray | None = None
    reason: str = ""
    decades: np.ndarray | None = None
    cautions: tuple[str, ...] = ()

    @property
    def possible(self) -> np.ndarray:
        """Whether each loss can be one, shape (P,): 1 - Pass@1 is never above 1."""
        return self.loss <= 1

    def bases(self) -> list[str]:
        """The basis of every point in words, with how far its X lies outside the data."""
        found = []
        for possible, off in zip(
            self.possible, self.decades if self.decades is not None else np.zeros(len(self.x)), strict=True
        ):
            basis = self.basis
            if basis in ("fitted", "extrapolated"):
                basis = "extrapolated" if off else "fitted"
            words = ["no prediction"] if not possible else [basis]
            found.append(", ".join([*words, *([f"X {_distance(off)} the data"] if off else [])]))
        return found


def _distance(decades: float) -> str:
    """-17.2 -> '17 decades below', 0.3 -> '2 times above'."""
    much = f"{10 ** abs(decades):.2g} times" if abs(decades) < FAR else f"{abs(decades):.0f} decades"
    return f"{much} {'above' if decades > 0 else 'below'}"


@dataclass(frozen=True)
class Level:
    """Level and intercept at a size: pivot is log10 X_p(N); level, intercept have shape (R,)."""

    pivot: float
    level: np.ndarray
    intercept: np.ndarray


def pivot(d: Design, n: float) -> float:
    """log10 X_p(N): the mean log10 X of the data, moved along with N for compute."""
    grows = GROWS_WITH_N[d.x]
    centre = (d.w_MT * d.t_MT).sum(1) / d.w_MT.sum(1) - grows * np.log10(d.sizes)
    return float(centre.mean() + grows * np.log10(n))


def level_line(d: Design, solution: Solution, n: float, nearest: int = NEAREST, at_pivot: bool = True) -> Level:
    """log10 L at the pivot and the intercept for size n, by the least-squares line through the `nearest` fitted sizes.

    `at_pivot=False` extrapolates E(N) itself (the level at X = 1), to show what that costs.
    """
    distance = np.log10(d.sizes) - np.log10(n)
    near = np.argsort(np.abs(distance), kind="stable")[:nearest]
    pivots = np.array([pivot(d, size) for size in d.sizes[near]]) * at_pivot
    levels = solution.e_RM[:, near] - solution.slopes(d.sizes[near]) * pivots
    u = distance[near] - distance[near].mean()
    slope = (levels * u).sum(1) / (u * u).sum()
    level = levels.mean(1) - slope * distance[near].mean()
    at = pivot(d, n) * at_pivot
    return Level(at, level, level + solution.slopes(np.array([n]))[:, 0] * at)


def reach(d: Design, n: float) -> tuple[float, float]:
    """The range of X of the largest fitted size, moved with N for compute: where size n would be trained likewise."""
    row = int(np.argmax(d.sizes))
    t = d.t_MT[row, d.present[row]] + GROWS_WITH_N[d.x] * np.log10(n / d.sizes[row])
    return float(10.0 ** t.min()), float(10.0 ** t.max())


@dataclass(frozen=True)
class SizeErrors:
    """Observed minus predicted level (log10 L) and slope of sizes predicted from smaller ones, per decade of N; shape
    (J,)."""

    level: np.ndarray
    slope: np.ndarray
    sizes: np.ndarray

    @property
    def scale(self) -> tuple[float, float]:
        return float(np.sqrt((self.level**2).mean())), float(np.sqrt((self.slope**2).mean()))


def size_errors(d: Design, objective: str) -> SizeErrors:
    """Predict each size that has enough smaller ones (see FEWEST_SIZES) from those alone, and keep the errors."""
    order = np.argsort(d.sizes)
    fewest = next((few for few in FEWEST_SIZES if len(order) - few >= 2), len(order))
    slopes, intercepts, _ = free_lines(d)
    level, slope, sizes = [], [], []
    for j in range(fewest, len(order)):
        target = order[j]
        below = subset(d, order[:j])
        solution = solve(below, objective)
        n = float(d.sizes[target])
        predicted = level_line(below, solution, n)
        decades = np.log10(n / below.sizes.max())
        level.append((intercepts[target] - slopes[target] * predicted.pivot - predicted.level[0]) / decades)
        slope.append((slopes[target] - solution.slopes(np.array([n]))[0, 0]) / decades)
        sizes.append(n)
    return SizeErrors(np.array(level), np.array(slope), np.array(sizes))


def slope_misfit(d: Design, solution: Solution) -> float:
    """Standard deviation of the models' own slopes around k(N) that their sampling error does not explain; 0 for two
    sizes."""
    if len(d.sizes) < 3:
        return 0.0
    own, _, line = free_lines(d)
    variances = []
    for i, present in enumerate(d.present):
        t, residual = d.t_MT[i, present], (d.y_MT - line)[i, present]
        tau = goodness.autocorrelation(residual)[1]
        variances.append(residual @ residual / max(len(t) - 2, 1) * tau / ((t - t.mean()) ** 2).sum())
    off = own - solution.slopes(d.sizes)[0]
    return float(np.sqrt(max(off @ off / (len(off) - 2) - np.mean(variances), 0.0)))


def subset(d: Design, rows: np.ndarray) -> Design:
    """The design of some of the models."""
    return replace(
        d,
        t_MT=d.t_MT[rows],
        y_MT=d.y_MT[rows],
        w_MT=d.w_MT[rows],
        sizes=d.sizes[rows],
        labels=tuple(d.labels[int(i)] for i in rows),
        test_n=d.test_n[rows],
        repeats_MT=d.repeats_MT[rows],
    )


def predict(law: Law, n: float, x, level: float, calibrate: tuple | None = None) -> Prediction:
    """See `Law.predict`. Raises DataError for x <= 0, n <= 0, or a calibration that cannot be used."""
    x = np.atleast_1d(np.asarray(x, dtype=float))
    if not np.isfinite(x).all() or (x <= 0).any():
        raise DataError(f"x={x[~(np.isfinite(x) & (x > 0))][0]:g}: X must be positive")
    if not (np.isfinite(n) and n > 0):
        raise DataError(f"n={n:g}: the number of parameters must be positive")
    if not 0 < level < 1:
        raise DataError(f"level={level}: must lie between 0 and 1")
    row = law.design.index(n)
    t = np.log10(x)
    if calibrate is not None:
        found = _calibrated(law, float(n), t, level, calibrate)
    elif row is not None:
        found = _fitted(law, row, t, level)
    else:
        found = _new_size(law, float(n), t, level)
    return _placed(law, row, found)


def _placed(law: Law, row: int | None, p: Prediction) -> Prediction:
    """`p` with the place of its X against the data, a basis that agrees with it, and cautions."""
    d = law.design
    ends = np.log10(reach(d, p.n)) if row is None else (d.t_MT[row, d.present[row]].min(), d.t_MT[row, d.present[row]].max())
    t = np.log10(p.x)
    decades = np.where(t < ends[0] - INSIDE, t - ends[0], np.where(t > ends[1] + INSIDE, t - ends[1], 0.0))
    basis = "extrapolated" if p.basis == "fitted" and decades.any() else p.basis
    cautions, size = [], size_label(p.n)
    for x, loss in zip(p.x[~p.possible], p.loss[~p.possible], strict=True):
        gives = f"{loss:.3g}" if np.isfinite(loss) else "more than any number"
        cautions.append(f"{size} at X = {x:.3g}: no prediction; the law gives {gives} there, and a loss lies between 0 and 1")
    if not d.sizes.min() / 10**FAR <= p.n <= d.sizes.max() * 10**FAR:
        fitted_sizes = f"{size_label(d.sizes.min())} to {size_label(d.sizes.max())}"
        cautions.append(f"N = {p.n:.3g} is far from the fitted sizes, {fitted_sizes}: N counts parameters, 72e9 or 72B")
    elif (np.abs(decades) > FAR).any():
        others = ", ".join(f"--x {name} is {X_LABELS[name]}" for name in GROWS_WITH_N if name != d.x)
        range_of_x = f"{10 ** ends[0]:.2e} to {10 ** ends[1]:.2e}"
        cautions.append(f"X is {X_LABELS[d.x]}, for {size} from {range_of_x}: is another unit meant? ({others})")
    return replace(p, basis=basis, decades=decades, cautions=tuple(cautions))


def _fitted(law: Law, row: int, t: np.ndarray, level: float) -> Prediction:
    n = float(law.sizes[row])
    centre = law.solution.e_RM[0, row] - law.k(n) * t
    if law.draws is None:
        return _without_interval(n, t, centre, level, "fitted", "the law was fitted without bootstrap")
    rng = np.random.default_rng(law.seed)
    draws = law.draws.e_RM[:, row, None] - law.draws.slopes(law.sizes[row : row + 1]) * t
    scatter = _new_evaluation(law, row, draws.shape, rng)
    if len(law.sizes) > 2:
        own_slope = rng.standard_t(len(law.sizes) - 2, size=(len(draws), 1)) * law.slope_misfit
        scatter = scatter - own_slope * (t - law.design.t_MT[row, law.design.present[row]].mean())
    return _with_interval(n, t, centre, draws, scatter, level, "fitted")


def _new_size(law: Law, n: float, t: np.ndarray, level: float) -> Prediction:
    line = level_line(law.design, law.solution, n)
    centre = line.intercept[0] - law.k(n) * t
    row, decades = _nearest(law, n)
    errors = law.size_errors
    if law.draws is None or len(errors.level) < 2:
        reason = (
            "the law was fitted without bootstrap"
            if law.draws is None
            else f"{len(law.sizes)} sizes are too few to know the error of a new size; it takes {FEWEST_SIZES[-1] + 2}"
        )
        return _without_interval(n, t, centre, level, "new size", reason)
    rng = np.random.default_rng(law.seed)
    drawn = level_line(law.design, law.draws, n)
    level_scale, slope_scale = errors.scale
    freedom, count = len(errors.level), len(law.draws.k_max)
    off_level = rng.standard_t(freedom, size=(count, 1)) * level_scale * decades
    off_slope = rng.standard_t(freedom, size=(count, 1)) * slope_scale * decades
    k = law.draws.slopes(np.array([n]))
    draws = drawn.intercept[:, None] - k * t + off_level - off_slope * (t - line.pivot)
    return _with_interval(n, t, centre, draws, _new_evaluation(law, row, draws.shape, rng), level, "new size")


def _calibrated(law: Law, n: float, t: np.ndarray, level: float, calibrate: tuple) -> Prediction:
    first_t, first_y = (np.log10(np.atleast_1d(np.asarray(part, dtype=float))) for part in calibrate)
    if len(first_t) != len(first_y) or not np.isfinite([first_t, first_y]).all():
        raise DataError(f"calibrate needs as many positive x as losses, got {len(first_t)} and {len(first_y)}")
    intercept = float((first_y + law.k(n) * first_t).mean())
    centre = intercept - law.k(n) * t
    row, decades = _nearest(law, n)
    errors = law.size_errors
    basis = f"calibrated on {len(first_t)} points"
    if law.draws is None or len(errors.slope) < 2:
        return _without_interval(n, t, centre, level, basis, "needs a bootstrap and four sizes")
    rng = np.random.default_rng(law.seed)
    count = len(law.draws.k_max)
    k = law.draws.slopes(np.array([n])) + (rng.standard_t(len(errors.slope), size=(count, 1)) * errors.scale[1] * decades)
    residual = resampling.inflated_residuals(law.design, law.solution)[row, law.design.present[row]]
    off_level = rng.normal(size=(count, 1)) * residual.std() * np.sqrt(goodness.autocorrelation(residual)[1] / len(first_t))
    draws = first_y.mean() - k * (t - first_t.mean()) + off_level
    return _with_interval(n, t, centre, draws, _new_evaluation(law, row, draws.shape, rng), level, basis)


def _nearest(law: Law, n: float) -> tuple[int, float]:
    """The row of the nearest fitted size, and the distance to it in decades of N."""
    distance = np.abs(np.log10(law.sizes / n))
    row = int(np.argmin(distance))
    return row, float(distance[row])


def _new_evaluation(law: Law, row: int, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Scatter of single evaluations around the law, drawn from the residuals of model `row`."""
    residual = resampling.inflated_residuals(law.design, law.solution)[row, law.design.present[row]]
    return rng.choice(residual, size=shape)


def _with_interval(n, t, centre, draws, scatter, level, basis) -> Prediction:
    tails = [50 * (1 - level), 50 * (1 + level)]
    mean_low, mean_high = 10.0 ** np.minimum(np.percentile(draws, tails, axis=0), 0.0)
    low, high = 10.0 ** np.minimum(np.percentile(draws + scatter, tails, axis=0), 0.0)
    return Prediction(n, 10.0**t, _loss(centre), level, basis, low, high, mean_low, mean_high)


def _without_interval(n, t, centre, level, basis, reason) -> Prediction:
    return Prediction(n, 10.0**t, _loss(centre), level, basis, reason=f"no interval for {size_label(n)}: {reason}")


def _loss(centre: np.ndarray) -> np.ndarray:
    """10^centre, infinite where that is beyond all numbers."""
    with np.errstate(over="ignore"):
        return 10.0**centre
