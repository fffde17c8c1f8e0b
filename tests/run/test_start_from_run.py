"""`model=RUN[:STEP]`: a new run from the weights of another's checkpoint, and where it came from."""

import json
import shutil

import numpy as np
import pytest

from jaxgrpo.cli import main
from jaxgrpo.train.checkpoint import load_params_anywhere, read_checkpoint
from jaxgrpo.train.history import read_history
from jaxgrpo.train.stored import read_stored
from tests.run.commands import CONFIG, SHORT, jaxgrpo
from tests.run.small_world import World

ONE_UPDATE = "train.minibatch_prompts=16"  # a step, so that its policy is the one that sampled


def weights(params: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in params.items()}


@pytest.fixture(scope="module")
def other(env, whole_run, tmp_path_factory):
    """A run of two steps from step 4 of `whole_run`, whose folder is gone afterwards; and what it said."""
    folder = tmp_path_factory.mktemp("from")
    shutil.copytree(whole_run, folder / "first")
    own = [f"model={folder}/first:4", f"run_dir={folder}/second", "train.steps=2", ONE_UPDATE]
    said = jaxgrpo("train", CONFIG, *SHORT, *own, env=env)
    assert said.returncode == 0, said.stderr
    (folder / "first").rename(folder / "gone")
    return folder, said.stdout


def test_a_new_run_starts_from_the_weights_alone_and_says_where_they_come_from(other, whole_run):
    folder, said = other
    assert "warm-up   left out (warmup.steps=20)" in said
    assert f"origin    a new run from the weights of {folder}/first:4" in said
    start = weights(load_params_anywhere(folder / "second" / "warm_start"))
    saved = weights(read_checkpoint(whole_run / "checkpoints" / "4")[0])
    for name in saved:
        np.testing.assert_array_equal(start[name], saved[name], err_msg=name)
    lines = [json.loads(line) for line in (folder / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["samples"] == 0 and lines[1]["kl"] == pytest.approx(0, abs=1e-9), "the reference is the run's own start"
    first = json.loads((whole_run / "metrics.jsonl").read_text().splitlines()[0])
    assert {line["model_family"] for line in lines} == {first["model_family"]}
    assert {line["n_nominal"] for line in lines} == {first["n_nominal"]}
    stored = read_stored(folder / "second")
    assert stored.config.model == f"{folder}/first:4" and stored.config.warmup.steps == 0
    origin = stored.origin
    assert (origin["run"], origin["step"], origin["model_family"]) == (f"{folder}/first", 4, first["model_family"])
    assert origin["digest"] == stored.inputs["model"]["digest"] == stored.inputs["start"]["digest"]
    assert read_history(folder / "second")[0]["origin"] == origin


@pytest.mark.slow
def test_it_goes_on_by_itself_when_the_other_run_is_gone(other, env):
    folder, _ = other
    again = ["train", CONFIG, *SHORT, f"run_dir={folder}/second", "train.steps=3", ONE_UPDATE]
    done = jaxgrpo(*again, f"model={folder}/first", env=env)
    assert done.returncode == 0, done.stderr
    assert "going on after step 2" in done.stdout
    assert read_stored(folder / "second").origin["step"] == 4


def test_an_error_names_the_steps_there_are(other, whole_run, tmp_path, capsys):
    folder, _ = other
    world = World(tmp_path)
    assert world.refused(f"model={folder}/gone:5", "data.train=arithmetic", "data.test=arithmetic") == 1
    assert "has no checkpoint of that step; there are: 4, 6" in capsys.readouterr().err
    assert world.refused(f"model={folder}/gone/checkpoints/4", "data.train=arithmetic", "data.test=arithmetic") == 1
    assert f"write it as model={folder}/gone:4" in capsys.readouterr().err
    assert main(["train", str(folder / "second" / "config.yaml"), f"model={folder}/gone:6", "mesh.fsdp=8"]) == 2
    assert "with other content" in capsys.readouterr().err
