"""The joint law log10 L(N, X) = -k(N) log10 X + E(N), k(N) = K_max / (1 + N_0/N), of arXiv 2509.25300, fitted to
held-out loss.

`fit` gives a `Law`: parameters, their bootstrap intervals, goodness of fit within models as well as pooled, and
everything a reader needs to judge whether the numbers mean something (convergence, identification, what was clipped). E
is a log10 intercept.

Shapes: M models (sizes), T points, R bootstrap replicates, P requested points.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

from scaling import agreement, goodness, outcomes, resampling
from scaling.design import Design, design, fitted, free_lines, solve, variance_weights
from scaling.extrapolation import Prediction, SizeErrors, level_line, predict, size_errors, slope_misfit, subset
from scaling.projection import Solution, bounds, saturation
from scaling.runs import X_LABELS, DataError, Runs

RESAMPLES = ("block", "iid", "run", "question")
INTERVAL_LEVEL = 0.95


@dataclass(frozen=True)
class Law:
    """A fitted joint law. `solution` holds the fit (R = 1), `draws` the bootstrap fits (None without bootstrap)."""

    design: Design
    solution: Solution
    objective: str
    weights: str
    seed: int
    resample: str
    block: int | None
    digest: str
    convergence: dict
    draws: Solution | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def family(self) -> str:
        return self.design.family

    @property
    def x(self) -> str:
        return self.design.x

    @property
    def sizes(self) -> np.ndarray:
        """N of the fitted models, shape (M,)."""
        return self.design.sizes

    @property
    def k_max(self) -> float:
        return float(self.solution.k_max[0])

    @property
    def n0(self) -> float:
        """N_0 in parameters: the size at which k reaches half of K_max."""
        return float(self.solution.n0[0])

    def k(self, n):
        """Slope k(N) for a size or an array of sizes, fitted or not."""
        k = self.k_max * saturation(np.asarray(n, dtype=float), np.log10(self.n0))
        return float(k) if np.ndim(n) == 0 else k

    def e(self, n):
        """Log10 intercept E(N): the fitted one where N was fitted, else on the level line of
        `scaling.extrapolation`."""
        values = np.array([self._intercept(float(size)) for size in np.atleast_1d(n)])
        return float(values[0]) if np.ndim(n) == 0 else values

    def _intercept(self, n: float) -> float:
        row = self.design.index(n)
        if row is not None:
            return float(self.solution.e_RM[0, row])
        return float(level_line(self.design, self.solution, n).intercept[0])

    @cached_property
    def fitted_loss(self) -> np.ndarray:
        """L of the law at every point, shape (M, T); only entries with design.present mean something."""
        return 10.0 ** fitted(self.design, self.solution)

    @cached_property
    def r2(self) -> float:
        """Pooled R2 of L in linear space, the paper's: dominated by the differences between sizes."""
        return goodness.r2(self.design.loss_MT, self.fitted_loss, self.design.present)

    @cached_property
    def r2_within(self) -> float:
        """R2 against the mean of every model: what the law explains of the learning itself."""
        return goodness.r2_within(self.design.loss_MT, self.fitted_loss, self.design.present)

    @cached_property
    def r2_per_model(self) -> dict[str, float]:
        """R2 of every size against its own mean, in linear L."""
        return goodness.r2_per_model(self)

    @cached_property
    def residuals(self) -> goodness.Residuals:
        """Diagnostics of the log10 residuals: autocorrelation, effective sample size, curvature, runs test."""
        return goodness.residuals(self)

    @cached_property
    def size_errors(self) -> SizeErrors:
        """Errors made when sizes of this law are predicted from smaller ones; the scale of the interval of a new
        size."""
        return size_errors(self.design, self.objective)

    @cached_property
    def slope_misfit(self) -> float:
        """Scatter of the models' own slopes around k(N) beyond their sampling error (standard deviation)."""
        return slope_misfit(self.design, self.solution)

    @cached_property
    def intervals(self) -> dict:
        """95 % percentile intervals {'k_max': (low, high), 'n0': ..., 'k': {size: ...}, 'e': {size: ...}}; {} without
        bootstrap."""
        return self.interval(INTERVAL_LEVEL) if self.draws is not None else {}

    def interval(self, level: float = INTERVAL_LEVEL) -> dict:
        """Percentile intervals at `level` of all parameters. DataError if the law was fitted without bootstrap."""
        if self.draws is None:
            raise DataError("this law has no bootstrap: fit it with bootstrap=2000 (or --bootstrap 2000) for intervals")
        if not 0 < level < 1:
            raise DataError(f"level={level}: must lie between 0 and 1")
        k, e = self.draws.slopes(self.sizes), self.draws.e_RM
        labels = self.design.labels

        return {
            "k_max": resampling.interval(self.draws.k_max, level),
            "n0": resampling.interval(self.draws.n0, level),
            "k": {label: resampling.interval(k[:, i], level) for i, label in enumerate(labels)},
            "e": {label: resampling.interval(e[:, i], level) for i, label in enumerate(labels)},
        }

    def predict(self, n: float, x, level: float = INTERVAL_LEVEL, calibrate: tuple | None = None) -> Prediction:
        """Loss of size n at X = x (scalar or (P,)), with the band of the mean and the interval of one new evaluation.

        For a fitted size the intercept is the fitted one; else it is extrapolated, or, with `calibrate=(x, loss)` of
        the first few points of that model, taken from them. `Prediction.basis` says which. Intervals need a law fitted
        with bootstrap.
        """
        return predict(self, n, x, level, calibrate)

    def as_dict(self) -> dict:
        """Everything about the fit, unrounded, in JSON types."""
        d, residuals = self.design, self.residuals
        return {
            "law": "log10 L = -k(N) log10 X + E(N), k(N) = k_max / (1 + n0/N), L = 1 - held-out Pass@1",
            "model_family": self.family,
            "x": self.x,
            "x_meaning": X_LABELS[self.x],
            "objective": self.objective,
            "weights": self.weights,
            "k_max": self.k_max,
            "n0": self.n0,
            "models": [
                {
                    "size": d.labels[i],
                    "n": float(n),
                    "points": int(d.counts[i]),
                    "k": self.k(float(n)),
                    "e": float(self.solution.e_RM[0, i]),
                    "k_alone": float(free_lines(d)[0][i]),
                    "r2": _finite(self.r2_per_model[d.labels[i]]),
                    "rho": float(residuals.rho[i]),
                    "n_eff": float(residuals.n_eff[i]),
                }
                for i, n in enumerate(self.sizes)
            ],
            "r2": _finite(self.r2),
            "r2_within": _finite(self.r2_within),
            "slope_misfit": self.slope_misfit,
            "points": int(d.counts.sum()),
            "intervals_level": INTERVAL_LEVEL,
            "intervals": self.intervals,
            "bootstrap": {
                "replicates": 0 if self.draws is None else len(self.draws.k_max),
                "resample": self.resample,
                "block": self.block,
                "seed": self.seed,
            },
            "convergence": self.convergence,
            "warnings": list(self.warnings),
            "data_sha256": self.digest,
            "data_notes": list(d.notes),
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text, unrounded."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)


def _finite(value: float) -> float | None:
    """JSON has no NaN: R2 of a curve that does not vary is null."""
    return value if np.isfinite(value) else None


def fit(
    runs: Runs,
    x: str = "compute",
    objective: str = "log",
    bootstrap: int = 0,
    seed: int = 0,
    *,
    weights: str = "model",
    resample: str = "block",
    block: int | None = None,
    suite: str | None = None,
) -> Law:
    """Fit the joint law to one family's runs (repeated runs of a size are averaged per step).

    x: 'compute' (the paper's 6 N tokens), 'compute_total', 'data' or 'step'. objective: 'log' least squares of log10 L,
    'linear' least squares of L (the paper's), 'huber' on log10 L. weights: see `scaling.design.design`. bootstrap:
    number of bootstrap fits (0: none), by `resample`: moving 'block's of residuals of length `block`, 'iid' residuals,
    whole 'run's, or 'question's of the held-out suite (from the run directories' eval files). The same seed gives the
    same result. Raises DataError for data that cannot support the fit.
    """
    if resample not in RESAMPLES:
        raise DataError(f"resample={resample!r} is not known: choose one of {', '.join(RESAMPLES)}")
    if bootstrap < 0 or (block is not None and block < 1):
        raise DataError(f"bootstrap={bootstrap}, block={block}: bootstrap counts fits, block counts steps, neither is negative")
    if block is not None and resample != "block":
        raise DataError(f"block={block} means nothing to resample={resample!r}: leave it out, or draw blocks")
    agreement.check_units(runs)
    by_run = bootstrap > 0 and resample in ("run", "question")
    averaged = runs.mean(common_steps_only=by_run)
    d = design(averaged, x, weights)
    if weights == "variance":
        d = variance_weights(d)
    solution = solve(d, objective)
    draws = None
    if bootstrap:
        rng = np.random.default_rng(seed)
        if resample == "run":
            y = outcomes.resampled_runs(runs, averaged, d, bootstrap, rng)
        elif resample == "question":
            y = outcomes.resampled_questions(runs, averaged, d, bootstrap, rng, suite)
        else:
            block = 1 if resample == "iid" else block or resampling.default_block(d)
            y = resampling.resampled(d, solution, bootstrap, block, rng)
        draws = solve(d, objective, y, start=solution)
    convergence = _convergence(d, objective, solution)
    return Law(
        d,
        solution,
        objective,
        weights,
        seed,
        resample,
        block if bootstrap else None,
        averaged.digest(),
        convergence,
        draws,
        (*_warnings(d, solution, draws, convergence), *agreement.differences(runs)),
    )


def fit_each(runs: Runs, x: str = "compute", objective: str = "log") -> dict[str, tuple[float, float, float]]:
    """A power law for every model by itself: {size: (k, E, R2 of log10 L)}. Needs one size only."""
    d = design(runs, x, minimum_sizes=1)
    found = {}
    for i, label in enumerate(d.labels):
        alone = subset(d, np.array([i]))
        # With one size, k(N) = K_max / 2 at N_0 = N: the joint solver with N_0 held there fits a free slope.
        solution = solve(alone, objective, fixed_v=float(np.log10(alone.sizes[0])))
        quality = goodness.r2(alone.y_MT, fitted(alone, solution), alone.present)
        found[label] = (float(solution.slopes(alone.sizes)[0, 0]), float(solution.e_RM[0, 0]), quality)
    return found


def profile(law: Law, points: int = 121, level: float = INTERVAL_LEVEL) -> dict:
    """Profile likelihood of N_0: {'n0': (P,), 'drop': (P,) twice the log-likelihood lost, 'interval': (low, high),
    'open': bool}.

    The drop is n_eff ln(cost / cost_min) with the effective number of points, so correlated residuals widen it. `open`
    says that the interval reaches the end of the searched range: N_0 is then not bounded by the data.
    """
    from scipy.stats import chi2

    low, high = bounds(law.sizes)
    best = np.log10(law.n0)
    grid = np.concatenate([np.linspace(low, high, points), best + np.linspace(-0.6, 0.6, points), [best]])
    grid = np.unique(np.clip(grid, low, high))
    cost = np.array([solve(law.design, law.objective, fixed_v=v, start=law.solution).cost[0] for v in grid])
    floor = max(float(law.solution.cost[0]), np.finfo(float).tiny)
    drop = law.residuals.n_eff.sum() * np.log(np.maximum(cost, floor) / floor)
    inside = drop <= chi2.ppf(level, 1)
    best = int(np.argmin(np.abs(grid - best)))
    inside[best] = True
    ends = [_edge(grid, drop, best, direction, chi2.ppf(level, 1)) for direction in (-1, 1)]
    return {
        "n0": 10.0**grid,
        "drop": drop,
        "interval": tuple(float(10.0**v) for v in ends),
        "open": bool(inside[0] or inside[-1]),
    }


def _edge(grid: np.ndarray, drop: np.ndarray, best: int, direction: int, threshold: float) -> float:
    i = best
    while 0 <= i + direction < len(grid) and drop[i + direction] <= threshold:
        i += direction
    j = i + direction
    if not 0 <= j < len(grid):
        return grid[i]
    share = (threshold - drop[i]) / (drop[j] - drop[i])
    return grid[i] + share * (grid[j] - grid[i])


def _convergence(d: Design, objective: str, solution: Solution) -> dict:
    """Where independent descents from five N_0 between the smallest and the largest size end, against the solution."""
    starts = np.linspace(np.log10(d.sizes.min()), np.log10(d.sizes.max()), 5)
    if objective == "linear":
        costs = [float(solve(d, "linear", start=solve(d, "log", fixed_v=v)).cost[0]) for v in starts]
    else:
        costs = [
            float(
                minimize(
                    lambda v: solve(d, objective, fixed_v=float(v[0])).cost[0],
                    [v],
                    method="Nelder-Mead",
                    options={"xatol": 1e-7, "fatol": 0.0, "maxfev": 60},
                ).fun
            )
            for v in starts
        ]
    scale = max(float((d.w_MT * d.y_MT**2).sum()), np.finfo(float).tiny)
    excess = max((float(solution.cost[0]) - min(costs)) / scale, 0.0)
    gradient = float(solution.gradient[0])
    return {
        "starts": len(costs),
        "starts_agreeing": int(sum(abs(cost - solution.cost[0]) < 1e-6 * scale for cost in costs)),
        "better_start_by": excess,
        "relative_gradient": gradient,
        "iterations": solution.iterations,
        "converged": bool(excess < 1e-6 and gradient < 1e-6),
    }


def _warnings(d: Design, solution: Solution, draws: Solution | None, convergence: dict) -> tuple[str, ...]:
    found = []
    if not convergence["converged"]:
        found.append(
            f"NOT CONVERGED: relative gradient {convergence['relative_gradient']:.1e}, another start is better by "
            f"{convergence['better_start_by']:.1e}"
        )
    if solution.at_bound[0]:
        found.append(f"NOT IDENTIFIED: N_0 ends at the bound of the search ({solution.n0[0]:.2g}): K_max and N_0 mean nothing")
    if solution.k_max[0] <= 0:
        found.append(f"NOT A LEARNING CURVE: K_max is {solution.k_max[0]:.3g}, the loss does not fall with {d.x}")
    if len(d.sizes) == 2:
        found.append("NOT TESTED: two sizes determine K_max and N_0 exactly; a third is needed to see whether k(N) saturates")
    if draws is not None and draws.at_bound.mean() > 0.005:
        found.append(
            f"NOT IDENTIFIED: N_0 ends at a bound of the search in {draws.at_bound.mean():.1%} of the bootstrap fits; "
            "read k(N) at the fitted sizes, not K_max"
        )
    return tuple(dict.fromkeys(found))
