"""Predictions, spending, other laws, reuse and question outcomes against closed forms and published errors."""

import json
import re

import numpy as np
import pytest
from synthetic_curves import K_MAX, LEVELS, N0, SIZES, autoregressive, make_runs, write_run

import scaling
from scaling import DataError, allocation, heldout, outcomes, reuse, tables
from scaling.comparison import BASELINE, compare
from scaling.design import design
from scaling.forms import FORMS, fit_form
from scaling.published import reuse_curves


def level_runs(noise=0.0):
    """A law whose log10 loss at the pivot of the data is exactly linear in log10 N."""
    k = K_MAX / (1 + N0 / SIZES)
    pivot = np.log10(512 * np.arange(1, 106)).mean()
    return make_runs(noise, levels=k * pivot - 0.1 - 0.2 * np.log10(SIZES / 5e8))


def test_a_fitted_size_is_predicted_by_the_formula_and_a_new_one_on_the_level_line():
    runs = level_runs()
    law = scaling.fit(runs.select(max_n=32e9), x="data")
    truth = runs.select(n=72e9).curves[0]
    assert law.predict(72e9, truth.samples).loss == pytest.approx(truth.loss, rel=1e-6)
    assert law.predict(72e9, truth.samples).basis == "new size"
    known = runs.select(n=7e9).curves[0]
    assert law.predict(7e9, 1e6).loss == pytest.approx(10.0 ** (law.e(7e9) - law.k(7e9) * 6), rel=1e-12)
    assert law.predict(7e9, known.samples).loss == pytest.approx(known.loss, rel=1e-6)


def test_compute_and_data_predict_the_same_new_size_when_compute_is_proportional_to_data():
    runs = level_runs()
    target = runs.select(n=72e9).curves[0]
    by_data = scaling.fit(runs.select(max_n=32e9), x="data").predict(72e9, target.samples)
    by_compute = scaling.fit(runs.select(max_n=32e9), x="compute").predict(72e9, target.compute)
    assert by_compute.loss == pytest.approx(by_data.loss, rel=1e-6)


def test_calibration_takes_the_intercept_from_the_points_given():
    law = scaling.fit(level_runs(), x="data")
    x = np.array([1e3, 2e3, 4e3])
    k = law.k(200e9)
    given = 10.0 ** (-0.3 - k * np.log10(x))
    prediction = law.predict(200e9, 1e5, calibrate=(x, given))
    assert prediction.loss == pytest.approx(10.0 ** (-0.3 - 5 * k), rel=1e-9)
    assert prediction.basis == "calibrated on 3 points"


def test_without_a_bootstrap_or_enough_sizes_there_is_no_interval_and_a_reason():
    assert "without bootstrap" in scaling.fit(make_runs(), x="data").predict(72e9, 1e4).reason
    few = scaling.fit(make_runs().select(n=[3e9, 7e9, 14e9]), x="data", bootstrap=50)
    prediction = few.predict(72e9, 1e4)
    assert prediction.low is None and "3 sizes are too few" in prediction.reason
    with pytest.raises(DataError, match="bootstrap=2000"):
        scaling.fit(make_runs(), x="data").interval()


def test_intervals_of_new_evaluations_cover_the_rest_of_curves_that_follow_the_law():
    rng = np.random.default_rng(0)
    inside = [
        heldout.remaining(make_runs(autoregressive(rng, (7, 105), 0.3, 0.006)), "data", 0.5, bootstrap=300).pooled.coverage
        for _ in range(12)
    ]
    assert 0.91 < np.mean(inside) < 0.99


def test_the_published_extrapolation_to_72b_has_the_errors_found_by_others(published):
    # R2 and MAE of the 72B curve with its intercept fitted on all of it, from a separate analysis of the same curves.
    for x, r2, mae in (("compute", 0.923, 0.0117), ("data", 0.915, 0.0113)):
        _, rows = heldout.largest_out(published.select(family="qwen2.5-base"), x, bootstrap=0)
        compensated = next(row for row in rows if row.basis.startswith("calibrated on all"))
        assert compensated.r2 == pytest.approx(r2, abs=0.003) and compensated.mae == pytest.approx(mae, abs=2e-4)
        assert rows[0].basis == "new size" and rows[0].mae > compensated.mae


