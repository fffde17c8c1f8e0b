"""Intervals: their coverage on a known law with correlated noise, and their reproducibility."""

import numpy as np
import pytest
from synthetic_curves import K_MAX, LEVELS, N0, SIZES, autoregressive, make_runs

import scaling
from scaling import resampling
from scaling.design import design, solve
from scaling.goodness import autocorrelation, runs_test

TRUE = np.r_[K_MAX, N0, K_MAX / (1 + N0 / SIZES)]


def coverage(replicates, block, seed, fits=400):
    """Share of replicates whose 95 % interval covers K_max, N_0 and each k(N), under AR(1) noise (rho 0.5, sd 0.02)."""
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(TRUE))
    for _ in range(replicates):
        d = design(make_runs(autoregressive(rng, (7, 105), 0.5, 0.02 / np.log(10))), "data")
        solution = solve(d, "log")
        length = resampling.default_block(d) if block is None else block
        draws = solve(d, "log", resampling.resampled(d, solution, fits, length, rng))
        low, high = np.percentile(np.c_[draws.k_max, draws.n0, draws.slopes(SIZES)], [2.5, 97.5], axis=0)
        hits += (low <= TRUE) & (TRUE <= high)
    return hits / replicates


@pytest.mark.slow
def test_block_intervals_cover_the_truth_in_90_to_98_percent_of_1000_replicates():
    share = coverage(1000, None, seed=1)
    assert share.min() >= 0.90 and share.max() <= 0.98, share


@pytest.mark.slow
def test_the_iid_bootstrap_fails_where_the_block_bootstrap_holds():
    share = coverage(300, 1, seed=1)
    assert share.max() < 0.85, share


def test_block_intervals_cover_and_iid_ones_do_not_on_a_small_sample():
    # 60 replicates: the standard error of a share of 0.94 is 0.03.
    assert coverage(60, None, seed=2, fits=200).mean() > 0.86
    assert coverage(60, 1, seed=2, fits=200).mean() < 0.84


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others(published):
    runs = published.select(family="qwen2.5-base")
    first, again, other = (scaling.fit(runs, bootstrap=200, seed=seed) for seed in (3, 3, 4))
    assert first.to_json() == again.to_json()
    assert first.intervals["k_max"] != other.intervals["k_max"]


def test_resampled_noise_keeps_the_variance_and_the_correlation_of_the_residuals():
    rng = np.random.default_rng(0)
    residual = autoregressive(rng, (2000,), 0.6, 1.0)
    drawn = resampling.noise(residual, 200, 13, rng)
    assert drawn.std() == pytest.approx(residual.std(), rel=0.05)
    lag_one = (drawn[:, 1:] * drawn[:, :-1]).mean() / (drawn**2).mean()
    assert lag_one == pytest.approx(0.6, abs=0.05)


def test_autocorrelation_of_ar1_noise_is_rho_and_its_time_one_plus_rho_over_one_minus_rho():
    residual = autoregressive(np.random.default_rng(5), (20000,), 0.5, 1.0)
    rho, tau = autocorrelation(residual)
    assert rho == pytest.approx(0.5, abs=0.02)
    assert tau == pytest.approx(3.0, rel=0.15)


def test_the_runs_test_agrees_with_a_hand_computation():
    # 6 runs in 6 + 6 signs: mean 7, variance 30 / 11, z = -1 / sqrt(30 / 11).
    signs = np.array([1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1.0])
    assert runs_test(signs) == pytest.approx(0.5448, abs=1e-3)


def test_the_profile_interval_of_n0_agrees_with_the_bootstrap_on_white_noise():
    noise = np.random.default_rng(7).normal(0, 0.004, (7, 105))
    law = scaling.fit(make_runs(noise), x="data", bootstrap=2000)
    result = scaling.profile(law)
    assert not result["open"]
    assert np.log(result["interval"]) == pytest.approx(np.log(law.intervals["n0"]), abs=0.12)
    low, high = result["interval"]
    assert low < N0 < high


def test_intervals_of_the_run_bootstrap_shrink_to_nothing_when_runs_agree():
    one = make_runs(np.random.default_rng(0).normal(0, 0.004, (7, 105)))
    twin = scaling.Runs(tuple(scaling.runs.replace(c, run="two") for c in one))
    law = scaling.fit(scaling.Runs(one.curves + twin.curves), x="data", bootstrap=50, resample="run")
    assert np.ptp(law.intervals["k_max"]) < 1e-12
    with pytest.raises(scaling.DataError, match="at least two runs of every size"):
        scaling.fit(one, x="data", bootstrap=50, resample="run")


def test_a_law_whose_slopes_grow_with_n_is_reported_as_not_identified():
    levels = LEVELS + 0.3
    runs = make_runs(np.random.default_rng(2).normal(0, 0.01, (7, 105)), k_max=400, n0=1e15, levels=levels)
    law = scaling.fit(runs, x="data", bootstrap=200)
    assert any("NOT IDENTIFIED" in warning for warning in law.warnings)
    assert scaling.profile(law)["open"]
