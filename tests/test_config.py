"""The configuration tree: what is read, what is written, and one clear line for everything that cannot be meant."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.config import (
    EXECUTION_KEYS,
    Config,
    ConfigError,
    check_config,
    differences,
    flatten,
    load_config,
    replace,
    to_yaml,
)

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "configs").glob("*.yaml") if not p.stem.startswith("study"))
KEYS = flatten(Config())
CHOICES = {
    "reward.sandbox": ["strong", "weak"],
    "data.overlong": ["error", "drop"],
    "data.order": ["curriculum", "shuffle"],
    "rollout.dtype": ["bfloat16", "float32"],
    "rollout.weights": ["", "int8"],
    "rollout.cache_dtype": ["", "int8"],
    "rollout.attention": ["", "xla", "ragged", "triton"],
    "train.dtype": ["bfloat16", "float32"],
    "algo.kl": ["k1", "k2", "k3"],
    "algo.aggregation": ["token-mean", "seq-mean-token-mean"],
    "optim.optimizer": ["adamw", "sgd"],
    "algo.old_logprobs": ["recompute", "rollout"],
    "rollout.driver": ["engine", "jetstream"],
    "train.remat": ["none", "layer", "matmuls"],
    "train.offload": ["none", "moments", "all"],
    "optim.moments_dtype": ["float32", "bfloat16"],
}
# Fixed, or bounded against each other.
CONSTRAINED = {"data.prompts_per_step", "train.minibatch_prompts", "train.row_tokens", "warmup.steps", "warmup.corrupt_steps"}
CONSTRAINED |= {"checkpoint.best", "checkpoint.metric"}
TEXT = st.text(st.characters(codec="ascii", exclude_characters="${}\\?", exclude_categories=["Cc"]), max_size=12)


def values(key):
    if key in CHOICES:
        return st.sampled_from(CHOICES[key])
    kinds = {bool: st.booleans(), int: st.integers(1, 10**6), float: st.floats(1e-9, 1.0, exclude_max=True), str: TEXT}
    kinds[tuple] = st.lists(TEXT, max_size=3).map(tuple)
    return st.just(1.5) if key == "algo.dual_clip" else kinds[type(KEYS[key])]


def message(*arguments) -> str:
    """The one line that is shown for a configuration that cannot be used; it exits with 2."""
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def written(tmp_path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_the_defaults_are_the_recipe_of_the_paper():
    paper = {
        "data.prompts_per_step": 512,
        "rollout.samples": 8,
        "train.minibatch_prompts": 128,
        "optim.lr": 1e-6,
        "optim.beta1": 0.9,
        "optim.beta2": 0.999,
        "optim.eps": 1e-8,
        "optim.weight_decay": 0.1,
        "optim.clip_norm": 1.0,
        "optim.warmup_updates": 0,
        "algo.clip_low": 0.2,
        "algo.clip_high": 0.2,
        "algo.dual_clip": 3.0,
        "algo.kl": "k3",
        "algo.kl_coef": 0.001,
        "algo.aggregation": "token-mean",
        "rollout.temperature": 1.0,
        "eval.temperature": 0.7,
        "data.max_prompt_tokens": 2048,
        "rollout.max_new_tokens": 4096,
        "data.order": "curriculum",
    }
    assert {key: flatten(load_config(None))[key] for key in paper} == paper


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(str(path))
    assert load_config(written(tmp_path, to_yaml(config))) == config


def test_every_size_of_the_family_is_shipped():
    sizes = {f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")}
    assert sizes | {"quickstart"} <= {path.stem for path in CONFIGS}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_valid_config_survives_a_round_trip_through_yaml(data, tmp_path_factory):
    keys = data.draw(st.lists(st.sampled_from(sorted(set(KEYS) - CONSTRAINED)), unique=True, max_size=8))
    config = replace(Config(), {key: data.draw(values(key), label=key) for key in keys})
    check_config(config)
    assert load_config(written(tmp_path_factory.mktemp("config"), to_yaml(config))) == config


def test_overrides_beat_the_file_and_later_ones_beat_earlier_ones(tmp_path):
    path = written(tmp_path, "seed: 3\noptim:\n  lr: 2.0e-6\n  beta1: 0.8\n")
    config = load_config(path, ["optim.lr=3e-6", "optim.lr=4e-6", "model=some/dir", "train.remat=none"])
    assert (config.seed, config.optim.lr, config.optim.beta1) == (3, 4e-6, 0.8)
    assert (config.model, config.train.remat) == ("some/dir", "none")
    changed = {"seed": 3, "optim.lr": 4e-6, "optim.beta1": 0.8, "model": "some/dir", "train.remat": "none"}
    assert config == replace(Config(), changed), "everything else keeps its default"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("optim.lr=1e-5", "optim.lr", 1e-5),
        ("optim.lr=1", "optim.lr", 1.0),
        ("data.train=", "data.train", ""),
        ("data.train=a=b.jsonl", "data.train", "a=b.jsonl"),
        ("run_dir=runs/a:b", "run_dir", "runs/a:b"),
        ("run_dir=123", "run_dir", "123"),
        ("reward.shuffle=true", "reward.shuffle", True),
    ],
)
def test_override_values_are_read_as_yaml_of_the_type_of_the_key(override, key, value):
    got = flatten(load_config(None, [override]))[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("override", ["optim.lr", "=3", ""])
def test_an_override_without_key_or_equals_sign_is_refused(override):
    assert message(None, [override]) == f"override {override!r} is not of the form key=value."


def test_an_override_that_is_no_yaml_is_refused():
    assert message(None, ["seed=[a"]) == "seed=[a: the value of seed is not valid YAML; quote it."


@pytest.mark.parametrize(
    "wrong, nearest",
    [
        ("optim.learning_rate", None),
        ("optim.lrr", "optim.lr"),
        ("rollout.sample", "rollout.samples"),
        ("lr", "optim.lr"),
        ("train.temperature", "temperature"),
        ("seeds", "seed"),
        ("data.train.x", "data.train"),
        ("a..b", None),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(wrong, nearest):
    said = message(None, [f"{wrong}=1"])
    assert f"unknown key {wrong!r}" in said
    assert nearest is None or nearest in said.split("did you mean")[1]


def test_an_unknown_key_of_a_file_is_named_with_the_file(tmp_path):
    path = written(tmp_path, "seed: 1\noptim:\n  lr: 1.0e-6\n  weight_decai: 0.1\n")
    assert message(path) == f"{path}: unknown key 'optim.weight_decai'; did you mean optim.weight_decay?"


@pytest.mark.parametrize("text", ["optim: 3\n", "optim:\n", "optim: []\n"])
def test_a_section_is_not_a_value(text, tmp_path):
    assert "optim is a section; set one of its keys, such as optim.optimizer" in message(written(tmp_path, text))


@pytest.mark.parametrize(
    "override, key",
    [
        ("optim.lr=fast", "optim.lr"),
        ("rollout.samples=eight", "rollout.samples"),
        ("rollout.samples=1.5", "rollout.samples"),
        ("rollout.samples=[1]", "rollout.samples"),
        ("train.remat=7.5", "train.remat"),
        ("seed=", "seed"),
        ("algo.kl=k4", "algo.kl"),
        ("algo.aggregation=mean", "algo.aggregation"),
        ("optim.optimizer=adam", "optim.optimizer"),
        ("train.dtype=float16", "train.dtype"),
        ("model=${nowhere}", "model"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_key_in_one_line(override, key):
    said = message(None, [override])
    assert key in said and "\n" not in said


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "rollout.samples=0",
        "data.prompts_per_step=0",
        "optim.lr=-1e-6",
        "optim.clip_norm=0",
        "optim.eps=0",
        "optim.beta1=1.5",
        "optim.beta2=-0.1",
        "algo.kl_coef=-0.1",
        "algo.clip_low=-0.2",
        "algo.dual_clip=0.5",
        "rollout.temperature=0",
        "eval.temperature=-1",
        "train.logit_chunk=-1",
        "checkpoint.keep=0",
        "mesh.data=0",
        "mesh.fsdp=-1",
        "warmup.corruption=1.1",
        "reward.wall_seconds=0",
    ],
)
def test_a_value_out_of_range_names_the_key_and_the_value(override):
    key, value = override.split("=")
    named, shown = message(None, [override]).split(" ")[0].split("=")
    assert named == key and float(shown) == float(value)


@pytest.mark.parametrize("key", ["optim.lr", "algo.dual_clip", "optim.beta1", "rollout.temperature"])
def test_a_number_that_is_none_is_out_of_every_range(key):
    assert message(None, [f"{key}=.nan"]).startswith(f"{key}=nan")


def test_every_number_has_a_bound():
    numbers = {key for key, value in KEYS.items() if type(value) in (int, float)}
    for key in sorted(numbers):
        with pytest.raises(ConfigError, match=key):
            check_config(replace(Config(), {key: -1}))


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does():
    said = message(None, ["data.prompts_per_step=60", "train.minibatch_prompts=16"])
    assert "data.prompts_per_step=60" in said and "train.minibatch_prompts=16" in said
    assert "set train.minibatch_prompts=15" in said
    assert load_config(None, ["data.prompts_per_step=60", "train.minibatch_prompts=15"]).train.minibatch_prompts == 15


def test_rows_shorter_than_the_longest_sequence_are_refused():
    limits = ["data.max_prompt_tokens=10", "rollout.max_new_tokens=20"]
    assert "set it to at least 30" in message(None, [*limits, "train.row_tokens=29"])
    assert load_config(None, [*limits, "train.row_tokens=30"]).train.row_tokens == 30


def test_a_corrupt_phase_needs_a_warm_up_before_it():
    assert "warmup.steps is 0" in message(None, ["warmup.corrupt_steps=5"])


@pytest.mark.parametrize("text, kind", [("- a\n- b\n", "list"), ("just words\n", "str"), ("7\n", "int")])
def test_a_file_that_is_not_a_mapping_is_refused(text, kind, tmp_path):
    assert f"holds a {kind}, not `key: value` lines" in message(written(tmp_path, text))


@pytest.mark.parametrize(
    "override, said",
    [
        ("train.steps=abc", "'abc' is not a whole number"),
        ("optim.lr=fast", "'fast' is not a number"),
        ("reward.shuffle=maybe", "'maybe' is not true or false"),
        ("eval.suites=3", "give a list, such as [one,two]"),
    ],
)
def test_a_value_of_another_kind_is_told_in_words(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert str(caught.value) == f"{override}: {said}"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_an_empty_file_means_the_defaults(text, tmp_path):
    assert load_config(written(tmp_path, text)) == Config()


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path):
    missing = str(tmp_path / "nothing.yaml")
    assert message(missing) == f"config file {missing} does not exist."
    (tmp_path / "nothin.yaml").touch()
    assert message(missing) == f"config file {missing} does not exist; did you mean {tmp_path / 'nothin.yaml'}?"
    assert message("qwen2.5-0.5.yaml").endswith("did you mean configs/qwen2.5-0.5b.yaml?")
    assert f"config file {tmp_path} cannot be read" in message(str(tmp_path))
    assert "cannot be read as YAML" in message(written(tmp_path, "a: [1, 2\nb: }"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read as YAML" in message(str(tmp_path / "binary.yaml"))


def another_value(key):
    value = KEYS[key]
    if isinstance(value, tuple):
        return (*value, "x")
    return not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("key", sorted(EXECUTION_KEYS))
def test_keys_of_execution_make_no_difference(key):
    other = replace(Config(), {key: another_value(key)})
    assert other != Config()
    assert differences(other, Config()) == []


@pytest.mark.parametrize("key", sorted(set(KEYS) - EXECUTION_KEYS))
def test_every_other_key_makes_a_difference_that_names_both_values(key):
    other = replace(Config(), {key: another_value(key)})
    said = f"{key}: {another_value(key)} here, {KEYS[key]} in the run directory"
    assert differences(other, Config()) == [said]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run_dir=s3://bucket/run", "neither a local path nor one on gs://"),
        ("optim.beta1=1", "below 1"),
        ("optim.lr=.inf", "not a finite number"),
        ("rollout.cache_gib=.nan", "not a finite number"),
    ],
)
def test_values_that_would_break_a_run_later_are_refused_at_once(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, [override])


def test_a_spoiled_warm_up_is_for_the_built_in_task_only():
    overrides = ["warmup.steps=5", "warmup.corrupt_steps=5", "warmup.demonstrations=mine.jsonl"]
    with pytest.raises(ConfigError, match="belongs to the built-in task"):
        load_config(None, overrides)
