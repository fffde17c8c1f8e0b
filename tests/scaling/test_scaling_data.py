"""What may be read, what is refused, and with which words."""

import json

import numpy as np
import pytest
from synthetic_curves import make_runs, write_run

import scaling
from scaling import DataError
from scaling.published import DATA

HEADER = "model_family,model_size,n_params,step,samples,compute_flops,test_loss\n"


def losses(k, steps=12):
    return [0.9, *(0.9 * np.arange(1, steps + 1) ** -k)]


@pytest.fixture
def ladder(tmp_path):
    sizes = (20_000, 60_000, 200_000, 600_000)
    return [write_run(tmp_path / f"n{n}", n, losses(0.3 / (1 + 60_000 / n))) for n in sizes]


def csv_file(tmp_path, *rows):
    path = tmp_path / "curves.csv"
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return path


def rows_of(n, count=6, **changes):
    lines = []
    for step in range(1, count + 1):
        values = {"samples": 512 * step, "compute": 1e15 * step, "loss": 0.9 * step**-0.1} | changes.get(f"step{step}", {})
        lines.append(f"f,{n},{n},{step},{values['samples']},{values['compute']},{values['loss']}")
    return lines


def test_published_curves_hold_732_base_and_712_instruct_points(published):
    assert published.select(family="qwen2.5-base").points == 732
    instruct = published.select(family="qwen2.5-instruct")
    assert instruct.points == 712 and min(curve.step[0] for curve in instruct) == 4


def test_run_directories_and_their_metrics_files_give_the_same_law(ladder):
    by_directory = scaling.fit(scaling.load(ladder), x="data")
    by_file = scaling.fit(scaling.load([path / "metrics.jsonl" for path in ladder]), x="data")
    by_parent = scaling.fit(scaling.load(ladder[0].parent), x="data")
    assert by_directory.to_json() == by_file.to_json() == by_parent.to_json()
    assert by_directory.k_max == pytest.approx(0.3, rel=1e-9) and by_directory.n0 == pytest.approx(60_000, rel=1e-9)


def test_total_compute_gives_the_same_slopes_when_it_is_proportional(ladder):
    runs = scaling.load(ladder)
    assert scaling.fit(runs, x="compute_total").k_max == pytest.approx(scaling.fit(runs, x="compute").k_max, rel=1e-9)


def test_the_nominal_size_counts_unless_another_is_asked_for(tmp_path):
    run = write_run(tmp_path / "run", 494_032_768, losses(0.1), extra={"n_nominal": 500_000_000})
    assert scaling.load(run).sizes == (500_000_000,)
    assert scaling.load(run, size="n_params").sizes == (494_032_768,)
    with pytest.raises(DataError, match="no n_params_total"):
        scaling.load(run, size="n_params_total")


def test_runs_of_several_seeds_are_averaged_per_step(tmp_path):
    first = write_run(tmp_path / "a", 1000, [0.9, 0.8, 0.6, 0.5], seed=1)
    second = write_run(tmp_path / "b", 1000, [0.9, 0.6, 0.4], seed=2)
    mean = scaling.load([first, second]).mean().curves[0]
    assert mean.loss == pytest.approx([0.7, 0.5, 0.5]) and list(mean.repeats) == [2, 2, 1]
    common = scaling.load([first, second]).mean(common_steps_only=True).curves[0]
    assert common.loss == pytest.approx([0.7, 0.5])
    assert len(mean.sources) == 2 and "seed 1" in scaling.load(first).curves[0].run


def test_steps_without_an_evaluation_and_step_zero_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", 1000, [0.9, None, 0.8, None, 0.7])
    assert list(scaling.load(run).curves[0].step) == [2, 4]


def test_an_unfinished_last_line_is_skipped_with_a_note_and_one_in_the_middle_is_an_error(tmp_path):
    run = write_run(tmp_path / "run", 1000, losses(0.1))
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[:-40])
    runs = scaling.load(run)
    assert len(runs.curves[0]) == 11 and "unfinished last line 13" in runs.notes[0]
    lines = whole.splitlines()
    metrics.write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]) + "\n")
    with pytest.raises(DataError, match=r"line 5 is not JSON .*mend or remove"):
        scaling.load(run)


def test_a_step_logged_again_after_a_resume_counts_once_and_is_noted(tmp_path):
    run = write_run(tmp_path / "run", 1000, [0.9, 0.8, 0.7])
    metrics = run / "metrics.jsonl"
    again = json.loads(metrics.read_text().splitlines()[1]) | {"test_loss": 0.75}
    metrics.write_text(metrics.read_text() + json.dumps(again) + "\n")
    runs = scaling.load(run)
    assert runs.curves[0].loss == pytest.approx([0.75, 0.7]) and "logged again" in runs.notes[0]


def test_a_step_twice_in_a_csv_is_an_error(tmp_path):
    path = csv_file(tmp_path, *rows_of(1000), rows_of(1000)[2])
    with pytest.raises(DataError, match=r"line 8: step 3 .* occurs before, at .* line 4.*`run` column"):
        scaling.load(path)


