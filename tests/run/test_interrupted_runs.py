import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo.train.checkpoint import read_checkpoint
from tests.run.commands import CONFIG, ROOT, SHORT, eval_files, jaxgrpo, untimed_metrics

KILLED_RUN = Path(__file__).with_name("killed_run.py")


def assert_same_run(run_dir: Path, whole: Path) -> None:
    mine, theirs = read_checkpoint(run_dir)[0], read_checkpoint(whole)[0]
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(theirs[name]), err_msg=name)
    assert untimed_metrics(run_dir) == untimed_metrics(whole)
    assert eval_files(run_dir) == eval_files(whole)


def compilation_counts(run_dir: Path) -> list[int]:
    """The cumulative count of every step, evaluations included."""
    return [json.loads(line)["compilations"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("phase", "step"), [("rollout", 4), ("update", 4), ("save", 4)])
def test_a_run_killed_anywhere_resumes_to_the_very_same_result(phase, step, env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", CONFIG, *SHORT, f"run_dir={run_dir}"]
    killed = subprocess.run(
        [sys.executable, str(KILLED_RUN), phase, str(step), *arguments],
        env=env | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    committed = sorted(int(child.name) for child in (run_dir / "checkpoints").iterdir() if child.name.isdigit())
    assert committed == [2], "the kill has to come before the checkpoint of step 4 is complete"
    if phase == "save":
        assert untimed_metrics(run_dir)[-1]["step"] == 4, "metrics are on disk before the checkpoint that claims them"
        assert (run_dir / "eval" / "heldout-4.jsonl").exists()
    resumed = jaxgrpo(*arguments, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 2" in resumed.stdout
    assert_same_run(run_dir, whole_run)
    compilations = compilation_counts(run_dir)
    assert compilations[5] == compilations[6], "a resumed process has compiled everything after its second step"


def test_lines_torn_by_a_kill_and_lines_after_the_checkpoint_are_cut(env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", CONFIG, *SHORT, f"run_dir={run_dir}"]
    assert jaxgrpo(*arguments, "train.steps=2", env=env).returncode == 0
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "reward_mean": 9.0}) + '\n{"step": 4, "rew')
    (run_dir / "eval" / "heldout-4.jsonl").write_text("leftover\n")
    resumed = jaxgrpo(*arguments, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run_dir, whole_run)


def test_nothing_compiles_after_the_second_step_of_a_process(env, whole_run, tmp_path):
    counts = compilation_counts(whole_run)
    assert counts[2] > 0
    assert len(set(counts[2:])) == 1, counts


def test_a_run_resumes_on_another_number_of_devices(env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", CONFIG, *SHORT, f"run_dir={run_dir}"]
    assert jaxgrpo(*arguments, "train.steps=4", env=env).returncode == 0
    one_device = env | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    resumed = jaxgrpo(*arguments, env=one_device)
    assert resumed.returncode == 0, resumed.stderr
    assert "1 x cpu" in resumed.stdout
    mine, theirs = untimed_metrics(run_dir), untimed_metrics(whole_run)
    assert mine[:5] == theirs[:5]
    assert mine[6]["samples"] == theirs[6]["samples"]
    assert mine[6]["response_length_mean"] == pytest.approx(theirs[6]["response_length_mean"], rel=0.2)


def test_an_end_to_end_run_on_eight_devices(env, tmp_path):
    run_dir = tmp_path / "run"
    done = jaxgrpo(
        "train",
        CONFIG,
        *SHORT,
        f"run_dir={run_dir}",
        "train.steps=3",
        *("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"),
        env={k: v for k, v in env.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    assert "8 x cpu, mesh data 2 x fsdp 2 x tensor 2" in done.stdout
    metrics = untimed_metrics(run_dir)
    assert [m["step"] for m in metrics] == [0, 1, 2, 3]
    assert all(m["logprob_diff_max"] < 1e-4 for m in metrics[1:])
    assert all(np.isfinite(m["grad_norm"]) and m["grad_norm"] > 0 for m in metrics[1:])
