"""The configuration: one tree of frozen dataclasses, filled from a YAML file and `key=value` overrides.

Defaults are the recipe of arXiv 2509.25300 (batch 512 x 8, lr 1e-6, clip 0.2, k3 KL 0.001, 2048 + 4096 tokens). A value of 0
or "" whose comment says "auto" is worked out at the start and written into the run directory's config.yaml.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jaxgrpo.errors import UserError
from jaxgrpo.storage import is_remote, location
from jaxgrpo.typed_text import read_text, split_override, typed


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the key, the value and the remedy."""

    exit_code = 2


@dataclass(frozen=True)
class DataConfig:
    train: str = "arithmetic"  # "arithmetic" (built in), a parquet or JSONL file, or a hub id
    test: str = "arithmetic"  # the held-out problems, likewise
    tokenizer: str = ""  # auto: the model's own
    prompts_per_step: int = 512
    max_prompt_tokens: int = 2048
    overlong: Literal["error", "drop"] = "error"  # prompts over the limit: stop with a message, or drop and count them
    order: Literal["curriculum", "shuffle"] = "curriculum"
    epochs: int = 1


@dataclass(frozen=True)
class RolloutConfig:
    driver: Literal["engine", "jetstream"] = "engine"  # "jetstream": check it against JetStream's Driver, in a CPU process
    samples: int = 8  # responses per prompt: the group
    temperature: float = 1.0
    top_k: int = 0  # sample from this many most probable tokens; 0: from all
    top_p: float = 1.0  # and from the fewest that hold this much probability
    min_p: float = 0.0  # and from those with at least this share of the largest probability
    max_new_tokens: int = 4096
    slots: int = 0  # auto: sequences decoded at once, as many as the cache budget holds
    cache_gib: float = 0.0  # auto: KV cache budget per device, from the memory that weights and state leave
    chunk: int = 0  # auto: tokens decoded per dispatch
    prefill_tokens: int = 0  # auto: prompt tokens prefilled per dispatch
    tensor: int = 0  # auto: devices that share one replica of the sampler
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    weights: Literal["", "int8"] = ""  # of the sampler's matrices; "": rollout.dtype. With int8 set algo.tis_cap
    cache_dtype: Literal["", "int8"] = ""  # of the KV cache; "": rollout.dtype
    attention: Literal["", "xla", "ragged", "triton"] = ""  # of decoding; "": by the device


@dataclass(frozen=True)
class RewardConfig:
    workers: int = 0  # auto: one per core
    cpu_seconds: float = 5.0  # processor time one answer may take
    wall_seconds: float = 60.0  # backstop on the wall clock
    sandbox: Literal["strong", "weak"] = "strong"  # for code that the model writes; weak: limits, no isolation
    shuffle: bool = False  # control experiment: rewards are permuted among the samples of a step
    max_failed: float = 0.5  # share of a step's answers whose grader failed past which the run saves and stops; 1 = never
    max_equal: float = 1.0  # share of a step's groups whose rewards are all equal past which it does too; 1 = never


@dataclass(frozen=True)
class AlgoConfig:
    std_normalise: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl_coef: float = 0.001
    kl: Literal["k1", "k2", "k3"] = "k3"
    aggregation: Literal["token-mean", "seq-mean-token-mean"] = "token-mean"
    old_logprobs: Literal["recompute", "rollout"] = "recompute"  # of the policy that sampled: the trainer's, or the sampler's
    tis_cap: float = 0.0  # truncated importance sampling: most weight of a token; 0 = off


@dataclass(frozen=True)
class OptimConfig:
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-6
    warmup_updates: int = 0  # linear from 0; constant afterwards
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1  # of adamw
    clip_norm: float = 1.0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"  # of adamw; bfloat16 is rounded at random, right on average


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 0  # auto: epochs x problems // prompts_per_step
    minibatch_prompts: int = 128  # prompts per optimiser update
    row_tokens: int = 0  # auto: sequences are packed into rows of this length; a row per device is a micro-batch
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the forward pass; master weights and moments are float32
    remat: Literal["none", "layer", "matmuls"] = "layer"  # the backward pass computes again: nothing, all, all but products
    unroll: int = 1  # layers per iteration of the scan
    logit_chunk: int = 0  # auto: tokens whose logits exist at once
    profile: int = 0  # the step of which a profile is written to the run directory; 0 = none
    offload: Literal["none", "moments", "all"] = "none"  # to host memory: Adam's moments, or these and the reference


