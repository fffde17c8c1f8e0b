"""A whole run with int8 weights, an int8 cache and truncated importance sampling in the real command."""

import json
import math

import pytest

from tests.run.commands import CONFIG, SHORT, jaxgrpo, untimed_metrics

INT8 = ["rollout.weights=int8", "rollout.cache_dtype=int8", "algo.tis_cap=2"]
SHORTER = ["train.steps=4", "eval.limit=32"]


@pytest.fixture(scope="module")
def int8_run(env, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("int8") / "run"
    done = jaxgrpo("train", CONFIG, *SHORT, *SHORTER, *INT8, f"run_dir={run_dir}", env=env)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_it_trains_and_logs_the_mismatch_and_what_is_paid_for_it(int8_run):
    steps = untimed_metrics(int8_run)[1:]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    for record in steps:
        assert None not in [record[key] for key in ("policy_loss", "grad_norm", "entropy", "ratio")], "a NaN is written as null"
        assert 1e-4 < record["logprob_diff_mean"] < 0.1, "float32 without int8 has 1e-6"
        assert record["logprob_diff_mean"] < record["logprob_diff_max"] < 1
        assert record["tis_weight"] != 1 and math.isclose(record["tis_weight"], 1, abs_tol=0.05)
        assert 0 <= record["tis_clip_fraction"] < 0.05
        assert record["grad_norm"] > 0 and record["skipped_updates"] == 0


def test_without_the_cap_nothing_is_logged_about_it(whole_run):
    for record in untimed_metrics(whole_run):
        assert not [key for key in record if key.startswith("tis_")]
        assert record.get("logprob_diff_mean", 0) < 1e-5


@pytest.mark.parametrize("change", ["rollout.weights=", "rollout.cache_dtype=", "algo.tis_cap=0"])
def test_it_does_not_go_on_with_other_arithmetic(int8_run, env, change):
    kept = [option for option in INT8 if not option.startswith(change.split("=")[0])]
    refused = jaxgrpo("train", CONFIG, *SHORT, *SHORTER, *kept, change, f"run_dir={int8_run}", env=env)
    assert refused.returncode == 2
    assert change.split("=")[0] in refused.stderr
    assert json.loads((int8_run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