def test_the_early_steps_fit_predicts_later_steps_with_the_errors_found_by_others(published):
    # Pooled R2 and MAE of the held-out part under the linear objective, from a separate analysis of the same curves.
    row = heldout.remaining(published.select(family="qwen2.5-base"), "data", 25 / 105, "linear", bootstrap=0).pooled
    assert row.r2 == pytest.approx(0.993, abs=0.001) and row.mae == pytest.approx(0.0120, abs=4e-4)
    assert row.coverage is None


def test_coverage_on_held_out_steps_of_the_published_curves_is_as_reported(published):
    shares = [
        t.pooled.coverage
        for family in published.families
        for t in heldout.coverage_table(published.select(family=family), "data", (0.25, 0.5), bootstrap=300)
    ]
    assert all(0.85 <= share <= 0.99 for share in shares), shares


def test_required_x_inverts_the_law_and_says_when_it_leaves_the_data():
    law = scaling.fit(make_runs(), x="data", bootstrap=100)
    k, e = K_MAX / (1 + N0 / 32e9), LEVELS[5]
    needed = allocation.required_x(law, 32e9, 0.6)
    assert needed.x == pytest.approx(10.0 ** ((e - np.log10(0.6)) / k), rel=1e-5) and needed.basis == "inside the data"
    far = allocation.required_x(law, 0.5e9, 0.5)
    assert far.x > 1e20 and far.basis.startswith("extrapolated")
    with pytest.raises(DataError, match="target=1.5"):
        allocation.required_x(law, 32e9, 1.5)


def test_crossovers_solve_the_equality_of_two_laws():
    law = scaling.fit(make_runs(), x="compute", bootstrap=100)
    for found, i in zip(allocation.crossovers(law), range(6), strict=True):
        losses = [law.predict(float(n), found.x).loss[0] for n in SIZES[i : i + 2]]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert found.low <= found.x * (1 + 1e-9) and found.x <= found.high * (1 + 1e-9)


def test_the_best_size_at_a_budget_is_sought_only_where_data_cover_it():
    law = scaling.fit(make_runs(), x="compute", bootstrap=100)
    budget = 6 * 7e9 * 5e6 * 50.0
    choices = allocation.best_size(law, budget)
    covered = [c for c in choices if c.covered]
    expected = [n for n in SIZES if 6 * n * 5e6 <= budget <= 6 * n * 5e6 * 105]
    assert sorted(c.n for c in covered) == expected
    assert choices[: len(covered)] == covered and sum(c.probability_best for c in covered) == pytest.approx(1)
    assert all(c.probability_best is None for c in choices if not c.covered)


def test_every_form_recovers_curves_that_it_generated():
    t = np.log10(512 * np.arange(1, 106.0)) * np.ones((7, 1))
    k = (K_MAX / (1 + N0 / SIZES))[:, None]
    curves = {
        "constant": LEVELS[:, None] - 0.05 * t,
        "joint": LEVELS[:, None] - k * t,
        "free": LEVELS[:, None] - np.linspace(0.12, 0.01, 7)[:, None] * t,
        "floor": np.log10(0.2 + 10.0 ** (0.3 - 0.25 * t)),
        "sigmoid": np.log10(1 - 0.1 - 0.5 / (1 + 10.0 ** (1.2 * (4.0 - t)))),
        "decomposition": np.log10(0.1 + (SIZES[:, None] / 1e8) ** -0.3 + 0.3 / (1 + 10.0 ** (0.9 * (t - 3.8)))),
    }
    assert set(curves) == set(FORMS)
    base = design(make_runs(), "data", "point")
    for name, y in curves.items():
        d = scaling.law.Design(**{**base.__dict__, "y_MT": y})
        off = np.abs(fit_form(name, d).predict(t) - y).max()
        assert off < (1e-3 if name == "decomposition" else 1e-5), (name, off)


def test_comparison_prefers_the_law_that_made_the_curves():
    runs = make_runs(np.random.default_rng(3).normal(0, 0.004, (7, 105)))
    scores = {score.name: score for score in compare(runs, "data", ("constant", "joint", "free", "floor"))}
    assert scores["joint"].aicc == 0 and scores["constant"].aicc > 50
    assert scores["joint"].mape < scores[BASELINE].mape < scores["constant"].mape
    assert scores["joint"].rmse == pytest.approx(0.004, rel=0.1)


