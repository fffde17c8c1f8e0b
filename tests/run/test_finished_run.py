"""A run that was once trained for more steps than its config asks for: what a second call of the quickstart finds."""

import pytest
import yaml

from tests.run.commands import CONFIG, SHORT, environment, jaxgrpo


@pytest.mark.slow
def test_a_run_of_more_steps_is_found_finished_and_keeps_them(tmp_path):
    env, run = environment(tmp_path / "xla", devices=1), tmp_path / "run"
    command = ["train", CONFIG, *SHORT, "warmup.steps=0", "eval.every=0", f"run_dir={run}"]
    longer = jaxgrpo(*command, "train.steps=2", env=env)
    assert longer.returncode == 0, longer.stderr
    before = (run / "metrics.jsonl").read_bytes()
    again = jaxgrpo(*command, "train.steps=1", env=env)
    assert again.returncode == 0, again.stderr
    assert "finished: it has 2 steps, more than train.steps=1; train.steps=4 would go on" in again.stdout
    assert (run / "metrics.jsonl").read_bytes() == before and (run / "checkpoints" / "2").is_dir()
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 2
