"""What a run says of its own time: a profile of one step, and seconds for every phase. The sampler's log-probabilities serve as
the old ones meanwhile."""

import gzip
import json

import pytest

from jaxgrpo.train.metrics import PHASES
from tests.run.commands import CONFIG, SHORT, jaxgrpo


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(env, tmp_path_factory):
    run = tmp_path_factory.mktemp("profile") / "run"
    done = jaxgrpo(
        "train", CONFIG, *SHORT, "train.steps=2", "train.profile=2", "algo.old_logprobs=rollout", f"run_dir={run}", env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"profile   {run / 'profile'}" in done.stdout
    assert "where the time went" in done.stdout
    return run


def test_the_profile_shows_the_phases_of_its_step(run):
    (trace,) = (run / "profile").rglob("perfetto_trace.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"rollout and grade", "sync", "score", "update", "eval"} <= names
    assert list((run / "profile").rglob("*.xplane.pb")), "what TensorBoard reads"


def test_every_step_says_where_its_seconds_went(run):
    _, *steps = lines(run)
    assert len(steps) == 2
    for line in steps:
        assert all(line[phase] >= 0 for phase in (*PHASES, "other_s"))
        assert sum(line[phase] for phase in PHASES) + line["other_s"] == pytest.approx(line["step_s"])
        assert line["update_s"] > 0 and line["rollout_s"] > 0 and 0 <= line["other_s"] < line["step_s"] / 2
        assert 0 < line["mfu"] < line["mfu_full_attention"] and line["update_bytes_per_s"] > 0


def test_the_samplers_log_probabilities_are_nearly_the_trainers(run, whole_run):
    """The same samples in the first step; float32 on both sides, so that what is learned differs in the last digits only."""
    ours, recomputed = lines(run)[1], lines(whole_run)[1]
    for key in ("reward_mean", "response_length_mean", "tokens"):
        assert ours[key] == recomputed[key]
    for key in ("grad_norm", "policy_loss", "ratio"):
        assert ours[key] == pytest.approx(recomputed[key], rel=1e-3, abs=1e-5)
    assert ours["compute_flops_total"] < recomputed["compute_flops_total"], "no pass for old log-probabilities"


def test_a_profile_beyond_the_last_step_is_refused(env, tmp_path):
    done = jaxgrpo("train", CONFIG, *SHORT, "train.profile=7", f"run_dir={tmp_path / 'run'}", env=env)
    assert done.returncode == 2
    assert "train.profile=7 is beyond the last step, train.steps=6" in done.stderr