@dataclass(frozen=True)
class WarmupConfig:
    """A supervised start before GRPO: demonstrations from a file, or the built-in task's."""

    steps: int = 0  # at most this many; 0 = none
    demonstrations: str = ""  # file with `prompt` and `response`; auto: the built-in task
    batch: int = 64
    lr: float = 1e-3
    stop_pass1: float = 0.0  # stop early once held-out Pass@1 reaches this (0: run all steps)
    check_every: int = 20  # steps between those checks
    corrupt_steps: int = 0  # then this many steps on labels of which a part is wrong (built-in task only)
    corruption: float = 0.0  # that part
    corrupt_lr: float = 1e-3


@dataclass(frozen=True)
class EvalConfig:
    every: int = 1  # steps between evaluations on the held-out problems; 0 = never
    temperature: float = 0.7
    samples: int = 1  # responses per held-out problem
    limit: int = 0  # auto: all problems
    suites: tuple[str, ...] = ()  # further benchmarks, by name or as YAML files: `jaxgrpo eval --help` lists them
    suites_every: int = 10  # steps between evaluations on them
    data: str = "data"  # folder in which suites look for their files


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 10  # steps between checkpoints; the last step is always saved
    keep: int = 2  # the newest
    best: int = 0  # besides these, so many of the best by `metric`
    metric: str = "test_loss"  # of metrics.jsonl: test_loss (lowest), reward_mean or suite_NAME (highest)
    accept_changes: bool = False  # go on although an input or a key that changes what is computed is another; never stored


@dataclass(frozen=True)
class MeshConfig:
    data: int = 1
    fsdp: int = 0  # auto: the devices that data and tensor leave
    tensor: int = 1


@dataclass(frozen=True)
class HostsConfig:
    """A job of several processes, one per host. All get the same command but for hosts.index."""

    count: int = 1  # processes; 0: as the TPU pod's, SLURM's or Kubernetes' environment says
    coordinator: str = ""  # HOST:PORT of process 0, with count > 1
    index: int = 0  # of this process, with count > 1
    start_s: int = 60  # longest wait for the others at the start
    heartbeat_s: int = 20  # a process that is silent for so long is taken for dead, and the job ends


@dataclass(frozen=True)
class PlanConfig:
    chip_hour_price: float = 0.0  # in any currency, for the cost that `jaxgrpo plan` prints


@dataclass(frozen=True)
class Config:
    model: str = "Qwen/Qwen2.5-0.5B"  # HF directory, hub id with or without @REVISION, RUN[:STEP] of a run, random:NAME
    family: str = ""  # auto: which line of models the curve belongs to, from the weights' files and name
    run_dir: str = "runs/run"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


# What may differ between a run and its resumption: where and how fast it runs, and how far; never what it computes.
EXECUTION_KEYS = {
    "run_dir",
    "train.steps",
    "train.row_tokens",
    "train.unroll",
    "train.remat",
    "train.logit_chunk",
    "train.offload",
    "train.profile",
    "rollout.driver",
    "rollout.slots",
    "rollout.cache_gib",
    "rollout.chunk",
    "rollout.prefill_tokens",
    "rollout.tensor",
    "reward.workers",
    "reward.sandbox",
    "reward.max_failed",
    "reward.max_equal",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.best",
    "checkpoint.metric",
    "checkpoint.accept_changes",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "hosts.count",
    "hosts.coordinator",
    "hosts.index",
    "hosts.start_s",
    "hosts.heartbeat_s",
    "plan.chip_hour_price",
}

# Keys that say where an input of a run lies: a resumption compares what lies there.
INPUT_KEYS = ("model", "data.tokenizer", "data.train", "data.test", "warmup.demonstrations")
# What a resumption may change, with a warning and a line in the run's history: these, and all of `eval`.
CHANGEABLE_KEYS = {"data.epochs", "optim.lr"}


def is_changeable(key: str) -> bool:
    return key in CHANGEABLE_KEYS or key.startswith("eval.")


