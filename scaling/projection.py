"""Least squares for the joint law log10 L = -k(N) log10 X + E(N), k(N) = K_max / (1 + N_0/N).

Variable projection (Golub and Pereyra 1973): the intercepts E(N) are solved in closed form for any slopes, and in log
space K_max too, which leaves a search over log10 N_0 alone. Everything is vectorised over replicates, so thousands of
bootstrap fits are one call.

Shapes: R replicates, M models (sizes), T points of a model (padded, weight 0 where there is none), G grid. v = log10
N_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LN10 = np.log(10.0)
GRID = 241
HUBER_ITERATIONS = 200
BOUND_FACTOR = 1e3  # N_0 is sought from the smallest size / 1000 to the largest size * 1000


@dataclass(frozen=True)
class Solution:
    """Fitted parameters: k_max, n0, cost, at_bound of shape (R,), e of shape (R, M); e is a log10 intercept.

    cost is the weighted sum of squares (Huber: of rho); gradient the largest derivative of the cost by (K_max, log10
    N_0), relative to the cost of the model-wise means.
    """

    k_max: np.ndarray
    n0: np.ndarray
    e_RM: np.ndarray
    cost: np.ndarray
    gradient: np.ndarray
    at_bound: np.ndarray
    iterations: int

    def slopes(self, sizes: np.ndarray) -> np.ndarray:
        """k(N), shape (R, len(sizes))."""
        return self.k_max[:, None] * saturation(np.atleast_1d(sizes), np.log10(self.n0)[:, None])


def saturation(sizes: np.ndarray, v: np.ndarray) -> np.ndarray:
    """k(N)/K_max = 1 / (1 + N_0/N)."""
    return 1.0 / (1.0 + 10.0 ** (v - np.log10(sizes)))


def bounds(sizes: np.ndarray) -> tuple[float, float]:
    """The range of log10 N_0 that is searched."""
    return float(np.log10(sizes.min() / BOUND_FACTOR)), float(np.log10(sizes.max() * BOUND_FACTOR))


def moments(t: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted means and centred sums (t_mean, y_mean, s_tt, s_ty, s_yy) over the last axis; each of shape (..., M)."""
    total = w.sum(-1)
    t_mean, y_mean = (w * t).sum(-1) / total, (w * y).sum(-1) / total
    dt, dy = t - t_mean[..., None], y - y_mean[..., None]
    return t_mean, y_mean, (w * dt * dt).sum(-1), (w * dt * dy).sum(-1), (w * dy * dy).sum(-1)


def solve_log(t: np.ndarray, y_RMT: np.ndarray, w: np.ndarray, sizes: np.ndarray, fixed_v: float | None = None) -> Solution:
    """Minimise sum w (y + k t - E)^2, exactly. t and w are (M, T) or (R, M, T); `fixed_v` holds log10 N_0."""
    t_mean, y_mean, s_tt, s_ty, s_yy = np.broadcast_arrays(*moments(t, y_RMT, w))
    low, high = bounds(sizes) if fixed_v is None else (fixed_v, fixed_v)
    if fixed_v is None:
        grid = np.linspace(low, high, GRID)
        s_GM = saturation(sizes, grid[:, None])
        gain = (s_ty @ s_GM.T) ** 2 / (s_tt @ (s_GM**2).T)
        best = np.argmax(gain, axis=1)
        v = _bisect(s_tt, s_ty, sizes, grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, GRID - 1)])
    else:
        v = np.full(len(y_RMT), fixed_v)
    s = saturation(sizes, v[:, None])
    k_max = -(s_ty * s).sum(1) / (s_tt * s * s).sum(1)
    cost = np.maximum((s_yy + 2 * k_max[:, None] * s * s_ty + (k_max[:, None] * s) ** 2 * s_tt).sum(1), 0.0)
    e = y_mean + k_max[:, None] * s * t_mean
    gradient = np.abs(k_max * _derivative(s_tt, s_ty, sizes, v)) / np.maximum(s_yy.sum(1), np.finfo(float).tiny)
    at_bound = (v - low < 1e-3) | (high - v < 1e-3) if fixed_v is None else np.zeros(len(v), bool)
    return Solution(k_max, 10.0**v, e, cost, np.where(at_bound, 0.0, gradient), at_bound, 60)


def _derivative(s_tt: np.ndarray, s_ty: np.ndarray, sizes: np.ndarray, v: np.ndarray) -> np.ndarray:
    """d(projected cost)/dv divided by -2 K_max: its sign is that of -d(cost)/dv where K_max > 0."""
    s = saturation(sizes, v[:, None])
    ds = -s * (1 - s) * LN10
    k = -(s_ty * s).sum(1) / (s_tt * s * s).sum(1)
    return ((s_ty + k[:, None] * s * s_tt) * ds).sum(1)


