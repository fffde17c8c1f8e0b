"""Runs that do not belong together: told with their names, or refused; and what is averaged is said."""

import json

import numpy as np
import pytest
from synthetic_curves import make_runs, write_run

import scaling
from scaling import DataError
from scaling.__main__ import main
from scaling.agreement import settings_of
from scaling.report import file_name
from scaling.runs import Runs, replace

SIZES = (20_000, 60_000, 200_000, 600_000)
NEW = "family: ''\nmodel: org/Tiny-{n}\ndata:\n  test: data/heldout.parquet\neval:\n  temperature: 0.7  # by hand\n"


def losses(n, k_max=0.3, steps=12):
    return [0.9, *(0.9 * np.arange(1, steps + 1) ** -(k_max / (1 + 60_000 / n)))]


def run(folder, n, *, config=NEW, k_max=0.3, **options):
    made = write_run(folder, n, losses(n, k_max), **options)
    (made / "config.yaml").write_text("seed: 0\n" + config.format(n=n))
    return made


@pytest.fixture
def ladder(tmp_path):
    return [run(tmp_path / f"n{n}", n) for n in SIZES]


def fitted(*paths, capsys):
    code = main([*map(str, paths), "--x", "data", "--bootstrap", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def edit(run_dir, **changes):
    """Change keys of every line of a run's metrics; a function is applied to the old value."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.update({key: value(line[key]) if callable(value) else value for key, value in changes.items()})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_runs_that_agree_are_fitted_without_a_word(ladder, capsys):
    code, out, _ = fitted(*ladder, capsys=capsys)
    assert code == 0 and "note:" not in out and "MIXED" not in out and "  !" not in out


def test_runs_that_are_averaged_are_named(ladder, tmp_path, capsys):
    again = run(tmp_path / "again", SIZES[2], k_max=0.4)
    code, out, _ = fitted(*ladder, again, capsys=capsys)
    assert code == 0 and "note: mini 200k: mean of 2 runs (n200000 seed 0, again seed 0)" in out
    assert "MIXED" not in out  # two runs of one model


def test_two_models_of_one_size_and_family_are_not_averaged_without_a_word(ladder, tmp_path, capsys):
    other = run(tmp_path / "maths", SIZES[2], k_max=0.6, config=NEW.replace("Tiny", "Tiny-Math"))
    code, out, _ = fitted(*ladder, other, capsys=capsys)
    (line,) = [line for line in out.splitlines() if "MIXED MODELS" in line]
    assert code == 0 and "mini 200k" in line and "tiny-200000 in 200k (n200000 seed 0)" in line
    assert "tiny-math-200000 in 200k (maths seed 0)" in line
    law = scaling.fit(scaling.load([*ladder, other]), x="data")
    assert any("MIXED MODELS" in warning for warning in json.loads(law.to_json())["warnings"])


def test_families_are_told_apart_with_a_note(ladder, tmp_path, capsys):
    maths = [run(tmp_path / f"m{n}", n, family="mini/maths", k_max=0.5) for n in SIZES]
    code, out, _ = fitted(*ladder, *maths, capsys=capsys)
    assert code == 0 and "note: 2 families, each fitted by itself: mini (4 runs), mini/maths (4 runs)" in out
    assert "K_max 0.30000" in out and "K_max 0.50000" in out
    assert file_name("mini/maths") == "mini-maths"


@pytest.mark.parametrize("family", ["qwen2.5-base", "qwen2.5-instruct"])
def test_runs_recorded_before_families_came_from_the_weights_get_one_line(family, tmp_path, capsys):
    config = NEW.removeprefix("family: ''\n")
    old = [run(tmp_path / f"n{n}", n, family=family, config=config) for n in SIZES]
    code, out, _ = fitted(*old, capsys=capsys)
    (line,) = [line for line in out.splitlines() if "were recorded as" in line]
    assert code == 0 and line.startswith(f"note: 4 runs were recorded as {family} when the model's name alone decided")
    assert "org/Tiny-20000" in line and "org/Tiny-600000" in line
    new = [run(tmp_path / f"new{n}", n, family=family) for n in SIZES]
    assert "were recorded as" not in fitted(*new, capsys=capsys)[1]


@pytest.mark.parametrize(
    "changes, config, said",
    [
        (
            {"test_n": 250},
            NEW,
            "test_n is 500 in 20k (n20000 seed 0), 60k (n60000 seed 0), 200k (n200000 seed 0) and 250 in 600k",
        ),
        ({}, NEW.replace("heldout.parquet", "aime.parquet"), "data.test is heldout.parquet in"),
        ({}, NEW.replace("0.7", "1.0"), "eval.temperature is 0.7 in"),
    ],
)
def test_another_evaluation_set_or_temperature_among_the_runs_is_told(changes, config, said, tmp_path, capsys):
    runs = [run(tmp_path / f"n{n}", n, config=config if n == SIZES[-1] else NEW) for n in SIZES]
    edit(runs[-1], **changes)
    code, out, _ = fitted(*runs, capsys=capsys)
    (line,) = [line for line in out.splitlines() if "MIXED EVALUATION" in line]
    assert code == 0 and said in line and "600k (n600000 seed 0)" in line


def test_a_run_whose_evaluation_set_changed_on_the_way_is_told(ladder, capsys):
    lines = (ladder[1] / "metrics.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(line) | {"test_n": 250}) for line in lines[8:]]
    (ladder[1] / "metrics.jsonl").write_text("\n".join(lines[:8] + changed) + "\n")
    assert "MIXED EVALUATION: test_n is" in fitted(*ladder, capsys=capsys)[1]


def test_the_same_file_in_another_folder_is_the_same_evaluation(ladder, tmp_path, capsys):
    other = run(tmp_path / "other", 1_800_000, config=NEW.replace("data/heldout", "/mnt/copy/heldout"))
    assert "MIXED" not in fitted(*ladder, other, capsys=capsys)[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"n_params": 0.6}, "n_params is 0.6: N counts parameters, not billions of them"),
        ({"n_params": 7.0}, "n_params is 7: N counts parameters"),
        ({"n_params": 600_000 * 1000}, "in another unit"),
        ({"compute_flops": lambda c: c / 1e15}, "in another unit"),
        ({"tokens": lambda t: t / 1e6}, "it counts single tokens"),
        ({"samples": lambda s: s / 1000}, "it counts single samples"),
        ({"samples": lambda s: s * 1000}, "same units in all runs"),
        ({"tokens": lambda t: t * 1000}, "in another unit"),
    ],
)
def test_units_that_are_mixed_in_one_fit_are_refused(changes, said, ladder, capsys):
    edit(ladder[-1], **changes)
    code, _, err = fitted(*ladder, capsys=capsys)
    assert code == 1 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("unit", [1e-9, 1e9, 1e3])
def test_compute_in_another_unit_in_one_curve_is_refused_also_without_tokens(unit):
    runs = make_runs()
    mixed = Runs((*runs.curves[:-1], replace(runs.curves[-1], compute=runs.curves[-1].compute * unit)))
    with pytest.raises(DataError, match="72B.*same units|same units"):
        scaling.fit(mixed)
    whole = Runs(tuple(replace(c, compute=c.compute * unit) for c in runs))
    assert scaling.fit(whole).k_max == pytest.approx(scaling.fit(runs).k_max)  # one unit for all is no mixture


def test_sizes_that_are_nearly_one_are_told(ladder, tmp_path, capsys):
    near = run(tmp_path / "near", 210_000)
    assert "TOLD APART: N = 2e+05 and N = 2.1e+05" in fitted(*ladder, near, capsys=capsys)[1]


def test_sizes_that_span_too_much_are_told(ladder, tmp_path, capsys):
    huge = run(tmp_path / "huge", 7_000_000_000)
    assert "UNITS? N goes from 2e+04 to 7e+09" in fitted(*ladder, huge, capsys=capsys)[1]


def test_settings_are_read_from_the_config_that_training_writes(tmp_path):
    from jaxgrpo.config import Config, to_yaml

    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    found = settings_of(tmp_path)
    assert found["eval.temperature"] == "0.7" and found["model"] == Config().model and "data.test" in found
    assert settings_of(tmp_path / "none") == {}
