"""Figures of an evaluation and how far they can be trusted. Questions are the sample: answers to one question hang together.

Shapes: Q questions, K samples of each.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that covers the truth in `level` of all cases."""

    value: float
    low: float
    high: float


def pass_at_k(right_QK: np.ndarray, k: int) -> np.ndarray:
    """[Q]: the probability that at least one of k samples is right, estimated without bias from K >= k of them.

    1 - C(K - c, k) / C(K, k) with c right samples (Chen et al. 2021, arXiv 2107.03374, eq. 1). ValueError for k outside 1..K.
    """
    K = right_QK.shape[1]
    if not 1 <= k <= K:
        raise ValueError(f"pass@{k} needs at least {k} samples of each question, and k of at least 1; there are {K}")
    table = [1.0 - math.comb(K - c, k) / math.comb(K, k) for c in range(K + 1)]
    return np.asarray(table)[(right_QK >= 1).sum(axis=1)]


def mean_estimate(values_Q: np.ndarray, level: float = 0.95) -> Estimate:
    """The mean of a figure in [0, 1] over questions, with Wilson's score interval for the number of independent answers that
    would be as uncertain: for one right-or-wrong answer a question, Wilson's own (1927)."""
    values_Q = np.asarray(values_Q, np.float64)
    Q, p = len(values_Q), float(np.mean(values_Q))
    variance = float(np.var(values_Q)) / Q
    return wilson(p, p * (1 - p) / variance if variance > 0 else Q, level)


def wilson(p: float, n: float, level: float = 0.95) -> Estimate:
    """A proportion p of n independent answers with Wilson's score interval (E. B. Wilson 1927)."""
    z = float(special.ndtri(0.5 + level / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions: the mean difference (second minus first), its interval, and how often a difference at
    least as large comes about when which answer belongs to which model is left to chance."""

    difference: Estimate
    p_value: float
    better: int  # questions on which the second model did better
    worse: int


def compare(first_Q: np.ndarray, second_Q: np.ndarray, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Comparison:
    """Paired comparison of a figure per question. The interval is Student's over the differences, with one more question that
    differs by 1 in their variance, so that it does not vanish where few differ; the p-value comes from `draws` sign flips."""
    change_Q = np.asarray(second_Q, np.float64) - np.asarray(first_Q, np.float64)
    Q, mean = len(change_Q), float(change_Q.mean())
    error = math.sqrt((float(((change_Q - mean) ** 2).sum()) + 1.0) / Q / Q)
    half = float(special.stdtrit(max(Q - 1, 1), 0.5 + level / 2)) * error
    signs = np.random.default_rng(seed).integers(0, 2, (draws, Q), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ change_Q) / Q
    extreme = int((flipped >= abs(mean) - 1e-12).sum())
    estimate = Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half))
    return Comparison(estimate, (extreme + 1) / (draws + 1), int((change_Q > 0).sum()), int((change_Q < 0).sum()))
