"""Bootstrap of the law: which noise is drawn again, and how.

Residual bootstrap within model. The residuals of one curve are correlated (evaluations of one training run a step apart), so they
are drawn in blocks that wrap around the end of the curve (circular blocks: every residual is drawn equally often). Residuals are
divided by sqrt(1 - leverage) of the model's own line before, or early steps, which carry most of the slope in log X, would look too
quiet. `block=1` is the iid bootstrap, kept as the control that fails on correlated noise.

Shapes: R replicates, M models, T points.
"""

from __future__ import annotations

import numpy as np

from scaling.design import Design, fitted
from scaling.projection import Solution


def default_block(d: Design) -> int:
    """2 n^(1/3), at least 5 and at most a third of the shortest curve (then 1 at least): 10 for curves of 105 points."""
    n = int(d.counts.min())
    return max(1, min(max(5, round(2 * n ** (1 / 3))), n // 3))


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


def block_indices(count: int, block: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `replicates` circular-block resamples of range(count), shape (R, count)."""
    blocks = -(-count // block)
    starts = rng.integers(0, count, size=(replicates, blocks))
    return ((starts[:, :, None] + np.arange(block)) % count).reshape(replicates, -1)[:, :count]


def resampled(d: Design, solution: Solution, replicates: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """`replicates` new data sets log10 L = law + resampled residuals, shape (R, M, T)."""
    law, residual = fitted(d, solution), inflated_residuals(d, solution)
    y = np.broadcast_to(law, (replicates, *law.shape)).copy()
    for i, count in enumerate(d.counts):
        y[:, i, :count] += residual[i][block_indices(int(count), block, replicates, rng)]
    return y
