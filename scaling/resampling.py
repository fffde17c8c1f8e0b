"""Bootstrap of the law: which noise is drawn again, and how.

Residual bootstrap within model. The residuals of one curve are correlated (evaluations of one training run a step
apart), so they are drawn in moving blocks that wrap around the end of the curve (every residual is drawn equally
often). Two corrections, without which the intervals are too narrow at a hundred steps a curve (95 % intervals then
cover 88 % under AR(1) noise of rho 0.5):
- residuals are divided by sqrt(1 - leverage) of the model's own line, for early steps carry most of the slope in log X;
- blocks are drawn from the residuals whitened by an AR(1) and coloured again afterwards ("post-blackening", Davison and
  Hinkley 1997, section 8.2), as cutting at block ends loses part of the correlation. The AR coefficient is corrected
  for the bias that removing a trend gives it; what the AR(1) does not catch stays inside the blocks. `block=1` is the
  plain iid bootstrap, with no whitening: the control that fails on correlated noise.

Shapes: R replicates, M models, T points.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from scaling.design import Design, fitted
from scaling.projection import Solution

LARGEST_RHO = 0.95
BURN_IN = 50


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of replicates, shape (R,)."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def default_block(d: Design) -> int:
    """n^(1/3) of the shortest curve, at least 2: 5 for 105 points. After whitening, longer blocks only lose
    variance."""
    return max(2, round(float(d.counts.min()) ** (1 / 3)))


def inflated_residuals(d: Design, solution: Solution) -> np.ndarray:
    """Log10 residuals divided by sqrt(1 - leverage), centred within model, 0 where padded; shape (M, T)."""
    w = d.w_MT
    total = w.sum(1, keepdims=True)
    dt = d.t_MT - (w * d.t_MT).sum(1, keepdims=True) / total
    leverage = w / total + w * dt**2 / (w * dt**2).sum(1, keepdims=True)
    residual = (d.y_MT - fitted(d, solution)) / np.sqrt(np.maximum(1 - leverage, 1e-6))
    counts = d.counts[:, None]
    residual = np.where(d.present, residual, 0.0)
    return np.where(d.present, residual - residual.sum(1, keepdims=True) / counts, 0.0)


def autoregression(residual: np.ndarray) -> float:
    """AR(1) coefficient of the residuals of a straight line, shape (T,), corrected for the bias -(2 + 4 rho)/T of
    detrending."""
    power = float(residual @ residual)
    if power == 0:
        return 0.0
    n = len(residual)
    rho = float(residual[1:] @ residual[:-1]) / power
    return float(np.clip((rho * n + 2) / max(n - 4, 1), 0.0, LARGEST_RHO))


def block_indices(count: int, length: int, block: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Indices into range(count) of `replicates` circular-block resamples `length` long, shape (R, length)."""
    blocks = -(-length // block)
    starts = rng.integers(0, count, size=(replicates, blocks))
    return ((starts[:, :, None] + np.arange(block)) % count).reshape(replicates, -1)[:, :length]


def noise(residual: np.ndarray, replicates: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """New noise like `residual`, shape (T,), as (R, T): post-blackened moving blocks, iid for block = 1."""
    count = len(residual)
    rho = autoregression(residual) if block > 1 else 0.0
    if rho == 0.0:
        return residual[block_indices(count, count, block, replicates, rng)]
    innovation = residual[1:] - rho * residual[:-1]
    innovation = innovation - innovation.mean()
    drawn = innovation[block_indices(count - 1, count + BURN_IN, block, replicates, rng)]
    return lfilter([1.0], [1.0, -rho], drawn, axis=1)[:, BURN_IN:]


def resampled(d: Design, solution: Solution, replicates: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """`replicates` new data sets log10 L = law + resampled residuals, shape (R, M, T)."""
    law, residual = fitted(d, solution), inflated_residuals(d, solution)
    y = np.broadcast_to(law, (replicates, *law.shape)).copy()
    for i, count in enumerate(d.counts):
        y[:, i, :count] += noise(residual[i, :count], replicates, block, rng)
    return y
