"""What a ladder shows by itself, and settings side by side, against NumPy and SciPy on curves with a known answer."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic_curves import K_MAX, N0, SIZES, autoregressive, make_runs

import scaling
from scaling import DataError, figures, panels, settings, tables
from scaling.heldout import largest_out
from scaling.ladder import band_share, rank_correlation

PIVOT = np.log10(512 * np.arange(1, 106)).mean()
K = K_MAX / (1 + N0 / SIZES)
ON_A_LINE = K * PIVOT - 0.1 - 0.2 * np.log10(SIZES / 5e8)  # levels that a new size can be predicted from


def noisy(seed, sd, **kwargs):
    return make_runs(autoregressive(np.random.default_rng(seed), (len(SIZES), 105), 0.5, sd), **kwargs)


def test_rank_correlation_is_spearmans_of_slopes_fitted_by_numpy():
    runs = noisy(1, 0.05)
    found = rank_correlation(scaling.fit(runs, x="data"))
    slopes = [-np.polyfit(np.log10(curve.samples), np.log10(curve.loss), 1)[0] for curve in runs]
    assert found.value == pytest.approx(spearmanr(slopes, SIZES).statistic)
    assert found.low <= found.value <= found.high and found.low < 0.9


def test_rank_correlation_is_sure_of_clean_curves_and_not_of_equal_slopes_in_noise():
    clean = rank_correlation(scaling.fit(noisy(2, 1e-4), x="data"))
    assert (clean.value, clean.low, clean.high) == (1.0, 1.0, 1.0)
    flat = rank_correlation(scaling.fit(noisy(3, 0.05, n0=1.0), x="data"))
    assert flat.low < 0 < flat.high


def test_the_interval_of_the_rank_correlation_holds_that_of_curves_drawn_again():
    """The spread over independent sets of curves, not over resamplings of one."""
    values = [rank_correlation(scaling.fit(noisy(seed, 0.03), x="data"), replicates=2).value for seed in range(60)]
    found = [rank_correlation(scaling.fit(noisy(seed, 0.03), x="data"), replicates=400) for seed in range(8)]
    true = np.median(values)
    assert np.mean([share.low <= true <= share.high for share in found]) >= 0.75
    widths = [share.high - share.low for share in found]
    assert 0.4 < np.median(widths) / np.ptp(np.percentile(values, [2.5, 97.5])) < 2.5


@pytest.mark.parametrize("shift, share", [(0.0, (0.8, 1.0)), (1.5, (0.0, 0.0))])
def test_the_share_inside_the_band_is_counted_point_by_point(shift, share):
    runs = noisy(4, 0.01, levels=ON_A_LINE + shift * (SIZES == SIZES[-1]))
    below, _ = largest_out(runs, "data", objective="log", bootstrap=200, seed=0)
    target = runs.mean().curves[-1]
    assert SIZES[-1] not in below.sizes
    found = band_share(below, target)
    assert share[0] <= found.value <= share[1] and found.low <= found.value <= found.high
    prediction = below.predict(target.n, target.samples)
    assert found.value == np.mean((prediction.low <= target.loss) & (target.loss <= prediction.high))


def test_a_ladder_too_short_for_an_interval_gives_no_share():
    runs = noisy(5, 0.01).select(n=list(SIZES[:4]))
    below, _ = largest_out(runs, "data", objective="log", bootstrap=50, seed=0)
    assert band_share(below, runs.mean().curves[-1]) is None


@pytest.fixture
def arms():
    """One size with the slope 0.06, and with the slope 0.10 from the same start; noise of 0.5 %."""
    rng = np.random.default_rng(6)
    made = {}
    for name, slope in (("G = 4", 0.06), ("G = 8", 0.10)):
        made[name] = make_runs(
            autoregressive(rng, (1, 60), 0.3, 0.002), k_max=slope, n0=1.0, sizes=SIZES[3:4], levels=[0.2], steps=60
        )
    return made


def test_settings_are_compared_by_slope_and_last_losses(arms):
    four, eight = settings.compare(arms, "data")
    for row, runs in ((four, arms["G = 4"]), (eight, arms["G = 8"])):
        curve = runs.curves[0]
        slope, intercept = np.polyfit(np.log10(curve.samples), np.log10(curve.loss), 1)
        assert (row.k, row.intercept) == pytest.approx((-slope, intercept))
        assert row.final == pytest.approx(curve.loss[-5:].mean())
        assert row.k_interval[0] < row.k < row.k_interval[1]
    assert (four.difference, *four.difference_interval) == (0, 0, 0)
    assert eight.difference == pytest.approx(eight.final - four.final)
    assert eight.difference_interval[1] < 0
    assert 0.06 == pytest.approx(four.k, abs=0.01) and 0.10 == pytest.approx(eight.k, abs=0.01)


def test_the_table_and_the_figure_of_settings_show_every_one(arms, tmp_path):
    rows = settings.compare(arms, "data")
    table = tables.settings_table(rows, "data")
    assert all(name in table for name in arms)
    assert f"{rows[1].final:.4f}" in table
    figure = panels.settings(rows, "data")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(arms)
    assert [label.get_text() for label in right.get_xticklabels()] == list(arms)
    assert len(left.get_yticks()) >= 2
    for path in figures.save(figure, tmp_path, "settings"):
        assert path.stat().st_size > 5_000


def test_what_cannot_be_compared_is_refused(arms):
    with pytest.raises(DataError, match="at least two settings"):
        settings.compare({"one": arms["G = 4"]}, "data")
    with pytest.raises(DataError, match="2 models"):
        settings.compare(arms | {"other": noisy(7, 0.01).select(n=SIZES[0])}, "data")
    with pytest.raises(DataError, match="has 3 points; 5 are needed"):
        settings.compare({"a": arms["G = 4"], "b": arms["G = 8"].between(last=3)}, "data")


def test_no_interval_of_a_last_loss_leaves_the_losses_that_can_be():
    noisy = {
        name: make_runs(autoregressive(np.random.default_rng(seed), (1, 30), 0.3, 0.05), k_max=1e-3, n0=1.0, sizes=SIZES[:1],
                        levels=[-0.02], steps=30)
        for seed, name in enumerate(("one", "two"))
    }  # fmt: skip
    for row in settings.compare(noisy, "data"):
        assert 0 <= row.final_interval[0] <= row.final_interval[1] <= 1
