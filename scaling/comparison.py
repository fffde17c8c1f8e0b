"""Which law describes the curves, and which one predicts them: AICc, and the deciding score, rolling-origin hold-out.

AICc uses the effective number of points: correlated steps are no independent evidence. Every law is charged with the
same autocorrelation times, the smallest that any law leaves in a model's residuals, and with a residual variance per
model.

Shapes: M models, T points, F origins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scaling.design import MINIMUM_POINTS, Design, design
from scaling.forms import FORMS, equal_scatter, fit_form
from scaling.goodness import autocorrelation
from scaling.runs import Runs

ORIGINS = (0.3, 0.5, 0.7)
BASELINE = "last value"
BASELINE_POINTS = 5
CLUSTER_DRAWS = 2000


@dataclass(frozen=True)
class Score:
    """One law's record. aicc: relative to the best (NaN: too few effective points for its parameters). mape, bias:
    hold-out error.

    mape_per_origin: {fraction: MAPE of all later points}; bias: mean signed relative error over the last tenth of every
    curve; difference: 95 % interval of MAPE minus that of the joint law, drawn over models.
    """

    name: str
    parameters: int
    rmse: float
    aicc: float
    mape: float
    mape_per_origin: dict[float, float]
    bias: float
    difference: tuple[float, float]
    converged: bool


def compare(runs: Runs, x: str = "compute", names: tuple[str, ...] = tuple(FORMS), seed: int = 0) -> list[Score]:
    """Fit every law in `names` to one family and score it, best hold-out first; the last-value baseline is among
    them."""
    d = equal_scatter(design(runs, x, weights="point"))
    fits = {name: fit_form(name, d) for name in names}
    residuals = {name: np.where(d.present, d.y_MT - f.predict(d.t_MT), 0.0) for name, f in fits.items()}
    tau = np.array([min(autocorrelation(r[i, d.present[i]])[1] for r in residuals.values()) for i in range(len(d.sizes))])
    n_eff = d.counts / tau
    held_out = {name: hold_out(d, name) for name in (*names, BASELINE)}
    raw = {name: _aicc(residuals[name], d, n_eff, f.parameters) for name, f in fits.items()}
    finite = [value for value in raw.values() if np.isfinite(value)]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(d.sizes), size=(CLUSTER_DRAWS, len(d.sizes)))
    scores = []
    for name, (per_origin_FM, bias, converged) in held_out.items():
        own, reference = per_origin_FM.mean(0), held_out.get("joint", held_out[BASELINE])[0].mean(0)
        spread = np.percentile((own - reference)[drawn].mean(1), [2.5, 97.5])
        fitted_here = name in fits
        scores.append(
            Score(
                name=name,
                parameters=fits[name].parameters if fitted_here else 0,
                rmse=float(np.sqrt((residuals[name][d.present] ** 2).mean())) if fitted_here else float("nan"),
                aicc=raw[name] - min(finite) if fitted_here and finite else float("nan"),
                mape=float(own.mean()),
                mape_per_origin={f: float(v) for f, v in zip(ORIGINS, per_origin_FM.mean(1), strict=True)},
                bias=bias,
                difference=(float(spread[0]), float(spread[1])),
                converged=converged and (not fitted_here or fits[name].converged),
            )
        )
    return sorted(scores, key=lambda score: score.mape)


def _aicc(residual: np.ndarray, d: Design, n_eff: np.ndarray, parameters: int) -> float:
    """sum_m n_eff ln(mean square residual) + 2 p + 2 p (p + 1) / (n - p - 1); p counts a variance per model. NaN if n
    <= p + 1."""
    p, n = parameters + len(n_eff), float(n_eff.sum())
    if n <= p + 1:
        return float("nan")
    mean_square = np.maximum((residual**2).sum(1) / d.counts, 1e-30)
    return float((n_eff * np.log(mean_square)).sum() + 2 * p + 2 * p * (p + 1) / (n - p - 1))


def hold_out(d: Design, name: str) -> tuple[np.ndarray, float, bool]:
    """Fit on the first share of every curve, predict the rest, for each origin.

    Returns the mean absolute relative error of L, shape (F, M), the signed relative error over the last tenth of the
    points, and whether every fit converged.
    """
    errors, biases, converged = [], [], True
    for fraction in ORIGINS:
        kept = np.maximum(np.round(fraction * d.counts).astype(int), MINIMUM_POINTS)
        order = np.arange(d.t_MT.shape[1])
        early = equal_scatter(replace(d, w_MT=np.where(order < kept[:, None], d.w_MT, 0.0)))
        if name == BASELINE:
            last = np.array([d.y_MT[i, max(k - BASELINE_POINTS, 0) : k].mean() for i, k in enumerate(kept)])
            predicted = np.broadcast_to(last[:, None], d.y_MT.shape)
        else:
            form = fit_form(name, early)
            predicted, converged = form.predict(d.t_MT), converged and form.converged
        relative = 10.0 ** (predicted - d.y_MT) - 1
        later = d.present & (order >= kept[:, None])
        end = d.present & (order >= (d.counts - np.maximum(d.counts // 10, 1))[:, None])
        errors.append([np.abs(relative[i, later[i]]).mean() for i in range(len(kept))])
        biases.append(relative[end].mean())
    return np.array(errors), float(np.mean(biases)), converged
