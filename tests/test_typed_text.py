"""A key of type text takes what was typed, on the command line and in YAML; `~/` is the home directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.suite import load_suite
from jaxgrpo.config import ConfigError, load_config, to_yaml
from jaxgrpo.study.design import load_study

# What YAML 1.1 takes for a boolean, a number, sixty-based digits, nothing, a date.
PLAIN = [
    *"off yes No true 1.10 12:30 1:2:3 null ~ Null 0x10 0o17 010 1e3 1_000 .inf 2024-01-01".split(),
    "2024-01-01 10:00:00",
]
TYPED = [*PLAIN, *"= - {} [a] [a *x &x !x %x @x x:".split(), "a: b", "a #b", " x "]
KEYS = [
    "run_dir",
    "model",
    "data.train",
    "data.test",
    "data.tokenizer",
    "warmup.demonstrations",
    "eval.data",
    "checkpoint.metric",
]


def leaf(config, key: str):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("text", [*TYPED, ""])
def test_an_override_of_a_text_key_is_what_was_typed_and_survives_config_yaml(text, tmp_path):
    config = load_config(None, [f"{key}={text}" for key in KEYS if key != "checkpoint.metric"])
    assert {leaf(config, key) for key in KEYS[:-1]} == {text}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_key_of_a_yaml_file_is_what_was_typed(text, tmp_path):
    lines = f"model: {text}\nrun_dir: '{text}'\ndata:\n  train: {text}  # not this\n  test: \"{text}\"\n"
    (tmp_path / "own.yaml").write_text(lines + f"eval: {{suites: [{text}, b]}}\n")
    config = load_config(str(tmp_path / "own.yaml"))
    assert [config.model, config.run_dir, config.data.train, config.data.test] == [text] * 4
    assert config.eval.suites == (text, "b")
    assert load_config(None, [f"eval.suites=[{text}]"]).eval.suites == (text,)


def test_an_empty_value_is_empty_text(tmp_path):
    (tmp_path / "own.yaml").write_text("data:\n  tokenizer:\nrollout: {weights: }\n")
    config = load_config(str(tmp_path / "own.yaml"))
    assert (config.data.tokenizer, config.rollout.weights) == ("", "")


def test_quotes_around_a_whole_override_are_no_part_of_it():
    config = load_config(None, ["run_dir='off'", 'model="a b"', "data.train='it''s'", "data.test=it's"])
    assert [config.run_dir, config.model, config.data.train, config.data.test] == ["off", "a b", "it's", "it's"]


def test_keys_that_are_no_text_are_read_as_before(tmp_path):
    overrides = ["seed=0x10", "optim.lr=1e-6", "reward.shuffle=yes", "optim.clip_norm=.inf", "eval.samples='3'"]
    config = load_config(None, overrides)
    assert (config.seed, config.optim.lr, config.reward.shuffle, config.eval.samples) == (16, 1e-6, True, 3)
    (tmp_path / "own.yaml").write_text("base: &b {lr: 2e-6}\n")
    with pytest.raises(ConfigError, match="unknown key 'base.lr'"):
        load_config(str(tmp_path / "own.yaml"))
    (tmp_path / "own.yaml").write_text("optim: {<<: {lr: 2e-6}, eps: 1.0e-7}\n")
    assert load_config(str(tmp_path / "own.yaml")).optim.lr == 2e-6


@pytest.mark.parametrize("key", ["reward.sandbox", "algo.kl", "train.remat"])
def test_a_choice_that_yaml_would_turn_is_refused_as_it_was_typed(key):
    with pytest.raises(ConfigError, match=f"^{key}=off: .*'off'"):
        load_config(None, [f"{key}=off"])


def test_the_home_directory_stands_for_a_leading_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "own.yaml").write_text("model: ~/m\nwarmup: {demonstrations: ~/d.jsonl}\neval: {suites: [~/s.yaml]}\n")
    config = load_config(str(tmp_path / "own.yaml"), ["run_dir=~/runs/~", "data.train=x/~/y", "eval.data=~/", "data.test=~"])
    assert [config.model, config.warmup.demonstrations, *config.eval.suites] == [
        "/home/me/m",
        "/home/me/d.jsonl",
        "/home/me/s.yaml",
    ]
    assert [config.run_dir, config.data.train, config.eval.data, config.data.test] == [
        "/home/me/runs/~",
        "x/~/y",
        "/home/me/",
        "~",
    ]


def test_a_study_and_a_suite_take_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "study.yaml").write_text(
        "study: ladder\nout: 1.10\nseeds: [0, 1]\nset: {train.steps: 4, data.train: 12:30}\nfit: {bootstrap: 7, x: [data]}\n"
        "learning_rate: {base: 4e-4, power: -0.5}\nruns:\n  off: {model: random:miniature-16, data.test: null}\n  010:\n"
    )
    study, runs = load_study(str(tmp_path / "study.yaml"), ["runs.010.model=random:miniature-24", "fit.warmup=2", "jobs=1"])
    assert (study.out, study.seeds, study.jobs, study.fit.bootstrap, study.fit.warmup) == ("1.10", (0, 1), 1, 7, 2)
    assert [run.directory for run in runs[::2]] == [Path("1.10/runs/off-seed0"), Path("1.10/runs/010-seed0")]
    assert (runs[0].config.data.train, runs[0].config.data.test, runs[0].config.train.steps) == ("12:30", "null", 4)
    assert load_study(str(tmp_path / "study.yaml"), ["out=~/s", "runs.010.model=random:miniature-24"])[0].out == "/home/me/s"
    (tmp_path / "mine.yaml").write_text("title: 1.10\nfiles: [~/b.parquet]\nsubset: 2024-01-01\nsplit: off\n")
    suite = load_suite(str(tmp_path / "mine.yaml"))
    assert (suite.title, suite.files, suite.subset, suite.split) == ("1.10", ("/home/me/b.parquet",), "2024-01-01", "off")


def test_path_arguments_know_the_home_directory(tmp_path):
    """Quoted, as behind `--out=`, where the shell leaves `~/` alone: each command says which path it looked for."""
    env = os.environ | {"HOME": str(tmp_path)}
    said = {}
    for command in (["train", "~/no.yaml"], ["export", "~/no", "x"], ["data", "reuse", "~/no.parquet", "x"], ["fit", "~/no"]):
        done = subprocess.run([sys.executable, "-m", "jaxgrpo.cli", *command], env=env, capture_output=True, text=True)
        said[command[0]] = done.stderr
    assert all(f"{tmp_path}/no" in text for text in said.values()), json.dumps(said, indent=1)