def _bisect(s_tt: np.ndarray, s_ty: np.ndarray, sizes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The root of the derivative between neighbours of the best grid point: exact where a golden section stops at
    1e-8."""
    low, high = low.copy(), high.copy()
    for _ in range(60):
        v = (low + high) / 2
        s = saturation(sizes, v[:, None])
        k = -(s_ty * s).sum(1) / (s_tt * s * s).sum(1)
        rising = 2 * k * _derivative(s_tt, s_ty, sizes, v) > 0
        high, low = np.where(rising, v, high), np.where(rising, low, v)
    return (low + high) / 2


def solve_huber(
    t: np.ndarray,
    y_RMT: np.ndarray,
    w: np.ndarray,
    sizes: np.ndarray,
    delta_M: np.ndarray,
    fixed_v: float | None = None,
    tolerance: float = 1e-10,
) -> Solution:
    """Huber loss on log residuals with thresholds `delta_M`, shape (M,), by iteratively reweighted least squares."""
    solution = solve_log(t, y_RMT, w, sizes, fixed_v)
    iteration = 0
    while iteration < HUBER_ITERATIONS:
        iteration += 1
        k = solution.slopes(sizes)
        residual = np.abs(y_RMT + k[..., None] * t - solution.e_RM[..., None])
        shrink = np.minimum(1.0, delta_M[:, None] / np.maximum(residual, 1e-300))
        new = solve_log(t, y_RMT, w * shrink, sizes, fixed_v)
        moved = np.abs(new.slopes(sizes) - k).max()
        solution = new
        if moved < tolerance:
            break
    residual = np.abs(y_RMT + solution.slopes(sizes)[..., None] * t - solution.e_RM[..., None])
    rho = np.where(residual <= delta_M[:, None], residual**2, 2 * delta_M[:, None] * residual - delta_M[:, None] ** 2)
    cost = (w * rho).sum((-1, -2))
    return Solution(solution.k_max, solution.n0, solution.e_RM, cost, solution.gradient, solution.at_bound, iteration)


def solve_linear(
    t: np.ndarray,
    loss_RMT: np.ndarray,
    w: np.ndarray,
    sizes: np.ndarray,
    start: Solution,
    fixed_v: float | None = None,
    iterations: int = 200,
) -> Solution:
    """Minimise sum w (L_hat - L)^2, the paper's objective, by damped Gauss-Newton on (K_max, v) with E projected out.

    t is (M, T), loss_RMT (R, M, T), w (M, T) or (R, M, T). Iterates each replicate until a step moves both parameters
    by less than 1e-11 of their size.
    """
    low, high = bounds(sizes) if fixed_v is None else (fixed_v, fixed_v)
    w = np.broadcast_to(w, loss_RMT.shape)
    t_mean = (w * t).sum(-1) / w.sum(-1)
    tc = np.where(w > 0, t - t_mean[..., None], 0.0)
    k_max, v = start.k_max.copy(), np.clip(np.log10(start.n0), low, high)
    cost, level, normal, slope = _linear_system(tc, loss_RMT, w, sizes, k_max, v)
    damping = np.full(len(v), 1e-6)
    active = np.arange(len(v))
    iteration = 0
    while len(active) and iteration < iterations:
        iteration += 1
        step = _damped_step(normal[active], slope[active], damping[active], fixed_v is not None)
        new_k, new_v = k_max[active] + step[:, 0], np.clip(v[active] + np.clip(step[:, 1], -0.5, 0.5), low, high)
        trial = _linear_system(tc[active], loss_RMT[active], w[active], sizes, new_k, new_v)
        better = trial[0] <= cost[active]
        small = (np.abs(new_k - k_max[active]) < 1e-11 * np.abs(new_k)) & (np.abs(new_v - v[active]) < 1e-11)
        taken = active[better]
        k_max[taken], v[taken] = new_k[better], new_v[better]
        for old, new in zip((cost, level, normal, slope), trial, strict=True):
            old[taken] = new[better]
        damping[active] = np.where(better, damping[active] / 10, damping[active] * 10)
        active = active[~(small | (damping[active] > 1e8))]
    s = saturation(sizes, v[:, None])
    e = np.log10(level) + k_max[:, None] * s * t_mean
    at_bound = (v - low < 1e-3) | (high - v < 1e-3) if fixed_v is None else np.zeros(len(v), bool)
    spread = (w * (loss_RMT - ((w * loss_RMT).sum(-1) / w.sum(-1))[..., None]) ** 2).sum((-1, -2))
    gradient = 2 * np.abs(slope * np.stack([k_max, np.ones_like(v)], 1)).max(1) / np.maximum(spread, np.finfo(float).tiny)
    return Solution(k_max, 10.0**v, e, cost, np.where(at_bound, 0.0, gradient), at_bound, iteration)


def _linear_system(tc, loss, w, sizes, k_max, v):
    """Cost (R,), level 10^(E - k t_mean) (R, M), Gauss-Newton matrix (R, 2, 2) and right-hand side (R, 2) at (K_max,
    v)."""
    s = saturation(sizes, v[:, None])
    z = 10.0 ** (-(k_max[:, None] * s)[..., None] * tc)
    wz = w * z
    zz = (wz * z).sum(-1)
    level = (wz * loss).sum(-1) / zz
    residual = loss - level[..., None] * z
    g = -LN10 * level[..., None] * z * tc
    g = g - z * ((wz * g).sum(-1) / zz)[..., None]
    wg = w * g
    curvature, pull = (wg * g).sum(-1), (wg * residual).sum(-1)
    q = np.stack([s, -k_max[:, None] * s * (1 - s) * LN10], axis=-1)
    normal = np.einsum("rm,rmi,rmj->rij", curvature, q, q)
    return (w * residual**2).sum((-1, -2)), level, normal, np.einsum("rm,rmi->ri", pull, q)


def _damped_step(normal, slope, damping, hold_v: bool):
    if hold_v:
        return np.stack([slope[:, 0] / (normal[:, 0, 0] * (1 + damping)), np.zeros(len(slope))], 1)
    diagonal = np.einsum("rii->ri", normal)
    damped = normal + np.einsum("ri,ij->rij", damping[:, None] * diagonal + 1e-300, np.eye(2))
    determinant = damped[:, 0, 0] * damped[:, 1, 1] - damped[:, 0, 1] ** 2
    first = (damped[:, 1, 1] * slope[:, 0] - damped[:, 0, 1] * slope[:, 1]) / determinant
    second = (damped[:, 0, 0] * slope[:, 1] - damped[:, 0, 1] * slope[:, 0]) / determinant
    return np.stack([first, second], 1)