SERVING_KEYS = (  # what a server looks at
    "seed",
    "data.max_prompt_tokens",
    "data.tokenizer",
    "rollout.temperature",
    "rollout.top_k",
    "rollout.top_p",
    "rollout.min_p",
    "rollout.max_new_tokens",
    "rollout.slots",
    "rollout.cache_gib",
    "rollout.tensor",
    "rollout.dtype",
    "rollout.weights",
    "rollout.cache_dtype",
    "rollout.attention",
)
EVALUATION_KEYS = (
    *(key for key in SERVING_KEYS if key.rpartition(".")[2] not in ("temperature", "top_k", "top_p", "min_p")),
    "eval.temperature",
    "eval.samples",
    "eval.limit",
    "eval.data",
    "reward.workers",
    "reward.cpu_seconds",
    "reward.wall_seconds",
    "reward.sandbox",
)


def load_config(
    path: str | None, overrides: list[str] = (), values: dict[str, Any] | None = None, base: Config | None = None
) -> Config:
    """Read a YAML file (None: only the defaults, or `base` in their place), apply `key=value` overrides and then `values` by
    dotted key, check everything.

    A key of type text takes what was typed, with the home directory for a leading `~/`. Raises ConfigError for a missing or
    malformed file, an unknown key (with the nearest known one), a value of the wrong type or out of range, and sizes that do
    not divide.
    """
    tree = OmegaConf.structured(base or Config)
    layers = []
    if path is not None:
        layers.append((path, read_mapping(path, "config file", _nearest)))
    given = [(override, *parse_override(override)) for override in overrides]
    given += [(f"{key}={value}", key, value) for key, value in (values or {}).items()]
    layers += [(origin, _nested(key.split("."), value)) for origin, key, value in given]
    for origin, layer in layers:
        _check_keys(layer, origin)
        try:
            tree = OmegaConf.merge(tree, _typed_layer(layer, origin))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{origin}: {_first_line(error, origin)}") from None
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:  # a ${...} that names nothing
        raise ConfigError(_first_line(error)) from None
    check_config(config)
    return config


def _nearest(path: str) -> str:
    """The file that somebody who typed a path without a file may have meant, as the end of the message."""
    there = [str(file) for folder in (Path(path).parent, Path("configs")) for file in folder.glob("*.yaml")]
    typed = (path, f"configs/{Path(path).stem}.yaml")
    near = [found for name in typed for found in difflib.get_close_matches(name, there, n=1, cutoff=0.8)]
    return f"; did you mean {near[0]}?" if near else "."


def given_keys(path: str | None, overrides: list[str] = ()) -> set[str]:
    """The dotted keys that a YAML file and overrides set."""
    file = set() if path is None else set(_leaf_keys(read_mapping(path, "config file")))
    return file | {parse_override(override)[0] for override in overrides}


def stored_config(values: dict, origin: str) -> tuple[Config, list[str]]:
    """The config that an earlier version may have written down, and its keys that are unknown now. Keys that were not there
    yet have their defaults. ConfigError where it is none."""
    known = flatten(Config())
    lost = [key for key in _leaf_keys(values) if key not in known]
    flat = {key: typed_value(key, value) for key, value in _flattened(values).items() if key in known}
    try:
        tree = OmegaConf.structured(Config)
        for key, value in flat.items():
            tree = OmegaConf.merge(tree, _nested(key.split("."), value))
        return OmegaConf.to_object(tree), lost
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_first_line(error)}") from None