@pytest.mark.parametrize(
    "loss, words",
    [("0", "test_loss is 0, its logarithm does not exist"), ("nan", "test_loss is 'nan'"), ("1.2", "lies in"),
     ("-0.1", "lies in"), ("x", "not a number")],
)  # fmt: skip
def test_a_loss_that_cannot_be_is_an_error_with_its_place(loss, words, tmp_path):
    path = csv_file(tmp_path, *rows_of(1000, step3={"loss": loss}))
    with pytest.raises(DataError, match=f"line 4: .*{words}"):
        scaling.load(path)


def test_nan_in_a_metrics_file_is_an_error(tmp_path):
    run = write_run(tmp_path / "run", 1000, [0.9, 0.8, float("nan"), 0.7])
    with pytest.raises(DataError, match="line 3: test_loss is nan"):
        scaling.load(run)


def test_a_loss_of_one_is_a_valid_point(tmp_path):
    path = csv_file(tmp_path, *rows_of(1000, step1={"loss": 1}))
    assert scaling.load(path).curves[0].loss[0] == 1


def test_x_that_falls_is_an_error_in_a_log_and_a_note_in_a_csv(tmp_path):
    run = write_run(tmp_path / "run", 1000, losses(0.1))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = json.loads(lines[5]) | {"compute_flops": 1.0}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:5], json.dumps(changed), *lines[6:]]) + "\n")
    with pytest.raises(DataError, match="line 6: compute_flops falls"):
        scaling.load(run)
    runs = scaling.load(csv_file(tmp_path, *rows_of(1000, step5={"compute": 1e15})))
    assert "compute_flops falls at step 5" in runs.notes[0]


def test_x_that_is_not_positive_is_an_error(tmp_path):
    with pytest.raises(DataError, match="line 3: compute_flops is 0 after step 0"):
        scaling.load(csv_file(tmp_path, *rows_of(1000, step2={"compute": 0})))


@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_model_with_too_few_points_is_an_error_that_names_it(points, tmp_path):
    path = csv_file(tmp_path, *rows_of(1000), *rows_of(5000), *rows_of(20000, points))
    with pytest.raises(DataError, match=f"20000 .* has {points} evaluated steps"):
        scaling.fit(scaling.load(path))


def test_a_single_model_is_an_error_that_points_to_single_power_laws():
    runs = make_runs().select(n=7e9)
    with pytest.raises(DataError, match="at least 2 model sizes.*fit_each"):
        scaling.fit(runs)
    k, e, quality = scaling.fit_each(runs, x="data")["7B"]
    assert (k, e) == pytest.approx((0.14 / (1 + 13 / 7), 0.071), rel=1e-9) and quality == pytest.approx(1)


def test_two_sizes_are_fitted_with_a_warning_that_nothing_is_tested():
    law = scaling.fit(make_runs().select(n=[7e9, 32e9]), x="data")
    assert law.k_max == pytest.approx(0.14, rel=1e-6) and "NOT TESTED" in law.warnings[0]


def test_two_families_a_missing_column_and_unknown_names_are_errors(published):
    with pytest.raises(DataError, match="one family at a time"):
        scaling.fit(published)
    base = published.select(family="qwen2.5-base")
    with pytest.raises(DataError, match="compute_total.*lack"):
        scaling.fit(base, x="compute_total")
    for wrong in (
        {"x": "flops"},
        {"objective": "l1"},
        {"weights": "none"},
        {"resample": "jackknife"},
        {"bootstrap": -1},
    ):
        with pytest.raises(DataError, match="flops|l1|none|jackknife|-1"):
            scaling.fit(base, **wrong)
    with pytest.raises(DataError, match="no curve matches"):
        published.select(family="llama")


def test_missing_and_wrong_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scaling.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no metrics.jsonl"):
        scaling.load(tmp_path)
    with pytest.raises(DataError, match="no path"):
        scaling.load([])
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column n_params, step, test_loss is missing"):
        scaling.load(tmp_path / "x.csv")
    with pytest.raises(DataError, match="read twice"):
        scaling.load([DATA / "data_reuse_7b.csv", DATA / "data_reuse_7b.csv"])


def test_clips_drop_points_as_the_published_protocols_count_them(published):
    early = published.select(family="qwen2.5-base").clip(ending=80)
    assert sorted({len(curve) for curve in early}) == [23, 24, 25]
    with pytest.raises(DataError, match="leaves no point"):
        published.clip(warmup=200)
    assert early.notes[-1] == "clip 0+80"


def test_equal_data_have_an_equal_digest_and_a_changed_loss_another(published):
    base = published.select(family="qwen2.5-base")
    changed = scaling.Runs(tuple(scaling.runs.replace(c, loss=c.loss * (1 + 1e-9)) for c in base))
    assert base.digest() == scaling.load(DATA / "qwen2.5_post_training.csv").select(family="qwen2.5-base").digest()
    assert base.digest() != changed.digest()


def test_two_runs_of_one_name_in_two_places_are_two_runs_and_one_file_twice_is_an_error(tmp_path, ladder):
    first, second = (write_run(tmp_path / place / "run", 20_000, losses(0.1)) for place in "ab")
    assert {curve.run for curve in scaling.load([first, second])} == {str(first), str(second)}
    (note,) = scaling.load([first, second]).mean().notes
    assert str(first) in note and str(second) in note
    with pytest.raises(DataError, match="read twice"):
        scaling.load([first, first / ".." / "run"])
