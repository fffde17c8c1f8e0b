"""`rollout.driver=jetstream` through the real command."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from tests.run.commands import CONFIG, SHORT, environment, eval_files, jaxgrpo, untimed_metrics


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jetstream") is None, reason="google-jetstream is not installed")
def test_a_run_through_jetstreams_driver_learns_the_same(tmp_path):
    """Same samples, hence the same updates; only the sampler's log-probabilities differ in their last digits."""
    env = environment(tmp_path / "xla", devices=2)
    runs = {}
    for driver in ("engine", "jetstream"):
        run = runs[driver] = tmp_path / driver
        done = jaxgrpo("train", CONFIG, *SHORT, "train.steps=2", f"run_dir={run}", f"rollout.driver={driver}", env=env)
        assert done.returncode == 0, done.stderr[-3000:]
    assert eval_files(runs["engine"]) == eval_files(runs["jetstream"])
    for ours, theirs in zip(*(untimed_metrics(run) for run in runs.values()), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if key.startswith("logprob_diff"):
                np.testing.assert_allclose(theirs[key], value, atol=1e-5)
            else:
                assert json.dumps(theirs[key]) == json.dumps(value), key
