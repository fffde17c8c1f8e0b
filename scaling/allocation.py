"""What a law says about spending: X for a target loss, the size to train at a budget, and where two sizes cross.

Every answer says whether it lies inside the data: a law read outside them is an extrapolation, and says so.

Shapes: M models, R replicates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.extrapolation import INSIDE, level_line, reach
from scaling.law import INTERVAL_LEVEL, Law
from scaling.runs import DataError

SEARCHED = 6.0  # decades around the data in which an X is sought: what lies farther is no answer about these models


@dataclass(frozen=True)
class Requirement:
    """X needed by size n for a loss; inf where the law never reaches it. low, high: interval (None without
    bootstrap). searched: the range of X outside of which the answer is only that it lies there."""

    n: float
    target: float
    x: float
    low: float | None
    high: float | None
    basis: str
    searched: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """A size at a budget: predicted loss, whether its data cover the budget, and the share of bootstrap fits where it
    is best.

    probability_best counts only covered sizes against each other; it is None for the others and without bootstrap.
    """

    n: float
    size: str
    loss: float
    covered: bool
    probability_best: float | None


@dataclass(frozen=True)
class Crossover:
    """X above which the larger of two sizes has the lower loss; `covered`: X lies inside the data of both.

    x is None where the two do not meet in the range `searched`; `lower` is then the size with the lower loss all over it.
    """

    small: str
    large: str
    x: float | None
    low: float | None
    high: float | None
    covered: bool
    searched: tuple[float, float]
    lower: str = ""


def required_x(law: Law, n: float, target: float, level: float = INTERVAL_LEVEL) -> Requirement:
    """X at which size n reaches the loss `target`, by inverting the law: log10 X = (E - log10 target) / k."""
    if not 0 < target < 1:
        raise DataError(f"target={target}: a loss to reach lies between 0 and 1")
    x = float(_inverted(law.k(n), law.e(n), target))
    row = law.design.index(n)
    low = high = None
    if law.draws is not None:
        k = law.draws.slopes(np.array([n]))[:, 0]
        e = law.draws.e_RM[:, row] if row is not None else level_line(law.design, law.draws, n).intercept
        low, high = _tails(np.log10(_inverted(k, e, target)), level)
    ends = np.log10(reach(law.design, n)) if row is None else _ends(law, slice(row, row + 1))
    searched = (float(10.0 ** (ends[0] - SEARCHED)), float(10.0 ** (ends[1] + SEARCHED)))
    side = "above" if x > 10.0 ** ends[1] else "below"
    if law.k(n) <= 0:
        basis = "never, by this law"
    elif not searched[0] <= x <= searched[1]:
        basis = f"extrapolated far {side} the data: none in range"
    elif row is None:
        basis = "new size: intercept extrapolated, its error not in the interval"
    else:
        basis = "inside the data" if covers(law, row, x) else f"extrapolated {side} the data"
    return Requirement(float(n), target, x, low, high, basis, searched)


def _ends(law: Law, rows: slice) -> tuple[float, float]:
    """The smallest and largest log10 X of the fitted points of some models."""
    t = law.design.t_MT[rows][law.design.present[rows]]
    return float(t.min()), float(t.max())


def _inverted(k, e, target):
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_x = np.where(np.asarray(k) > 0, (e - np.log10(target)) / k, np.inf)
        return np.where(log_x < 300, 10.0 ** np.minimum(log_x, 300), np.inf)


def _tails(log_x: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles in log X that stay right with infinite entries (no interpolation between order statistics)."""
    low, high = np.percentile(log_x, [50 * (1 - level), 50 * (1 + level)], method="inverted_cdf")
    return float(10.0**low), float(10.0**high) if high < 300 else float("inf")


def covers(law: Law, row: int, x: float) -> bool:
    """Whether X = x lies inside the fitted points of model `row`."""
    t = law.design.t_MT[row, law.design.present[row]]
    return bool(t.min() - INSIDE <= np.log10(x) <= t.max() + INSIDE) if np.isfinite(x) else False


def best_size(law: Law, budget: float) -> list[Choice]:
    """The fitted sizes at X = budget, lowest predicted loss first. Decide among the covered ones; the others are
    flagged."""
    if not (np.isfinite(budget) and budget > 0):
        raise DataError(f"budget={budget}: must be a positive number of {law.x}")
    t = np.log10(budget)
    covered = np.array([covers(law, i, budget) for i in range(len(law.sizes))])
    loss = 10.0 ** (law.solution.e_RM[0] - law.solution.slopes(law.sizes)[0] * t)
    share = np.full(len(law.sizes), np.nan)
    if law.draws is not None and covered.any():
        drawn = np.where(covered, law.draws.e_RM - law.draws.slopes(law.sizes) * t, np.inf)
        share = (drawn == drawn.min(1, keepdims=True)).mean(0)
    choices = [
        Choice(
            float(n),
            law.design.labels[i],
            float(loss[i]),
            bool(covered[i]),
            float(share[i]) if covered[i] and np.isfinite(share[i]) else None,
        )
        for i, n in enumerate(law.sizes)
    ]
    return sorted(choices, key=lambda choice: (not choice.covered, choice.loss))


def crossovers(law: Law, level: float = INTERVAL_LEVEL) -> list[Crossover]:
    """Where each size meets the next larger one: log10 X = (E_large - E_small) / (k_large - k_small), with
    intervals."""
    found = []
    for i in range(len(law.sizes) - 1):
        pair = slice(i, i + 2)
        x = _crossing(law.solution.slopes(law.sizes)[:, pair], law.solution.e_RM[:, pair])[0]
        low = high = None
        if law.draws is not None:
            drawn = _crossing(law.draws.slopes(law.sizes)[:, pair], law.draws.e_RM[:, pair])
            low, high = (float(10.0**v) for v in np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)]))
        both = covers(law, i, 10.0**x) and covers(law, i + 1, 10.0**x)
        begin, end = (v + SEARCHED * sign for v, sign in zip(_ends(law, pair), (-1, 1), strict=True))
        small, large = law.design.labels[pair]
        searched, lower = (float(10.0**begin), float(10.0**end)), ""
        if not begin <= x <= end:
            middle = law.solution.e_RM[0, pair] - law.solution.slopes(law.sizes)[0, pair] * (begin + end) / 2
            x, low, high, lower = None, None, None, (small, large)[int(np.argmin(middle))]
        found.append(Crossover(small, large, None if x is None else float(10.0**x), low, high, both, searched, lower))
    return found


def _crossing(k_R2: np.ndarray, e_R2: np.ndarray) -> np.ndarray:
    """log10 X of the crossing, shape (R,), within +-300."""
    difference = k_R2[:, 1] - k_R2[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.nan_to_num((e_R2[:, 1] - e_R2[:, 0]) / difference, nan=300.0), -300, 300)
