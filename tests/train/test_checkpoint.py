"""Which checkpoints are kept, on a local disk; tests/storage does the same to a run on gs://."""

import jax.numpy as jnp
import pytest

from jaxgrpo.config import CheckpointConfig, ConfigError, load_config
from jaxgrpo.train.checkpoint import Checkpoints
from jaxgrpo.train.state import TrainState

LOSSES = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.2, 5: 0.6, 6: 0.7, 7: 0.8}


def saved(folder, measured: dict[int, dict], **config) -> Checkpoints:
    checkpoints = Checkpoints(folder, CheckpointConfig(every=1, **config))
    for step, metrics in measured.items():
        state = TrainState({"w": jnp.full(4, step, jnp.float32)}, {"m": jnp.zeros(4)})
        checkpoints.save(step, state, {"step": step}, metrics | {"entropy": 1.0})
        checkpoints.wait()
    return checkpoints


def test_the_newest_and_the_lowest_losses_are_kept(tmp_path):
    measured = {step: {"test_loss": loss} for step, loss in LOSSES.items()}
    checkpoints = saved(tmp_path, measured, keep=2, best=2)
    assert checkpoints.steps() == [7, 6, 4, 2]
    assert checkpoints.best() == (4, 0.2)
    checkpoints.close()
    again = saved(tmp_path, {8: {"test_loss": 0.25}, 9: {"test_loss": 0.9}, 10: {}}, keep=2, best=2)  # in another process
    assert again.steps() == [10, 9, 8, 4]
    assert again.best() == (4, 0.2)
    again.close()


def test_the_highest_of_a_metric_that_is_no_loss_is_kept_and_the_metric_may_change(tmp_path):
    measured = {step: {"suite_math_500": loss, "test_loss": 1 - loss} for step, loss in LOSSES.items()}
    checkpoints = saved(tmp_path, measured, keep=1, best=2, metric="suite_math_500")
    assert checkpoints.steps() == [7, 6] and checkpoints.best() == (7, 0.8)
    checkpoints.close()
    again = saved(tmp_path, {8: {"reward_mean": 0.1}, 9: {"test_loss": 0.0}}, keep=1, best=1, metric="reward_mean")
    assert again.steps() == [9, 8] and again.best() == (8, 0.1)
    again.close()


def test_without_a_best_only_the_newest_are_kept(tmp_path):
    checkpoints = saved(tmp_path, {step: {"test_loss": loss} for step, loss in LOSSES.items()}, keep=3)
    assert checkpoints.steps() == [7, 6, 5]
    checkpoints.close()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["checkpoint.metric=loss"], "checkpoint.metric=loss is none of test_loss, reward_mean and suite_NAME"),
        (["eval.every=0"], "checkpoint.metric=test_loss is never measured: set eval.every above 0"),
        (["checkpoint.metric=suite_gsm8k"], "suite_gsm8k is never measured: set eval.suites"),
        (["eval.every=3", "checkpoint.every=4"], "checkpoint.every=4 is no multiple of eval.every=3.* checkpoint.every=6"),
    ],
)
def test_a_metric_that_checkpoints_do_not_come_with_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["checkpoint.best=1", *overrides])
    load_config(None, overrides)