def test_reuse_factors_of_the_published_runs_end_where_the_figures_say(published):
    # Means of steps 91 to 100, from a separate reading of the same figures.
    expected = {"base": [0.706, 0.694, 0.687, 0.703, 0.703, 0.718, 0.726],
                "instruct": [0.653, 0.649, 0.659, 0.672, 0.677, 0.677, 0.709]}  # fmt: skip
    for name, finals in expected.items():
        rows = reuse.analyse(reuse_curves().select(family=f"qwen2.5-{name}"))
        assert [row.factor for row in rows] == [1, 2, 5, 20, 25, 50, 100]
        assert [row.final for row in rows] == pytest.approx(finals, abs=0.0016)
        assert rows[-1].difference_interval[0] > 0
    with pytest.raises(DataError, match="within one model"):
        reuse.analyse(reuse_curves())


def question_runs(tmp_path, questions=200):
    """Four sizes, one run each, every question answered by a fixed threshold per question against the pass rate."""
    hardness = np.random.default_rng(0).random(questions)
    for n in (20_000, 60_000, 200_000, 600_000):
        pass_rates = 1 - 0.9 * np.arange(1, 13) ** (-0.3 / (1 + 60_000 / n))
        scores = [hardness < rate for rate in pass_rates]
        run = write_run(tmp_path / f"n{n}", n, [0.9, *(1 - float(s.mean()) for s in scores)])
        (run / "eval").mkdir()
        for step, score in enumerate([hardness < 0.1, *scores]):
            lines = [json.dumps({"question": q, "sample": 0, "score": float(s)}) for q, s in enumerate(score)]
            (run / "eval" / f"heldout-{step}.jsonl").write_text("\n".join(lines) + "\n")
    return scaling.load(tmp_path)


def test_the_question_bootstrap_has_the_binomial_error_of_one_evaluation(tmp_path):
    runs = question_runs(tmp_path)
    d = design(runs, "data")
    y = outcomes.resampled_questions(runs, runs.mean(), d, 4000, np.random.default_rng(0))
    loss = runs.mean().curves[-1].loss[-1]
    assert (10.0 ** y[:, -1, 11]).std() == pytest.approx(np.sqrt(loss * (1 - loss) / 200), rel=0.05)
    law = scaling.fit(runs, x="data", bootstrap=200, resample="question")
    low, high = law.intervals["k_max"]
    assert low < law.k_max < high


