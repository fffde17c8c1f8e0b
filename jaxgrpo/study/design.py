"""What a study consists of: its YAML file, and the training runs that it asks for.

    study: ladder              # ladder: the law over sizes; reuse: how often prompts are repeated; group: samples per prompt
    out: runs/study            # everything lies here
    seeds: [0, 1]              # every run is trained once with each
    config: quickstart.yaml    # the training configuration of all runs, seen from this file
    set:                       # keys of the training configuration, for all runs
      train.steps: 40
    runs:                      # the runs by name, each with its own keys; `config` gives one a configuration of its own
      w16: {model: random:miniature-16}
      w24: {model: random:miniature-24}

On the command line `key=value` sets a key of the study where it is one (`jobs=1`, `fit.warmup=4`, `runs.w16.model=DIR`), and
else a key of the training configuration of all runs (`train.steps=10`), as under `set`.
"""

import difflib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jaxgrpo.config import Config, ConfigError, load_config, parse_override, read_mapping, replace, typed_value
from jaxgrpo.machine import usable_cores
from jaxgrpo.model.source import resolve_model
from jaxgrpo.typed_text import typed
from scaling.design import OBJECTIVES
from scaling.law import RESAMPLES
from scaling.runs import X_COLUMNS

RESERVED = {"seed": "seeds", "run_dir": "out"}  # keys of a run that the study sets itself, and what to use instead


@dataclass(frozen=True)
class LearningRate:
    """One rule of the model's width for all runs: optim.lr = base * (width / w)^power of a model w wide."""

    base: float = 0.0  # 0: no rule, optim.lr as configured
    width: int = 64
    power: float = 0.0


@dataclass(frozen=True)
class FitConfig:
    """How the law is fitted; see `jaxgrpo fit --help`."""

    x: tuple[str, ...] = ("compute", "data")
    objective: str = "log"
    warmup: int = 0  # points of every curve that are dropped at its beginning
    ending: int = 0  # and at its end
    bootstrap: int = 2000
    resample: str = "block"
    seed: int = 0


@dataclass(frozen=True)
class StudyConfig:
    study: Literal["ladder", "reuse", "group"] = "ladder"
    out: str = "runs/study"
    seeds: tuple[int, ...] = (0,)
    jobs: int = 0  # runs at a time; 0: one per core on a CPU, else one
    config: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning_rate: LearningRate = field(default_factory=LearningRate)
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class PlannedRun:
    """One training run. `config` is complete but for what the run works out itself."""

    name: str  # of the entry under `runs`
    seed: int
    config: Config

    @property
    def directory(self) -> Path:
        return Path(self.config.run_dir)


def load_study(path: str, overrides: list[str] = ()) -> tuple[StudyConfig, list[PlannedRun]]:
    """Read a study's file and work out its runs, in the order of the file. ConfigError for everything that cannot be meant."""
    values = read_mapping(path, "study file", lambda path: "; configs/study*.yaml are examples.")
    if "study" not in values or "runs" not in values:
        raise ConfigError(f"{path} is no study: it has no `study:` or no `runs:`. One run is `jaxgrpo train {path}`.")
    for override in overrides:
        _override(values, *parse_override(override))
    study = _checked(path, values)
    return study, [_planned(study, Path(path).parent, name, seed) for name in study.runs for seed in study.seeds]


def _override(values: dict, key: str, value: Any) -> None:
    first, _, rest = key.partition(".")
    if first == "runs" and rest:
        name, _, of_run = rest.partition(".")
        if not of_run:
            raise ConfigError(f"{key}: give a key of that run, such as {key}.model=DIR.")
        values["runs"] = values["runs"] | {name: (values["runs"].get(name) or {}) | {of_run: value}}
    elif first in ("learning_rate", "fit") and rest:
        values[first] = (values.get(first) or {}) | {rest: value}
    elif first in {f.name for f in fields(StudyConfig)} and not rest:
        values[first] = value
    else:
        values["set"] = (values.get("set") or {}) | {key: value}


