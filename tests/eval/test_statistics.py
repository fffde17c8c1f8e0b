"""Against closed forms, enumeration, scipy, and simulated models whose true score is known."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from eval.statistics import compare, mean_estimate, pass_at_k, wilson


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(K):
    for right in range(K + 1):
        row = np.array([[1.0] * right + [0.0] * (K - right)])
        for k in range(1, K + 1):
            subsets = list(combinations(row[0], k))
            assert pass_at_k(row, k)[0] == pytest.approx(np.mean([max(subset) for subset in subsets]), abs=1e-12)


def test_pass_at_k_is_unbiased_and_pass_at_1_is_the_mean():
    rng = np.random.default_rng(0)
    truth = rng.beta(0.7, 1.3, 2000)
    samples = (rng.random((2000, 8)) < truth[:, None]).astype(float)
    assert pass_at_k(samples, 1).mean() == pytest.approx(samples.mean())
    for k in (2, 4, 8):
        assert pass_at_k(samples, k).mean() == pytest.approx((1 - (1 - truth) ** k).mean(), abs=0.02)


def test_pass_at_k_of_more_samples_than_there_are_is_refused():
    for k in (0, 5):
        with pytest.raises(ValueError, match="4"):
            pass_at_k(np.ones((3, 4)), k)


@pytest.mark.parametrize(("right", "n"), [(0, 30), (1, 30), (15, 30), (30, 30), (412, 500), (1319, 1319)])
def test_one_answer_a_question_has_wilsons_interval(right, n):
    values = np.r_[np.ones(right), np.zeros(n - right)]
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    for estimate in (mean_estimate(values), wilson(right / n, n)):
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert estimate.value == right / n


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(
    ("Q", "K", "a", "b"), [(30, 1, 1, 3), (40, 8, 1, 1), (500, 1, 2, 1), (500, 4, 0.5, 0.5), (128, 2, 1, 9)]
)
def test_the_interval_of_a_mean_covers_the_truth_at_its_level(Q, K, a, b, level):
    rng = np.random.default_rng(1)
    covered, runs = 0, 1500
    for _ in range(runs):
        difficulty = rng.beta(a, b, Q)  # questions are a sample too: the truth is the mean over all there could be
        estimate = mean_estimate(rng.binomial(K, difficulty) / K, level)
        covered += estimate.low <= a / (a + b) <= estimate.high
    noise = 3 * np.sqrt(level * (1 - level) / runs)
    assert level - noise - 0.015 <= covered / runs <= min(1.0, level + noise + 0.035)


@pytest.mark.parametrize(("Q", "K", "effect"), [(30, 1, 0.0), (40, 8, 0.1), (500, 1, 0.02), (500, 4, 0.0), (200, 2, -0.1)])
def test_the_interval_of_a_difference_covers_the_truth_and_the_p_value_keeps_its_level(Q, K, effect):
    rng = np.random.default_rng(2)
    covered, significant, runs = 0, 0, 600
    for _ in range(runs):
        first = rng.beta(2, 3, Q) * 0.8 + 0.1
        answers = [rng.binomial(K, p) / K for p in (first, first + effect)]
        result = compare(*answers, draws=500)
        covered += result.difference.low <= effect <= result.difference.high
        significant += result.p_value <= 0.05
    assert 0.925 <= covered / runs <= 1.0
    assert significant / runs <= 0.08 or effect


def test_a_comparison_counts_and_is_antisymmetric():
    rng = np.random.default_rng(3)
    first, second = rng.random(50), rng.random(50)
    there, back = compare(first, second), compare(second, first)
    assert there.difference.value == pytest.approx(np.mean(second - first)) == pytest.approx(-back.difference.value)
    assert (there.better, there.worse) == (back.worse, back.better) == ((second > first).sum(), (second < first).sum())
    assert there.p_value == back.p_value
    same = compare(first, first)
    assert same.difference.value == 0 and same.p_value == 1.0 and same.difference.low < 0 < same.difference.high


def test_the_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(4)
    change = rng.integers(-2, 4, 10) / 2
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    exact = np.mean(np.abs(change @ signs) >= abs(change.sum()) - 1e-9)
    assert compare(np.zeros(10), change, draws=40_000).p_value == pytest.approx(exact, abs=0.01)