def test_the_question_bootstrap_refuses_files_that_do_not_belong_together(tmp_path):
    runs = question_runs(tmp_path)
    broken = tmp_path / "n60000" / "eval" / "heldout-3.jsonl"
    broken.write_text("\n".join(broken.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(DataError, match="0 suites of its eval folder agree|questions are not the"):
        scaling.fit(runs, x="data", bootstrap=20, resample="question")
    with pytest.raises(DataError, match="199 questions are not the 200"):
        scaling.fit(runs, x="data", bootstrap=20, resample="question", suite="heldout")


@pytest.mark.parametrize("wrong", [{"n": -1, "x": 1}, {"n": 1e9, "x": 0}, {"n": 1e9, "x": 1, "level": 2}])
def test_predictions_of_impossible_things_are_errors(wrong):
    with pytest.raises(DataError):
        scaling.fit(make_runs(), x="data").predict(**wrong)


def words(text, start):
    """The row of a printed table that begins with `start`."""
    return next(line for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize("size", [72e9, 7e9])
@pytest.mark.parametrize(
    "x, place",
    [(64.0, "8 times below"), (0.064, "4 decades below"), (512 * 525, "5 times above"), (1e12, "7 decades above")],
)
def test_a_prediction_outside_the_points_of_its_size_is_not_called_fitted(size, x, place):
    law = scaling.fit(make_runs(), x="data", bootstrap=50)
    inside, outside = law.predict(size, 1e4), law.predict(size, x)
    assert inside.basis == "fitted" and inside.bases() == ["fitted"] and not inside.cautions
    assert outside.basis == "extrapolated" and "fitted" not in outside.bases()[0] and place in outside.bases()[0]
    assert outside.decades[0] == pytest.approx(np.log10(x / (512 if x < 512 else 512 * 105)))  # the points: 512 to 512 x 105
    both = law.predict(size, [1e4, x])
    assert both.basis == "extrapolated" and both.bases()[0] == "fitted"


def test_a_loss_above_one_is_no_prediction_and_the_unit_is_asked_for(published):
    law = scaling.fit(published.select(family="qwen2.5-base"), bootstrap=50)
    prediction = law.predict(72e9, [640, 1e19])
    assert list(prediction.possible) == [False, True]
    text = tables.prediction_table([prediction])
    row = words(text, "72B   6.400e+02")
    assert row.split()[2:4] == [">", "1"] and "no prediction, X 15 decades below the data" in row and "fitted" not in row
    assert "the law gives 34.6 there, and a loss lies between 0 and 1" in text or "the law gives 34.5 there" in text
    assert "training compute C (FLOPs)" in text and "--x data is data D (prompts)" in text
    assert words(text, "72B   1.000e+19").endswith("fitted")
    numbers = [float(n) for line in text.splitlines()[2:4] for n in re.findall(r"\d+\.\d{4}", line)]
    assert numbers and max(numbers) <= 1


@pytest.mark.parametrize("n", [72.0, 72e18])
def test_a_size_far_from_the_fitted_ones_is_told_what_n_counts(n, published):
    law = scaling.fit(published.select(family="qwen2.5-base"), bootstrap=50)
    prediction = law.predict(n, 1e20)
    assert "fitted sizes, 0.5B to 72B: N counts parameters, 72e9 or 72B" in " ".join(prediction.cautions)
    assert prediction.low is None or 0 <= prediction.low[0] <= prediction.high[0] <= 1


def test_no_band_leaves_the_losses_that_can_be():
    rng = np.random.default_rng(0)
    runs = make_runs(autoregressive(rng, (7, 105), 0.3, 0.05), levels=np.full(7, 0.01))
    law = scaling.fit(runs.clip(1), x="data", bootstrap=100)
    for n in (0.5e9, 1e9, 200e9):
        p = law.predict(n, np.geomspace(600, 6e4, 9))
        for bound in (p.mean_low, p.mean_high, p.low, p.high):
            assert (bound >= 0).all() and (bound <= 1).all()


@pytest.mark.parametrize("slope", [1e-13, 0.0])
def test_curves_that_do_not_meet_have_no_crossover_in_range_and_say_which_is_lower(slope):
    """Parallel lines, and lines that meet hundreds of decades away."""
    levels = np.array([0.0, -0.1, -0.2])
    runs = make_runs(k_max=0.05, n0=slope * 1e9 + 1e-9, sizes=SIZES[:3], levels=levels)
    law = scaling.fit(runs, x="data", bootstrap=20)
    for found, lower in zip(allocation.crossovers(law), ("1.5B", "3B"), strict=True):
        assert found.x is None and found.low is None and found.lower == lower
    text = tables.spending_table(law, [1e4])
    assert "no crossover in range: 1.5B is lower" in text and "e-300" not in text and "e+300" not in text


def test_a_target_far_outside_the_data_is_answered_in_words():
    law = scaling.fit(make_runs(), x="data", bootstrap=50)
    needed = [allocation.required_x(law, float(n), 0.3) for n in SIZES]
    text = tables.target_table(law, 0.3, needed)
    assert needed[0].x > 1e50
    assert "> 5e+10" in words(text, "0.5B") and "none in range" in words(text, "0.5B")
    exponents = [int(e) for e in re.findall(r"e([+-]\d+)", text)]
    assert max(exponents) <= 10 and "inf" not in text
    rising = scaling.fit(make_runs(k_max=-0.01, levels=np.full(7, -0.5)), x="data", bootstrap=50)
    never = tables.target_table(rising, 0.2, [allocation.required_x(rising, 7e9, 0.2)])
    assert "never" in words(never, "7B") and "inf" not in never


def test_a_curve_that_does_not_vary_has_no_r2_and_json_all_the_same():
    runs = make_runs()
    flat = scaling.runs.replace(runs.curves[0], loss=np.full(105, 0.9))
    law = scaling.fit(scaling.Runs((flat, *runs.curves[1:])), x="data")
    assert json.loads(law.to_json())["models"][0]["r2"] is None
    row = words(tables.law_table(law), "0.5B")
    assert "nan" not in row and " - " in row
