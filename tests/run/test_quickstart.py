import json
import time

import pytest

from jaxgrpo.data import heldout_problems, training_problems, warmup_examples
from tests.run.commands import CONFIG, jaxgrpo


def pass_at_1(run_dir) -> list[float]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [1 - record["test_loss"] for record in records if "test_loss" in record]


def test_the_quickstart_learns_arithmetic_by_reinforcement_alone(env, tmp_path):
    """Seed 0; the curves of all five seeds are in the README. Four minutes are the limit on two idle cores."""
    run_dir = tmp_path / "run"
    started = time.monotonic()
    done = jaxgrpo("train", CONFIG, f"run_dir={run_dir}", env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    print(f"{time.monotonic() - started:.0f} s")
    curve = pass_at_1(run_dir)
    assert curve[0] <= 0.25
    assert curve[-1] >= 0.80
    for expected in ("result", "Pass@1 at step 60", "jaxgrpo export"):
        assert expected in done.stdout
    picture = (run_dir / "plots" / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    again = jaxgrpo("train", CONFIG, f"run_dir={run_dir}", env=env)
    assert again.returncode == 0, again.stderr
    assert "finished at step 60" in again.stdout
    assert pass_at_1(run_dir) == curve


def test_no_problem_of_the_quickstart_is_held_out():
    heldout = {problem.messages[0]["content"] for problem in heldout_problems()}
    assert len(heldout) == 512
    for seed in (0, 1):
        trained = {problem.messages[0]["content"] for problem in training_problems(seed, 0, 60 * 64)}
        warmed = {problem.messages[0]["content"] for problem, _ in warmup_examples(seed, 0, 1620 * 128, 0.0)}
        assert not heldout & (trained | warmed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_other_seeds_of_the_quickstart_learn_too(seed, env, tmp_path):
    run_dir = tmp_path / "run"
    assert jaxgrpo("train", CONFIG, f"run_dir={run_dir}", f"seed={seed}", env=env, timeout=900).returncode == 0
    curve = pass_at_1(run_dir)
    assert curve[0] <= 0.25
    assert curve[-1] >= 0.80


@pytest.mark.slow
def test_rewards_shuffled_among_the_samples_teach_nothing(env, tmp_path):
    run_dir = tmp_path / "run"
    assert jaxgrpo("train", CONFIG, f"run_dir={run_dir}", "reward.shuffle=true", env=env, timeout=900).returncode == 0
    assert max(pass_at_1(run_dir)) <= 0.35
