"""Other laws for the same curves, behind one interface: fitted by weighted least squares of log10 L, compared in
`comparison`.

name          L(X) of a model of size N                                               parameters of M models
constant      10^E_N X^-k, one k for all sizes                                        M + 1
joint         10^E_N X^-k(N), k(N) = K_max / (1 + N_0/N), the paper's law             M + 2
free          10^E_N X^-k_N                                                           2 M
floor         c_N + 10^E_N X^-k_N, 0 <= c_N                                           3 M
sigmoid       1 - R_N - (A_N - R_N) / (1 + (X_N/X)^B_N), ScaleRL (2510.13786)         4 M
decomposition c + (n/N)^a + l_N / (1 + (X/x_N)^b), the paper's appendix D             2 M + 4

Shapes: M models, T points, P requested points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from scaling.design import Design, free_lines, solve
from scaling.runs import DataError

SMALLEST_LOSS = 1e-9


@dataclass(frozen=True)
class FormFit:
    """One law fitted. predict maps log10 X, shape (M, P), to log10 L, shape (M, P)."""

    name: str
    parameters: int
    predict: Callable[[np.ndarray], np.ndarray]
    converged: bool


def fit_form(name: str, d: Design) -> FormFit:
    """Fit the law called `name` (see the table above). DataError for an unknown name."""
    if name not in FORMS:
        raise DataError(f"law {name!r} is not known: choose one of {', '.join(FORMS)}")
    return FORMS[name](d)


def equal_scatter(d: Design) -> Design:
    """`d` weighted by 1 / (residual variance of each model's own power law), so noisy sizes do not dominate a
    comparison."""
    _, _, line = free_lines(d)
    residual = np.where(d.present, d.y_MT - line, 0.0)
    variance = (residual**2).sum(1, keepdims=True) / np.maximum(d.counts[:, None] - 2, 1)
    weight = np.where(d.present, 1.0 / np.maximum(variance, 1e-20), 0.0)
    return replace(d, w_MT=weight / weight.max())


def _constant(d: Design) -> FormFit:
    w, total = d.w_MT, d.w_MT.sum(1, keepdims=True)
    t_mean, y_mean = (w * d.t_MT).sum(1, keepdims=True) / total, (w * d.y_MT).sum(1, keepdims=True) / total
    dt = d.t_MT - t_mean
    k = -(w * dt * (d.y_MT - y_mean)).sum() / (w * dt**2).sum()
    return FormFit("constant", len(d.sizes) + 1, lambda t: y_mean - k * (t - t_mean), True)


def _joint(d: Design) -> FormFit:
    solution = solve(d, "log")
    k, e = solution.slopes(d.sizes)[0][:, None], solution.e_RM[0][:, None]
    return FormFit("joint", len(d.sizes) + 2, lambda t: e - k * t, not solution.at_bound[0])


def _free(d: Design) -> FormFit:
    k, e, _ = free_lines(d)
    return FormFit("free", 2 * len(d.sizes), lambda t: e[:, None] - k[:, None] * t, True)


def _per_model(name: str, d: Design, curve: Callable, starts: Callable, low: list, high: list) -> FormFit:
    """Fit `curve(p, t - t_mean) -> L` to every model by itself from several starts, keeping the best."""
    best, centres, converged = [], [], True
    for i, present in enumerate(d.present):
        t, y = d.t_MT[i, present], d.y_MT[i, present]
        centre = t.mean()
        fits = [
            least_squares(
                lambda p, t=t, y=y, c=centre: np.log10(np.maximum(curve(p, t - c), SMALLEST_LOSS)) - y,
                np.clip(start, low, high),
                bounds=(low, high),
                x_scale="jac",
                max_nfev=400,
            )
            for start in starts(t - centre, y)
        ]
        found = min(fits, key=lambda f: f.cost)
        best.append(found.x)
        centres.append(centre)
        converged &= found.success

    def predict(t_MP: np.ndarray) -> np.ndarray:
        loss = [curve(p, t - c) for p, t, c in zip(best, t_MP, centres, strict=True)]
        return np.log10(np.maximum(np.array(loss), SMALLEST_LOSS))

    return FormFit(name, len(low) * len(d.sizes), predict, bool(converged))


def _floor(d: Design) -> FormFit:
    """Parameters: floor c, log10 of the amplitude at the centre, slope."""

    def starts(t, y):
        slope, level = np.polyfit(t, y, 1)
        smallest = 10 ** y.min()
        return [
            np.array([share * smallest, np.log10(max(10**level - share * smallest, 1e-3)), -slope / (1 - share)])
            for share in (0.0, 0.4, 0.8)
        ]

    return _per_model("floor", d, lambda p, t: p[0] + 10.0 ** (p[1] - p[2] * t), starts, [0, -9, -5], [1, 1, 20])


def _sigmoid(d: Design) -> FormFit:
    """Parameters: initial pass rate R, ceiling A, log10 of the half-gain X against the centre, exponent B."""

    def curve(p, t):
        return 1 - p[0] - (p[1] - p[0]) / (1 + 10.0 ** np.clip(p[3] * (p[2] - t), -300, 300))

    def starts(t, y):
        reached = 1 - 10 ** y[-max(3, len(y) // 10) :].mean()
        first = 1 - 10 ** y[:3].mean()
        return [
            np.array([first, reached + extra * (1 - reached), middle, power])
            for extra, middle, power in ((0.05, -0.3, 2.0), (0.3, 0.3, 1.0), (0.8, 1.0, 0.5))
        ]

    return _per_model("sigmoid", d, curve, starts, [0, 0, -4, 0.02], [1, 1, 6, 20])


def _decomposition(d: Design) -> FormFit:
    """Parameters: log10 c, log10 n, a, b, then per model log10 l_N and log10 x_N (n and x_N against the centres of the
    data)."""
    m = len(d.sizes)
    log_n = np.log10(d.sizes) - np.log10(d.sizes).mean()
    centre = (d.w_MT * d.t_MT).sum(1, keepdims=True) / d.w_MT.sum(1, keepdims=True)
    weight = np.sqrt(d.w_MT)

    def parts(p, t):
        shared = 10.0 ** (p[2] * (p[1] - log_n))[:, None]
        distance = t - centre - p[4 + m :, None]
        power = 10.0 ** np.clip(p[3] * distance, -150, 150)
        gain = 10.0 ** p[4 : 4 + m, None] / (1 + power)
        return shared, distance, power, gain, np.maximum(10.0 ** p[0] + shared + gain, SMALLEST_LOSS)

    def residual(p):
        return (weight * (np.log10(parts(p, d.t_MT)[-1]) - d.y_MT))[d.present]

    def jacobian(p):
        shared, distance, power, gain, loss = parts(p, d.t_MT)
        falling = gain * power / (1 + power)
        own = np.eye(m)[:, :, None]  # (parameter, model, 1)
        columns = [
            np.broadcast_to(10.0 ** p[0], loss.shape)[None],
            (shared * p[2] * np.ones_like(loss))[None],
            (shared * (p[1] - log_n)[:, None] * np.ones_like(loss))[None],
            (-falling * distance)[None],
            own * gain,
            own * falling * p[3],
        ]
        return (np.concatenate(columns) / loss * weight)[:, d.present].T

    low = np.r_[-6, -6, 0.01, 0.05, np.full(m, -6), np.full(m, -3)]
    high = np.r_[0, 2, 4, 5, np.full(m, 0.3), np.full(m, 4)]
    starts = [np.r_[-1.5, n, a, b, np.full(m, -0.8), np.full(m, 0.3)] for n, a, b in ((-0.7, 0.4, 1.0), (-0.3, 0.2, 0.6))]
    best = min(
        (least_squares(residual, s, jacobian, bounds=(low, high), ftol=1e-6, max_nfev=600) for s in starts),
        key=lambda f: f.cost,
    )
    return FormFit("decomposition", 2 * m + 4, lambda t: np.log10(parts(best.x, t)[-1]), bool(best.success))


FORMS: dict[str, Callable[[Design], FormFit]] = {
    "constant": _constant,
    "joint": _joint,
    "free": _free,
    "floor": _floor,
    "sigmoid": _sigmoid,
    "decomposition": _decomposition,
}
