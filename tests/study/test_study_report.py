"""The report of a study on runs that were written by hand: what was done to the data stands in it."""

import numpy as np

from jaxgrpo.config import Config, replace
from jaxgrpo.study.design import FitConfig, PlannedRun, StudyConfig
from jaxgrpo.study.report import _verdict, write_report
from scaling.ladder import Share
from tests.scaling.synthetic_curves import write_run


def test_a_report_names_the_runs_that_were_averaged_and_the_evaluations_that_differ(tmp_path):
    planned, runs = [], {"g2": {"rollout.samples": 2}, "g4": {"rollout.samples": 4}}
    for name, keys in runs.items():
        for seed in (0, 1):
            directory = tmp_path / "runs" / f"{name}-seed{seed}"
            losses = [0.9, *(0.9 * np.arange(1, 9) ** -(0.05 + 0.1 * seed))]
            test_n = 250 if (name, seed) == ("g4", 1) else 500
            write_run(directory, 20_000, losses, seed=seed, extra={"n_nominal": 20_000, "test_n": test_n})
            planned.append(PlannedRun(name, seed, replace(Config(), keys | {"run_dir": str(directory)})))
    study = StudyConfig(study="group", out=str(tmp_path), seeds=(0, 1), runs=runs, fit=FitConfig(x=("data",)))
    said = []
    text = write_report(study, planned, "group.yaml", said.append).read_text()
    assert "G = 2: mini 20k: mean of 2 runs (g2-seed0 seed 0, g2-seed1 seed 1)" in text
    assert "MIXED EVALUATION: test_n is 500 in" in text and "250 in 20k (g4-seed1 seed 1)" in text
    assert any("MIXED EVALUATION" in line for line in said)


def test_a_verdict_agrees_with_the_figure_that_it_shows():
    assert "Came: 0.7959, 95 %" in _verdict("share", Share(39 / 49, 0.6, 0.9), 0.8) and "MISSED" in _verdict(
        "share", Share(39 / 49, 0.6, 0.9), 0.8
    )
    assert "Came: 0.80, 95 %" in _verdict("share", Share(0.8, 0.6, 0.9), 0.8)
