"""How well a law fits, without letting the differences between sizes flatter it; and whether its residuals look like
noise.

Shapes: M models, T points (mask `present`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from scaling.design import fitted

if TYPE_CHECKING:
    from scaling.law import Law


NO_VARIATION = 1e-24  # of the sum of squares: what rounding leaves of a curve that does not vary


def r2(observed: np.ndarray, predicted: np.ndarray, present: np.ndarray) -> float:
    """1 - SS_res / SS_tot over all present points, unweighted. NaN where the observations do not vary."""
    y, p = observed[present], predicted[present]
    total = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - p) ** 2).sum()) / total if total > NO_VARIATION * float((y**2).sum()) else float("nan")


def r2_within(observed: np.ndarray, predicted: np.ndarray, present: np.ndarray) -> float:
    """1 - SS_res / SS around the mean of each model."""
    mean = np.where(present, observed, 0).sum(1, keepdims=True) / present.sum(1, keepdims=True)
    total = float(((observed - mean)[present] ** 2).sum())
    varies = total > NO_VARIATION * float((observed[present] ** 2).sum())
    return 1.0 - float(((observed - predicted)[present] ** 2).sum()) / total if varies else float("nan")


def r2_per_model(law: Law) -> dict[str, float]:
    """{size: R2 of L against that model's own mean}."""
    d = law.design
    return {label: r2(d.loss_MT[i], law.fitted_loss[i], d.present[i]) for i, label in enumerate(d.labels)}


@dataclass(frozen=True)
class Residuals:
    """Log10 residuals of a law, every array of shape (M,).

    sd: standard deviation (log10). rho: lag-1 autocorrelation. tau: integrated autocorrelation time in steps. n_eff:
    points / tau. curvature, curvature_p: coefficient of (log10 X - mean)^2 and its two-sided p-value, with
    tau-corrected errors; positive: the curve flattens against the law. runs_p: p-value of the Wald-Wolfowitz runs test
    on the signs.
    """

    sd: np.ndarray
    rho: np.ndarray
    tau: np.ndarray
    n_eff: np.ndarray
    curvature: np.ndarray
    curvature_p: np.ndarray
    runs_p: np.ndarray


def residuals(law: Law) -> Residuals:
    """Diagnostics of every model's residuals under `law`."""
    d = law.design
    all_residuals = d.y_MT - fitted(d, law.solution)
    columns = []
    for i, present in enumerate(d.present):
        r, t = all_residuals[i, present], d.t_MT[i, present]
        rho, tau = autocorrelation(r)
        curvature, p = _curvature(t, r, tau)
        columns.append((r.std(), rho, tau, len(r) / tau, curvature, p, runs_test(r)))
    return Residuals(*np.array(columns).T)


def autocorrelation(r: np.ndarray) -> tuple[float, float]:
    """Lag-1 autocorrelation of r, shape (T,), and the integrated time 1 + 2 sum rho_j up to the first negative
    rho_j."""
    centred = r - r.mean()
    power = float(centred @ centred)
    if power < 1e-24 * max(len(r), 1):
        return 0.0, 1.0
    tau, first = 1.0, 0.0
    for lag in range(1, max(2, len(r) // 3)):
        rho = float(centred[lag:] @ centred[:-lag]) / power
        first = rho if lag == 1 else first
        if rho <= 0:
            break
        tau += 2 * rho
    return first, min(tau, len(r) / 2)


def _curvature(t: np.ndarray, r: np.ndarray, tau: float) -> tuple[float, float]:
    centred = t - t.mean()
    columns = np.stack([np.ones_like(t), centred, centred**2], 1)
    if len(t) < 5 or np.linalg.matrix_rank(columns) < 3:
        return 0.0, 1.0
    coefficient, *_ = np.linalg.lstsq(columns, r, rcond=None)
    left = r - columns @ coefficient
    freedom = max(len(r) / tau - 3, 1.0)
    variance = float(left @ left) / len(r) * tau * (len(r) / tau) / freedom * np.linalg.inv(columns.T @ columns)[2, 2]
    if variance <= 0:
        return float(coefficient[2]), 1.0
    return float(coefficient[2]), float(2 * student.sf(abs(coefficient[2]) / np.sqrt(variance), freedom))


def runs_test(r: np.ndarray) -> float:
    """Two-sided p-value of the number of runs of equal sign in r, shape (T,) (Wald and Wolfowitz 1940, normal
    limit)."""
    signs = r[r != 0] > 0
    up, down = int(signs.sum()), int((~signs).sum())
    if not up or not down:
        return 1.0 if len(signs) < 5 else 0.0
    runs = 1 + int((signs[1:] != signs[:-1]).sum())
    n = up + down
    mean = 2 * up * down / n + 1
    variance = (mean - 1) * (mean - 2) / (n - 1)
    return float(2 * norm.sf(abs(runs - mean) / np.sqrt(variance))) if variance > 0 else 1.0
