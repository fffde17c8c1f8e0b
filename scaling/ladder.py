"""What a ladder of sizes shows by itself: whether larger models learn with steeper curves, and whether the largest one's curve
lay where the smaller ones said, each with an interval.

Shapes: R replicates, M models, T points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from scaling.design import free_lines
from scaling.law import INTERVAL_LEVEL, Law
from scaling.resampling import block_indices, default_block, interval, noise
from scaling.runs import Curve

REPLICATES = 2000


@dataclass(frozen=True)
class Share:
    """A figure with its interval."""

    value: float
    low: float
    high: float


def rank_correlation(law: Law, replicates: int = REPLICATES, seed: int = 0, level: float = INTERVAL_LEVEL) -> Share:
    """Spearman's correlation of every model's own slope with N.

    The interval is that of the evaluations' scatter: the residuals of each model's own line are drawn again in blocks, as
    for the law. That two training runs of a size differ is in it only as far as their mean was fitted.
    """
    d = law.design
    own, _, line = free_lines(d)
    rng = np.random.default_rng(seed)
    block = default_block(d)
    slopes = np.empty((replicates, len(d.sizes)))
    for i, present in enumerate(d.present):
        t, w = d.t_MT[i, present], d.w_MT[i, present]
        dt = t - (w * t).sum() / w.sum()
        drawn = noise((d.y_MT - line)[i, present], replicates, block, rng)
        slopes[:, i] = own[i] - (w * dt * drawn).sum(1) / (w * dt**2).sum()
    values = _spearman(slopes, d.sizes)
    return Share(float(_spearman(own[None], d.sizes)[0]), *interval(values, level))


def _spearman(slopes_RM: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    ranks, of_sizes = rankdata(slopes_RM, axis=1), rankdata(sizes)
    ranks, of_sizes = ranks - ranks.mean(1, keepdims=True), of_sizes - of_sizes.mean()
    scale = np.sqrt((ranks**2).sum(1) * (of_sizes**2).sum())
    return np.divide((ranks * of_sizes).sum(1), scale, out=np.zeros(len(ranks)), where=scale > 0)


def band_share(
    law: Law, target: Curve, replicates: int = REPLICATES, seed: int = 0, level: float = INTERVAL_LEVEL
) -> Share | None:
    """Share of `target`'s points inside the prediction interval of a law that was fitted without it.

    Its own interval draws blocks of neighbouring points again: they lie inside or outside together. None where the law
    gives no interval for that size.
    """
    prediction = law.predict(target.n, target.x(law.x), level)
    if prediction.low is None:
        return None
    inside = ((prediction.low <= target.loss) & (target.loss <= prediction.high)).astype(float)
    count = len(inside)
    block = max(2, round(count ** (1 / 3)))
    drawn = inside[block_indices(count, count, block, replicates, np.random.default_rng(seed))].mean(1)
    return Share(float(inside.mean()), *interval(drawn, level))
