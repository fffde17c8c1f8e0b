"""A resumed run looks at what it goes on with: settings and the content of its inputs, as the checkpoint has them."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgrpo.cli import main
from jaxgrpo.train.seals import unsealed
from jaxgrpo.train.stored import read_stored
from scaling.history import changes
from tests.run.small_world import World, write_problems


@pytest.fixture(scope="module")
def trained(env, tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("trained")).make()
    world.train(env)
    return world


@pytest.fixture
def world(trained, tmp_path) -> World:
    """A copy elsewhere, which is no change."""
    return trained.copy(tmp_path / "moved")


def flip_one_bit(world: World) -> None:
    file = world.folder / "model" / "model.safetensors"
    weights = load_file(file)
    norm = weights["model.norm.weight"]
    norm[3] = np.nextafter(norm[3], np.float32(9), dtype=np.float32)
    save_file(weights, file, metadata={"format": "pt"})


def merge_otherwise(world: World) -> None:
    file = world.folder / "model" / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    file.write_text(json.dumps(rules))


def talk_otherwise(world: World) -> None:
    file = world.folder / "model" / "chat_template.jinja"
    file.write_text(file.read_text().replace("helpful", "useful"))


def last_row_gone(name: str):
    return lambda world: (world.folder / name).write_text(
        "".join((world.folder / name).read_text(encoding="utf-8").splitlines(True)[:-1])
    )


CASES = {
    "one weight": (flip_one_bit, [], r"model: \S+/trained\d+/model -> \S+/moved/model, with other content"),
    "tokenizer": (merge_otherwise, [], r"data.tokenizer: \S+ -> \S+/moved/model, with other content"),
    "chat template": (talk_otherwise, [], r"data.tokenizer: \S+ -> \S+, with other content"),
    "training data": (last_row_gone("train.jsonl"), [], r"data.train: \S+ -> \S+/train.jsonl, with other content"),
    "held-out data": (last_row_gone("test.jsonl"), [], r"data.test: \S+ -> \S+/test.jsonl, with other content"),
    "another seed": (lambda world: None, ["seed=1"], "seed: 0 -> 1"),
    "no config.yaml": (lambda world: (world.run_dir / "config.yaml").unlink(), ["optim.beta1=0.8"], "optim.beta1: 0.9 -> 0.8"),
    "empty config.yaml": (lambda world: (world.run_dir / "config.yaml").write_text(""), ["seed=1"], "seed: 0 -> 1"),
    "a warm-up": (lambda world: None, ["warmup.steps=3"], "warmup.steps: 0 -> 3"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_changed_is_refused_with_the_remedy(case, world, capsys):
    change, overrides, words = CASES[case]
    change(world)
    before = {path: path.read_bytes() for path in world.run_dir.rglob("*") if path.is_file() and path.name != "config.yaml"}
    assert world.refused("train.steps=4", *overrides) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert "says checkpoint 2" in said and "checkpoint.accept_changes=true" in said and str(world.run_dir) in said
    assert {path: path.read_bytes() for path in before} == before


def test_an_edited_config_file_is_refused_as_config_and_mended_where_it_is_not(world, capsys):
    file = world.run_dir / "config.yaml"
    file.write_text(file.read_text().replace("clip_low: 0.2", "clip_low: 0.3"))
    own = ["model=" + str(world.folder / "model")]
    assert world.refused(*own, config=str(file)) == 2
    assert "algo.clip_low: 0.2 -> 0.3" in capsys.readouterr().err
    stored = read_stored(world.run_dir)
    assert stored.config.algo.clip_low == 0.2
    assert stored.notes == ("config.yaml of the run says otherwise (algo.clip_low): checkpoint 2 says how it was configured",)


@pytest.mark.slow
def test_moved_inputs_are_no_change_and_a_learning_rate_is_one_that_is_told(env, world):
    (world.run_dir / "config.yaml").unlink()
    shutil.copytree(world.run_dir / "checkpoints" / "2", world.run_dir / "checkpoints" / "7")
    said = world.train(env, "train.steps=3", "optim.lr=1e-3", "eval.limit=4")
    assert "config.yaml of the run is missing: checkpoint 2 says how it was configured" in said
    assert "WARNING   changed after step 2: optim.lr: 0.0004 -> 0.001; eval.limit: 0 -> 4" in said
    assert "it says that it is of step 2, its folder that it is of step 7" in said and "going on after step 2" in said
    assert (world.run_dir / "before-1" / "checkpoints" / "7" / "params").is_dir()
    assert changes(world.run_dir) == [(2, ["optim.lr: 0.0004 -> 0.001", "eval.limit: 0 -> 4"])]
    assert (world.run_dir / "checkpoints" / "3").is_dir(), "a step that is a copy must not stand in the way of later saves"
    assert [json.loads(line)["step"] for line in (world.run_dir / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.slow
def test_accepted_changes_are_told_and_written_down_and_hold_from_then_on(env, world, capsys):
    flip_one_bit(world)
    write_problems(world.folder / "train.jsonl", first=200)
    said = world.train(env, "train.steps=3", "checkpoint.accept_changes=true")
    (told,) = [line for line in said.splitlines() if line.startswith("WARNING   accepted after step 2: ")]
    assert re.search(r"data.train: \S+ -> \S+, with other content; model: \S+ -> \S+, with other content", told)
    ((step, what),) = changes(world.run_dir)
    assert step == 2 and len(what) == 2
    stored = read_stored(world.run_dir)
    assert stored.step == 3 and not stored.config.checkpoint.accept_changes
    assert "accept_changes: false" in (world.run_dir / "config.yaml").read_text()
    assert world.refused("train.steps=3", "seed=1") == 2, "accepting once accepts no later change"
    assert "(seed: 0 -> 1)" in capsys.readouterr().err


def test_a_finished_run_is_not_changed_by_what_no_step_would_use(env, world):
    files = [world.run_dir / name for name in ("config.yaml", "history.jsonl", "metrics.jsonl")]
    before = [file.read_bytes() for file in files]
    said = world.train(env, "optim.lr=1e-3", "optim.beta2=0.5", "checkpoint.accept_changes=true")
    assert "no step is left to train, so that nothing is changed: optim.lr: 0.0004 -> 0.001; optim.beta2: " in said
    assert [file.read_bytes() for file in files] == before


def test_a_value_that_nobody_sets_stays_that_of_the_run(world, capsys):
    meta = world.run_dir / "checkpoints" / "2" / "meta" / "metadata"
    about = unsealed(json.loads(meta.read_text()))
    from jaxgrpo.config import given_keys, load_config
    from jaxgrpo.train.resume import continued, find_changes
    from tests.run.commands import CONFIG

    about["config"]["optim"]["lr"] = 3e-4
    about["config"]["eval"]["samples"] = 2
    del about["inputs"]
    meta.write_text(json.dumps(about))
    stored = read_stored(world.run_dir)
    assert stored.notes[0] == "checkpoint 2 was made before inputs were fingerprinted: that they are still the same is assumed"
    plain = load_config(None, ["eval.temperature=0.5"])
    config, kept = continued(plain, stored, given_keys(None, ["eval.temperature=0.5"]), 8)
    assert config.optim.lr == 3e-4 and config.eval.samples == 2 and config.eval.temperature == 0.5
    assert {"optim.lr=0.0003", "eval.samples=2"} <= set(kept)
    config, _ = continued(load_config(CONFIG), stored, given_keys(CONFIG), 8)
    assert config.optim.lr == 4e-4, "CONFIG sets it"
    assert "optim.lr: 0.0003 -> 0.0004" in find_changes(config, {}, stored).free


def test_an_emptied_config_file_of_a_run_is_no_config(world, capsys):
    (world.run_dir / "config.yaml").write_text("")
    assert main(["train", str(world.run_dir / "config.yaml")]) == 2
    assert "names no run_dir, it is damaged" in capsys.readouterr().err
