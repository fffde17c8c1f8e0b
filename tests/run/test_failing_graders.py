"""Runs whose graders really fail: worker processes that are ended by a limit on time which no answer can keep."""

import json
import subprocess

import pytest

from eval.sampling import Graded, Outcome
from jaxgrpo.config import RewardConfig
from jaxgrpo.data import EncodedPrompt, build_tokenizer, training_problems
from jaxgrpo.reward import Grade
from jaxgrpo.rollout.scheduler import Response
from jaxgrpo.train.watch import LimitReached, RewardWatch
from tests.run.commands import CONFIG, ROOT, SHORT, jaxgrpo, untimed_metrics

CAUSE = "wall limit of 1e-06 s exceeded"


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    """A run of two steps in which the graders of 6 of 8 problems fail, on a machine of any speed."""
    data = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [
        {
            "data_source": "arithmetic" if problem.index % 4 == 3 else "math__arithmetic",
            "prompt": list(problem.messages),
            "reward_model": {"ground_truth": problem.ground_truth},
        }
        for problem in training_problems(0, 0, 8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ("train.steps=2", "data.prompts_per_step=4", "train.minibatch_prompts=4", "warmup.steps=0", "rollout.samples=2")
    where = (f"data.train={data}", f"data.test={data}", "data.tokenizer=arithmetic", "reward.wall_seconds=1e-6")
    return [*SHORT, *keys, *where, "checkpoint.every=100"]


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def check_stopped(overrides: list[str], env, run_dir) -> None:
    stopped = jaxgrpo("train", CONFIG, *overrides, f"run_dir={run_dir}", "reward.max_equal=0.7", env=env)
    assert stopped.returncode == 1
    heldout, training = (line for line in lines(stopped.stdout, "WARNING   step") if "grader failed" in line)
    assert heldout.startswith("WARNING   step 0, heldout: the grader failed on 6 of 8 answers (75%), which earn 0; one of them")
    assert training.startswith("WARNING   step 1: the grader failed on 6 of 8 answers (75%), which earn 0; one of them: proble")
    assert all(CAUSE in line and ", answer '" in line for line in (heldout, training))
    (message,) = stopped.stderr.strip().splitlines()
    assert "the grader failed on 75% of the answers, past reward.max_failed=0.5 and all rewards are equal in " in message
    assert f"past reward.max_equal=0.7: step 1 of 2 is saved in {run_dir}; mend the cause and the same command" in message
    assert "With reward.max_failed=1 reward.max_equal=1 a run goes on whatever the share." in message
    assert (run_dir / "checkpoints" / "1").is_dir()
    assert [line.get("grader_failed_fraction") for line in untimed_metrics(run_dir)] == [None, 0.75]


@pytest.mark.slow
def test_a_run_that_stopped_at_a_limit_goes_on_when_told(overrides, env, tmp_path):
    run_dir = tmp_path / "run"
    check_stopped(overrides, env, run_dir)
    resumed = jaxgrpo("train", CONFIG, *overrides, f"run_dir={run_dir}", "reward.max_failed=1", env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 1" in resumed.stdout
    assert any("graders failed 75.0%" in line for line in lines(resumed.stdout, "step 2/2"))
    metrics = untimed_metrics(run_dir)
    assert [line.get("grader_failed_fraction") for line in metrics] == [None, 0.75, 0.75]
    assert [line["grader_errors"] for line in metrics] == [6, 12, 24]


def test_no_launcher_starts_a_run_that_stopped_at_a_limit_again():
    assert LimitReached.on_all_hosts
    script = f"source {ROOT}/launch/common.sh; worth_another_start {LimitReached.exit_code}"
    assert subprocess.run(["bash", "-c", script], check=False).returncode == 1


@pytest.fixture
def said() -> list[str]:
    return []


def step(watch: RewardWatch, number: int, grades: list[list[Grade]]) -> dict:
    """A step of the watch on answers that say nothing, and its line of metrics."""
    prompts = [EncodedPrompt(problem, None) for problem in training_problems(0, 0, len(grades))]
    tokenizer = build_tokenizer()
    answer = Response(request=0, sample=0, tokens=tokenizer("12")["input_ids"], logps=[], finish="stop")
    graded = Graded([[answer] * len(group) for group in grades], grades, 1.0, 1.0)
    equal = sum(len({grade.score for grade in group}) == 1 for group in grades) / len(grades)
    return watch.step(number, prompts, graded, tokenizer, equal) | {"equal_reward_groups": equal}


def test_the_first_step_without_any_difference_among_rewards_is_told_and_stops_only_where_asked(said):
    zeros, mixed = [[Grade(0.0)] * 2] * 4, [[Grade(0.0), Grade(1.0)]] * 4
    watch = RewardWatch(RewardConfig(), said.append)
    assert watch.past(step(watch, 1, mixed)) == [] and said == []
    for number in (2, 3):
        watch.stop(step(watch, number, zeros), "step saved")  # reward.max_equal=1: never
    assert said == ["WARNING   step 2: all rewards of each of the 4 groups are equal (mean 0.000): nothing is learnt from them"]
    watch = RewardWatch(RewardConfig(max_equal=0.5), said.append)
    watch.stop(step(watch, 4, zeros[:2] + mixed[:2]), "step saved")  # at the limit, not past it
    with pytest.raises(LimitReached, match=r"equal in 75% of the groups, past reward.max_equal=0.5: step 5 saved; mend"):
        watch.stop(step(watch, 5, zeros[:3] + mixed[:1]), "step 5 saved")


def test_a_run_that_goes_on_after_a_limit_is_told_how_to_ignore_it(said):
    watch = RewardWatch(RewardConfig(max_failed=0.25), said.append)
    watch.begin([])
    watch.begin([{"step": 1}])
    assert said == []
    record = step(watch, 1, [[Grade(0.0, "died"), Grade(1.0)]])
    said.clear()
    watch.begin([record])
    assert said == [
        "limits    the step before was past reward.max_failed=0.25 (the grader failed on 50% of the answers); "
        "With reward.max_failed=1 a run goes on whatever the share"
    ]


def test_a_failure_is_one_printable_line_however_long_its_answer_and_its_cause(said):
    watch = RewardWatch(RewardConfig(), said.append)
    answer = "first\n\x1b[31m words" + " and more" * 10_000 + "\ud800 last words"
    error = "ValueError: a\nlong\tcause\x07 " + "x" * 1000
    watch.evaluation("gsm8k", 7, [Outcome(17, 0, answer, 0.0, 5, False, error), Outcome(18, 0, "", 1.0, 5, False)])
    (line,) = said
    assert line.startswith("WARNING   step 7, gsm8k: the grader failed on 1 of 2 answers (50%), which earn 0; one of them: pro")
    assert line.isprintable() and len(line) < 400 and "first" in line and "last words" in line
    watch.evaluation("gsm8k", 8, [Outcome(17, 0, answer, 0.0, 5, False, error)])
    assert len(said) == 1
