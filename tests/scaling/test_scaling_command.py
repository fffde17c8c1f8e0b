"""`python -m scaling` as a user meets it: tables, files, exit codes; and without jax in reach."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_curves import write_run

from scaling.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ladder(tmp_path):
    rng = np.random.default_rng(0)
    for n in (20_000, 60_000, 200_000, 600_000, 2_000_000):
        for seed in (0, 1):
            k = 0.3 / (1 + 60_000 / n)
            loss = 0.9 * np.arange(1, 25) ** -k * 10 ** rng.normal(0, 0.004, 24)
            write_run(tmp_path / "runs" / f"n{n}-{seed}", n, [0.9, *loss], seed=seed, extra={"response_length_mean": 5.0})
    return tmp_path / "runs"


def test_a_fit_prints_a_table_and_writes_law_json_and_figures(ladder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(ladder), "--x", "data", "--predict", "N=5M", "--predict", "N=2e6,X=1000", "--target", "0.5"]
    assert main([*arguments, "--bootstrap", "200", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "K_max 0.3" in printed and "converged, 5 of 5 starts agree" in printed
    assert "new size" in printed and "held out and predicted from the smaller ones" in printed
    assert "data for loss 0.5" in printed and "crossover in data" in printed
    law = json.loads((out / "law.json").read_text())
    assert law["k_max"] == pytest.approx(0.3, rel=0.1) and law["x"] == "data" and law["bootstrap"]["seed"] == 0
    assert len(law["data_sha256"]) == 64 and law["objective"] == "log" and len(law["models"]) == 5
    assert any("mean of 2 runs" in note for note in law["data_notes"])
    for name in ("curves", "saturation", "residuals", "n0_profile", "response_length"):
        assert (out / f"{name}.png").stat().st_size > 5000 and (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_starts_that_failed_among_the_runs_are_told_and_left_out(ladder, capsys):
    assert main([*map(str, sorted(ladder.iterdir())), "--x", "data", "--bootstrap", "0"]) == 0
    alone = capsys.readouterr().out
    for name, text in {"gone": None, "empty": "", "blank": "\n\n", "torn": '{"step": 0, "test_lo'}.items():
        (ladder / name / "checkpoints").mkdir(parents=True)
        if text is not None:
            (ladder / name / "metrics.jsonl").write_text(text)
    write_run(ladder / "begun", 20_000, [0.9])  # killed in its first step
    (ladder / "notes.txt").write_text("which seeds were tuned on")
    assert main([*map(str, sorted(ladder.iterdir())), "--x", "data", "--bootstrap", "0"]) == 0
    said = capsys.readouterr().out
    for name in ("gone holds no metrics", "empty/metrics.jsonl has no", "blank/metrics.jsonl has", "torn/metrics.jsonl has"):
        assert re.search(rf"left out: \S*/{re.escape(name)}", said), name
    assert "begun/metrics.jsonl" in said and "no evaluation after step 0" in said and "notes.txt is neither" in said

    def fitted(text):
        return re.search(r"K_max \S+", text)[0], re.search(r"N_0 \S+", text)[0]

    assert fitted(said) == fitted(alone)


def test_where_no_run_has_a_point_the_reasons_are_the_error(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "metrics.jsonl").write_text("")
    assert main([str(tmp_path / "one"), str(tmp_path / "two")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "one holds no metrics.jsonl" in said and "two/metrics.jsonl has no line" in said


def test_a_fit_that_is_not_identified_says_so_in_the_table(tmp_path, capsys):
    for n in (20_000, 60_000, 200_000):
        write_run(tmp_path / f"n{n}", n, [0.9, *(0.9 * np.arange(1, 25) ** (-n / 1e6))])
    assert main([str(tmp_path), "--x", "data", "--bootstrap", "50"]) == 0
    assert "! NOT IDENTIFIED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, code",
    [(["--help"], 0), (["--x", "flops"], 2), (["--predict", "72e9"], 2), (["--predict", "N=-3"], 2),
     (["--target", "2"], 2), (["--bootstrap", "-1"], 2), (["/nowhere"], 1)],
)  # fmt: skip
def test_exit_codes_are_0_done_1_failed_2_bad_usage(arguments, code, capsys):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out or captured.err
    if code == 1:
        assert captured.err.count("\n") == 1 and captured.err.startswith("python -m scaling: ")


def test_without_arguments_table_6_stands_beside_our_fits(capsys):
    assert main(["--bootstrap", "100"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(("base L(N", "instruct L(N"))]
    assert len(rows) == 12
    assert sum(line.endswith(" reproduced") and "NOT" not in line for line in rows) == 8
    missed = [line for line in rows if "NOT reproduced" in line]
    assert [line.split("  ")[0] for line in missed] == [
        "instruct L(N,C) <= 32B", "instruct L(N,D) <= 32B", "instruct L(N,C) full", "instruct L(N,D) full"
    ]  # fmt: skip
    assert printed.count("no warm-up clip") == 2 and printed.count("703 points") == 2
    assert "calibrated on all points (the paper's, not a prediction)" in printed


def test_a_reuse_experiment_gets_the_reuse_table(capsys, tmp_path):
    path = ROOT / "scaling" / "data" / "data_reuse_7b.csv"
    assert main([str(path), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("tau 100") == 2
    assert len(list(tmp_path.glob("reuse-*.png"))) == 2


def test_the_package_runs_where_jax_cannot_be_imported(tmp_path):
    blocked = tmp_path / "blocked" / "jax"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('jax is not here')\n")
    environment = os.environ | {"PYTHONPATH": f"{blocked.parent}{os.pathsep}{ROOT}"}
    code = "import scaling; r = scaling.load('scaling/data/qwen2.5_post_training.csv').select(family='qwen2.5-base');"
    code += "print(round(scaling.fit(r, objective='linear').k_max, 4))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "0.133", done.stderr


def law_lines(text):
    return [line for line in text.splitlines() if "log10 L = -k(N)" in line]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--predict", "N=72e9,X=1e20"], "72B   1.000e+20"),
        (["--target", "0.5"], "compute for loss 0.5"),
        (["--warmup", "3"], "711 points"),  # 732 of seven curves, each without its first 3
        (["--ending", "80"], "172 points"),
        (["--family", "qwen2.5-instruct"], "712 points"),
        (["--x", "data"], "X = data D (prompts)"),
        (["--objective", "huber"], "objective huber"),
        (["--weights", "point"], "weights point"),
        (["--size", "n_params"], "732 points"),
        (["--resample", "iid"], "iid"),
        (["--block", "7"], "block 7"),
    ],
)
def test_without_metrics_every_option_acts_on_the_published_curves(arguments, said, capsys):
    assert main([*arguments, "--bootstrap", "20"]) == 0
    printed = capsys.readouterr().out
    assert said in printed and "the published curves of arXiv 2509.25300" in printed
    families = 1 if "--family" in arguments else 2
    assert len(law_lines(printed)) == families and ("qwen2.5-base:" in printed) == (families == 2)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--resample", "run"], "resample"),
        (["--resample", "question"], "question"),
        (["--resample", "iid", "--block", "3"], "block=3"),
        (["--bootstrap", "0", "--resample", "iid"], "--resample"),
        (["--bootstrap", "0", "--block", "3"], "--block"),
        (["--size", "n_params_total"], "n_params_total"),
        (["--family", "llama"], "llama"),
        (["--predict", "N=72"], "N=72"),
    ],
)
def test_an_option_that_cannot_act_is_refused_by_name(arguments, named, capsys):
    assert main(arguments) != 0
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--x=data",
        "--predict=N=72e9",
        "--target=0.5",
        "--objective=linear",
        "--weights=point",
        "--resample=iid",
        "--block=3",
        "--compare",
    ],
)
def test_options_that_mean_nothing_to_reuse_are_refused_by_name(option, capsys):
    path = ROOT / "scaling" / "data" / "data_reuse_7b.csv"
    assert main([str(path), option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_the_bootstrap_of_a_reuse_table_is_what_was_asked_for(capsys):
    path = str(ROOT / "scaling" / "data" / "data_reuse_7b.csv")
    texts = []
    for replicates in ("50", "2000"):
        assert main([path, "--bootstrap", replicates]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    assert main([path, "--bootstrap", "0"]) == 1 and "--bootstrap" in capsys.readouterr().err


def test_a_loss_that_cannot_be_is_printed_as_no_prediction(capsys):
    assert main(["--family", "qwen2.5-base", "--bootstrap", "20", "--predict", "N=72e9,X=640"]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("72B   6.400e+02")]
    assert "no prediction" in row and "34." not in row and "fitted" not in row
    assert "is another unit meant?" in printed
