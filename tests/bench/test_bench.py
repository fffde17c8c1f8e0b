"""What `jaxgrpo bench` counts and prints; what it times is looked at by people."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxgrpo.bench.task import Task, cache_bytes_per_token, response_lengths, weight_bytes
from jaxgrpo.config import ConfigError
from tests.run.commands import ROOT, environment, jaxgrpo

TINY = ("--layers=1", "--hidden=32", "--heads=2", "--kv-heads=1", "--ffn=64", "--vocab=64", "--prompts=4", "--samples=2")
SHORT = ("--prompt-len=8", "--new-tokens=12", "--repeats=2")


def test_long_tail_lengths_have_a_mean_of_a_quarter_and_a_few_at_the_limit():
    lengths = response_lengths(Task(lengths="long-tail"))
    assert lengths.shape == (64, 8)
    assert abs(lengths.mean() - 32) < 0.5
    assert lengths.min() == 1 and lengths.max() == 128
    assert 0.01 < np.mean(lengths == 128) < 0.04
    assert np.median(lengths) < 24
    np.testing.assert_array_equal(lengths, response_lengths(Task(lengths="long-tail")))
    assert (response_lengths(Task()) == 128).all()


def test_bytes_of_a_decoded_token_are_those_of_the_published_architecture():
    task = Task(model="random:qwen2.5-7b")
    model = task.model_config()
    assert weight_bytes(model, "bfloat16") == 2 * (7_615_616_512 - 152_064 * 3584), "the untied table is only looked up"
    assert cache_bytes_per_token(model, "bfloat16") == 2 * 28 * 4 * 128 * 2


@pytest.mark.parametrize("part", ["rollout", "update", "step"])
def test_the_command_prints_one_json_object_whose_figures_fit_together(part, tmp_path):
    out = tmp_path / "out.json"
    env = environment(tmp_path / "xla", devices=2)
    done = jaxgrpo("bench", part, *TINY, *SHORT, "--lengths=long-tail", "--json", str(out), env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert result["bench"] == part and result["machine"]["devices"] == 2
    assert result["command"].startswith(f"jaxgrpo bench {part} ") and result["versions"]["jax"]
    assert result["peak_rss_mb"] > 50
    lengths = response_lengths(Task(prompts=4, samples=2, prompt_len=8, new_tokens=12, lengths="long-tail"))
    timed = {"rollout": "rollout", "update": "learn", "step": "rollout"}[part]
    spread = result["rollout_s"] if part == "rollout" else result["wall_s"][timed]
    assert spread["min"] <= spread["median"] <= spread["max"] and len(spread["all"]) == 2
    if part == "update":
        assert result["update_tokens_per_s"] == pytest.approx((8 + lengths).sum() / spread["median"], rel=1e-6)
    else:
        assert result["rollout_tokens_per_s"] == pytest.approx(lengths.sum() / spread["median"], rel=1e-6)
    # Operations written out: every prompt once, logits after its last token; every response token but the last, with attention.
    layer = 32 * 16 * (2 * 2 + 2 * 1) + 3 * 32 * 64 + (2 + 2 * 1) * 16 + 2 * 32
    prompt = 4 * (8 * 2 * (layer + 32) + 2 * 64 * 32 + 4 * 2 * 16 * 36)
    tokens = sum((n - 1) * 2 * (layer + 32 + 64 * 32) + 4 * 2 * 16 * sum(8 + i for i in range(1, n)) for n in lengths.ravel())
    if part == "rollout":
        assert result["flops_per_s"] * spread["median"] == pytest.approx(prompt + tokens)
        assert 0 < result["decode"]["bytes_share_of_peak"] and 0 < result["flops_share_of_peak"]
    else:
        # Every prompt once, every response token but the last, logits of responses alone; three passes and a reference.
        visible = 4 * sum(range(1, 9)) + sum(8 + i for n in lengths.ravel() for i in range(1, n))
        states = 4 * 8 + (lengths - 1).sum()
        forward = states * 2 * (layer + 32) + lengths.sum() * 2 * 64 * 32 + 4 * 2 * 16 * visible
        assert result["update_flops_per_s"] * result["wall_s"]["update"]["median"] == pytest.approx(3 * forward)
        assert result["useful_tokens"] == (8 + lengths).sum()
        assert result["computed_tokens"] >= states
        if part == "step":
            assert result["flops_per_s"] * result["step_s"] == pytest.approx(prompt + tokens + 4 * forward)


def test_sizes_that_cannot_be_are_refused(tmp_path):
    done = jaxgrpo("bench", "rollout", *TINY, *SHORT, "--slots=7", env=environment(tmp_path, devices=2))
    assert done.returncode == 2
    assert "rollout.slots=7 does not divide over 2" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_lengths_rule_is_bad_usage():
    command = [sys.executable, "-m", "jaxgrpo.cli", "bench", "rollout", "--lengths", "short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "long-tail" in done.stderr


@pytest.mark.parametrize("change, message", [({"kv_heads": 3}, "--kv-heads 3"), ({"layers": 0}, "--layers 0: it needs")])
def test_a_task_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Task(**change).check()