def _checked(path: str, values: dict) -> StudyConfig:
    known = [f.name for f in fields(StudyConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"a study has {', '.join(known)}."
            raise ConfigError(f"{path}: unknown key {key!r}; {hint} Keys of the training configuration belong under `set`.")
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), _typed(values)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if not study.runs:
        raise ConfigError(f"{path}: `runs` is empty: name the runs, such as w16: {{model: random:miniature-16}}.")
    for name in study.runs:
        if not str(name) or "/" in str(name) or str(name).startswith("."):
            raise ConfigError(f"{path}: a run is called {name!r}, which cannot be the name of a folder.")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"seeds={list(study.seeds)}: give at least one seed, and each only once.")
    if study.jobs < 0:
        raise ConfigError(f"jobs={study.jobs} is below 0.")
    _check_fit(study.fit)
    for place, keys in (("set", study.set), *((f"runs.{name}", run) for name, run in study.runs.items())):
        for key in keys:
            if key in RESERVED:
                raise ConfigError(f"{place}.{key}: a study sets {key} itself; use {RESERVED[key]}.")
    if study.learning_rate.base and any("optim.lr" in keys for keys in (study.set, *study.runs.values())):
        raise ConfigError("optim.lr and learning_rate.base are both set: keep one of them.")
    return study


def _typed(values: dict) -> dict:
    """The keys of a study with values of their types; `set` and the runs hold keys of the training configuration."""
    hints = get_type_hints(StudyConfig)
    nested = {"learning_rate": get_type_hints(LearningRate), "fit": get_type_hints(FitConfig)}

    def keys_of(given: Any, hints: dict) -> Any:
        return {name: typed(v, hints.get(name, str)) for name, v in given.items()} if isinstance(given, dict) else given

    def of_training(keys: dict | str | None) -> dict:
        return {key: typed_value(key, value) for key, value in keys.items()} if isinstance(keys, dict) else keys or {}

    found = {key: typed(value, hints[key]) for key, value in values.items() if key not in ("set", "runs", *nested)}
    for key in nested.keys() & values.keys():
        found[key] = keys_of(values[key] or {}, nested[key])
    if "set" in values:
        found["set"] = of_training(values["set"])
    runs = values["runs"] or {}
    found["runs"] = {name: of_training(keys) for name, keys in runs.items()} if isinstance(runs, dict) else runs
    return found


def _check_fit(fit: FitConfig) -> None:
    """Refuse now what would fail only when all runs are trained."""
    if not fit.x:
        raise ConfigError(f"fit.x is empty: name {', '.join(X_COLUMNS)}.")
    chosen = [("x", x, X_COLUMNS) for x in fit.x] + [
        ("objective", fit.objective, OBJECTIVES),
        ("resample", fit.resample, RESAMPLES),
    ]
    for key, value, choices in chosen:
        if value not in choices:
            raise ConfigError(f"fit.{key}={value} is not known: choose from {', '.join(choices)}.")
    for key in ("warmup", "ending", "bootstrap"):
        if getattr(fit, key) < 0:
            raise ConfigError(f"fit.{key}={getattr(fit, key)} is below 0.")


def _planned(study: StudyConfig, folder: Path, name: str, seed: int) -> PlannedRun:
    own = dict(study.runs[name])
    base = own.pop("config", None) or study.config
    path = str(folder / base) if base else None
    out = Path(study.out) / "runs" / f"{name}-seed{seed}"
    values = study.set | own | {"seed": seed, "run_dir": str(out)}
    try:
        config = load_config(path, values=values)
        if study.learning_rate.base:
            rule = study.learning_rate
            width = resolve_model(config.model, need_weights=False).config.embed
            config = replace(config, {"optim.lr": float(f"{rule.base * (rule.width / width) ** rule.power:.4g}")})
    except ConfigError as error:
        raise ConfigError(f"run {name}: {error}") from None
    return PlannedRun(str(name), seed, config)


def jobs_at_once(study: StudyConfig, runs: int) -> int:
    """How many runs are trained side by side: as configured, else one per core where JAX uses the CPU, and one elsewhere."""
    if study.jobs:
        return min(study.jobs, runs)
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not _accelerator()
    return min(len(usable_cores()), runs) if on_cpu else 1


def _accelerator() -> bool:
    """Whether this machine shows a GPU or a TPU, found without starting JAX, which would take it from the runs."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))