def _flattened(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_mapping(path: str, kind: str, hint: Callable[[str], str] = lambda path: ".") -> dict:
    """The `key: value` lines of a YAML file, called `kind` in messages; `hint` of the path ends that of one that does not
    exist. ConfigError.

    Scalars come as they were typed, see `typed_value`."""
    try:
        text = location(path).read_bytes().decode("utf-8")
        values = read_text(text)
        kind_found = type(yaml.safe_load(text)).__name__ if isinstance(values, str) else type(values).__name__
    except FileNotFoundError:
        raise ConfigError(f"{kind} {path} does not exist{hint(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{kind} {path} cannot be read: it is a folder; name a file in it.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{kind} {path} cannot be read as YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise ConfigError(f"{kind} {path} holds a {kind_found}, not `key: value` lines.")
    return values or {}


def parse_override(override: str) -> tuple[str, str]:
    """`key=value` as (key, value as typed). ConfigError for anything else."""
    parts = split_override(override)
    if parts is None:
        raise ConfigError(f"override {override!r} is not of the form key=value.")
    return parts


def typed_value(key: str, value: Any) -> Any:
    """What was typed for a key of the configuration, as a value of the key's type; as it is where there is no such key."""
    return typed(value, _types().get(key, str))


@cache
def _types() -> dict[str, Any]:
    """The type of every leaf by its dotted name."""
    found = {}
    for section, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{section}.{key}": of_key for key, of_key in get_type_hints(hint).items()}
        else:
            found[section] = hint
    return found


def _typed_layer(values: dict, origin: str, prefix: str = "") -> dict:
    layer = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        try:
            layer[key] = _typed_layer(value, origin, f"{name}.") if isinstance(value, dict) else typed_value(name, value)
        except yaml.YAMLError:
            raise ConfigError(f"{origin}: the value of {name} is not valid YAML; quote it.") from None
    return layer


def _nested(keys: list[str], value: Any) -> dict:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def _first_line(error: Exception, origin: str = "") -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    wrong = re.match(r"Value '(.*?)'(?: of type '\w+')? (?:could not be converted to|is not a valid) (\w+)", lines[0])
    if wrong and wrong[2] in _KINDS:
        lines[0] = f"{wrong[1]!r} is not {_KINDS[wrong[2]]}"
    elif "is not a TupleConfig" in lines[0]:
        lines[0] = "give a list, such as [one,two]"
    return f"{key}: {lines[0]}" if key and not origin.startswith(f"{key}=") else lines[0]


def _check_keys(values: dict, origin: str) -> None:
    known = flatten(Config())
    for key in _leaf_keys(values):
        if key in known:
            continue
        if any(name.startswith(f"{key}.") for name in known):
            raise ConfigError(f"{origin}: {key} is a section; set one of its keys, such as {key}.{_children(known, key)[0]}.")
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        leaf = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
        hint = f"did you mean {(nearest or leaf)[0]}?" if nearest or leaf else "see `jaxgrpo train --help` for the keys."
        raise ConfigError(f"{origin}: unknown key {key!r}; {hint}")


def _children(known: dict, section: str) -> list[str]:
    return [name.removeprefix(f"{section}.") for name in known if name.startswith(f"{section}.")]


def _leaf_keys(values: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys += _leaf_keys(value, f"{name}.") if isinstance(value, dict) else [name]
    return keys


def flatten(config: Config) -> dict[str, Any]:
    """`{"optim.lr": 1e-6, ...}`: every leaf of the tree by its dotted name."""
    flat = {}
    for section, value in dataclasses.asdict(config).items():
        flat |= {f"{section}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with the dotted keys of `changes` set."""
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        value = dataclasses.replace(getattr(config, section), **{leaf: value}) if leaf else value
        config = dataclasses.replace(config, **{section: value})
    return config


def to_yaml(config: Config) -> str:
    """YAML text that `load_config` reads back to the same Config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


_AT_LEAST = {
    0: """
    seed data.epochs rollout.slots rollout.cache_gib rollout.chunk rollout.prefill_tokens rollout.tensor rollout.top_k
    rollout.min_p reward.workers algo.kl_coef algo.clip_low algo.clip_high algo.tis_cap optim.lr optim.warmup_updates
    optim.weight_decay train.steps train.row_tokens train.logit_chunk train.profile warmup.steps warmup.lr warmup.corrupt_lr
    warmup.corrupt_steps warmup.corruption eval.every eval.limit eval.temperature checkpoint.best mesh.fsdp
    hosts.count hosts.index plan.chip_hour_price
    """,
    1: """
    data.prompts_per_step data.max_prompt_tokens rollout.samples rollout.max_new_tokens train.minibatch_prompts train.unroll
    warmup.batch warmup.check_every eval.samples eval.suites_every checkpoint.every checkpoint.keep mesh.data mesh.tensor
    algo.dual_clip hosts.start_s hosts.heartbeat_s
    """,
}


def check_config(config: Config) -> None:
    """Raise ConfigError for values out of range and sizes that do not divide."""
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value) and key != "optim.clip_norm":
            raise ConfigError(f"{key}={value} is not a finite number.")
    if "://" in config.run_dir and not is_remote(config.run_dir):
        raise ConfigError(f"run_dir={config.run_dir} is neither a local path nor one on gs://.")
    if is_remote(config.run_dir) and config.train.profile:
        raise ConfigError("train.profile writes to a local disk: give a local run_dir for a profile.")
    for least, keys in _AT_LEAST.items():
        for key in keys.split():
            if not flat[key] >= least:
                raise ConfigError(f"{key}={flat[key]} is below {least}.")
    for key in ("rollout.temperature", "optim.clip_norm", "reward.cpu_seconds", "reward.wall_seconds", "optim.eps"):
        if not flat[key] > 0:
            raise ConfigError(f"{key}={flat[key]} must be greater than 0.")
    if not 0 < config.rollout.top_p <= 1:
        raise ConfigError(
            f"rollout.top_p={config.rollout.top_p} must be greater than 0 and at most 1, which keeps every token."
        )
    for key in ("warmup.corruption", "warmup.stop_pass1", "rollout.min_p", "reward.max_failed", "reward.max_equal"):
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"{key}={flat[key]} must lie between 0 and 1.")
    for key in ("optim.beta1", "optim.beta2"):
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]} must be at least 0 and below 1.")
    prompts, minibatch = config.data.prompts_per_step, config.train.minibatch_prompts
    if prompts % minibatch:
        divisors = [d for d in range(1, prompts + 1) if prompts % d == 0]
        near = min(divisors, key=lambda d: abs(d - minibatch))
        raise ConfigError(
            f"data.prompts_per_step={prompts} does not divide into minibatches of train.minibatch_prompts={minibatch}: "
            f"set train.minibatch_prompts={near}."
        )
    limit = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if config.train.row_tokens and config.train.row_tokens < limit:
        raise ConfigError(
            f"train.row_tokens={config.train.row_tokens} is shorter than the longest sequence, data.max_prompt_tokens + "
            f"rollout.max_new_tokens = {limit}: set it to at least {limit}, or to 0."
        )
    if config.warmup.corrupt_steps and not config.warmup.steps:
        raise ConfigError("warmup.corrupt_steps is set but warmup.steps is 0: there is no warm-up to follow.")
    if config.warmup.corrupt_steps and config.warmup.demonstrations:
        raise ConfigError("warmup.corrupt_steps belongs to the built-in task: set it to 0 with demonstrations of your own.")
    if config.checkpoint.best:
        _check_best(config)


def _check_best(config: Config) -> None:
    """Every checkpoint must come with the metric that it is kept by."""
    c, metric = config.checkpoint, config.checkpoint.metric
    if metric == "reward_mean":
        return
    if metric == "test_loss":
        key, every = "eval.every", config.eval.every
    elif metric.startswith("suite_"):
        key, every = "eval.suites_every", config.eval.suites_every if config.eval.suites else 0
    else:
        raise ConfigError(
            f"checkpoint.metric={metric} is none of test_loss, reward_mean and suite_NAME (a suite of eval.suites)."
        )
    if not every:
        needed = "eval.every above 0" if key == "eval.every" else "eval.suites"
        raise ConfigError(f"checkpoint.metric={metric} is never measured: set {needed}, or checkpoint.best=0.")
    if c.every % every:
        raise ConfigError(
            f"checkpoint.every={c.every} is no multiple of {key}={every}: checkpoints without {metric} cannot be kept by it. "
            f"Set checkpoint.every={-(-c.every // every) * every}."
        )


def differing_keys(mine: Config, stored: Config) -> list[str]:
    """The keys, execution keys aside, in which two configs differ."""
    a, b = flatten(mine), flatten(stored)
    return [key for key in a if key not in EXECUTION_KEYS and a[key] != b[key]]


def differences(mine: Config, stored: Config) -> list[str]:
    """These keys with both values: `["optim.lr: 1e-06 here, 1e-05 in the run directory"]`."""
    a, b = flatten(mine), flatten(stored)
    return [f"{key}: {a[key]} here, {b[key]} in the run directory" for key in differing_keys(mine, stored)]
