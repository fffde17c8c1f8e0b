"""A checkpoint that answers: found, sized, and loaded into an engine, for `jaxgrpo serve` and `jaxgrpo eval`.

CHECKPOINT is a run directory (its newest step), one step of it, a directory that `convert` wrote, a Hugging Face directory or a
hub id. Weights go straight into the rollout mesh's shards in the dtype they are used in. Sizes come from the overrides, else
from the run's own config, else from the model and the memory of the devices.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo import storage
from jaxgrpo.config import SERVING_KEYS, Config, ConfigError, load_config, replace
from jaxgrpo.data import load_tokenizer, unknown_ids
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.hf import load_params
from jaxgrpo.model.parameters import abstract_parameters, parameter_table
from jaxgrpo.model.source import ModelSource, resolve_model, run_and_step
from jaxgrpo.parallel.mesh import rollout_tensor_size
from jaxgrpo.parallel.sharding import named_sharding
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.train import checkpoint
from jaxgrpo.train.conversion import PARAMS, is_converted, load_converted, run_companions
from jaxgrpo.train.sizes import CPU_CACHE_GIB, GIB, cache_bytes_per_slot, default_chunk, device_memory, engine_settings
from jaxgrpo.train.stored import config_of_step

MOST_SLOTS = 64  # of a server, unless asked for more
MOST_BATCH_SLOTS = 256  # of a device that works through a batch, likewise


@dataclass(frozen=True)
class Served:
    """A checkpoint that was found, before its weights are read."""

    source: ModelSource
    step: Path | None  # the step directory of a run; None for a model
    config: Config  # with automatic values left
    found_in: Path | None = None  # what was named: a run or its checkpoints, or the step itself

    @property
    def step_number(self) -> int:
        """Training steps behind it; 0 for a model."""
        return int(self.step.name) if self.step else 0

    @property
    def name(self) -> str:
        return str(self.step or self.source.name)


def find(path: str, overrides: list[str], *, keys: tuple[str, ...] = SERVING_KEYS, config: str | None = None) -> Served:
    """Resolve CHECKPOINT and its configuration. UserError with the remedy if there is nothing to serve.

    keys: those of the configuration that mean something to the caller. config: a YAML file for a model that no run has left one
    for.
    """
    given = {override.partition("=")[0] for override in overrides}
    if unused := sorted(given - set(keys)):
        user = "a server" if keys is SERVING_KEYS else "an evaluation"
        raise ConfigError(f"{unused[0]} means nothing to {user}; the keys are {', '.join(keys)}.")
    run, number = run_and_step(path)
    start = storage.location(path) if number is None else storage.location(run) / "checkpoints" / str(number)
    step = of_run = None
    if is_converted(path) and (start / "config.json").exists():
        source = resolve_model(path, need_weights=False)
    elif start.is_dir() and not (start / "config.json").exists():
        step = checkpoint.step_directories(start)[0]
        companions = run_companions(step)
        source = resolve_model(str(companions), need_weights=False)
        of_run = config_of_step(step)
    else:
        source = resolve_model(path)
    values = load_config(config, overrides, base=of_run)
    known = config is not None or of_run is not None
    changes = _serving_values(values, given, of_run is not None, None if known else source.config.max_positions)
    return Served(source, step, replace(values, changes), start if step else None)


def _serving_values(config: Config, given: set[str], in_run: bool, positions: int | None) -> dict:
    """What a server has in place of the values of training, for keys that were not given. positions: what the model knows, for
    a model that no configuration has set lengths for."""
    values = {"rollout.slots": 0, "rollout.cache_gib": 0.0, "rollout.tensor": 0, "rollout.temperature": 0.0}
    if in_run:
        values["data.tokenizer"] = ""  # the model's own, which a run keeps a copy of
    if positions is not None:
        prompt = config.data.max_prompt_tokens
        if "data.max_prompt_tokens" not in given:
            prompt = min(prompt, max(1, positions // 3))
        values["data.max_prompt_tokens"] = prompt
        values["rollout.max_new_tokens"] = max(1, min(config.rollout.max_new_tokens, positions - prompt))
    return {key: value for key, value in values.items() if key not in given}


def tokenizer_of(served: Served):
    """The tokenizer of a checkpoint. ConfigError where it has none, or one with more tokens than the model."""
    name = served.config.data.tokenizer or served.source.path
    if name is None:
        raise ConfigError(f"{served.name} comes without a tokenizer: set data.tokenizer to a directory or hub id.")
    tokenizer = load_tokenizer(str(name))
    vocab = served.source.config.vocab
    if len(tokenizer) > vocab:
        raise ConfigError(f"the tokenizer {name} has {len(tokenizer)} tokens, the model {vocab}: set data.tokenizer.")
    return tokenizer


def make_engine(served: Served) -> Engine:
    """The engine of a server on all devices: JetStream's Driver prefills one prompt at a time, and decodes token by token."""
    return _engine(served, tokenizer_of(served), MOST_SLOTS, chunk=1, prefill_tokens=1)


def batch_engine(served: Served, tokenizer, sequences: int) -> Engine:
    """The engine for `sequences` that are all known beforehand, on all devices."""
    prompt, answer = served.config.data.max_prompt_tokens, served.config.rollout.max_new_tokens
    most = min(sequences, MOST_BATCH_SLOTS * len(jax.devices()))
    return _engine(served, tokenizer, most, chunk=default_chunk(answer), prefill_tokens=max(prompt, 8192))


def _engine(served: Served, tokenizer, most: int, *, chunk: int, prefill_tokens: int) -> Engine:
    model, devices = served.source.config, jax.devices()
    config = serving_sizes(served.config, model, len(devices), device_memory(devices[0]), most)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stop_ids = served.source.stop_ids or (() if eos is None else (eos,))
    settings = engine_settings(config, stop_ids, 0 if pad is None else pad, unknown_ids(tokenizer, model.vocab))
    settings = dataclasses.replace(settings, chunk=chunk, prefill_tokens=prefill_tokens)
    mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, config.rollout.tensor), ("replica", "tensor"))
    return Engine(model, settings, mesh, tokenizer=tokenizer)


def serving_sizes(config: Config, model: ModelConfig, devices: int, device_bytes: int | None, most: int = MOST_SLOTS) -> Config:
    """rollout.tensor, rollout.cache_gib and rollout.slots where they are automatic.

    device_bytes: None on CPU. most: slots wanted.
    """
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > model.max_positions:
        raise ConfigError(
            f"prompts of {config.data.max_prompt_tokens} and answers of {config.rollout.max_new_tokens} tokens make {longest}, "
            f"but the model knows {model.max_positions} positions: lower --max-prompt or --max-new."
        )
    weights = sum(math.prod(spec.shape) for spec in parameter_table(model)) * jnp.dtype(config.rollout.dtype).itemsize
    tensor = config.rollout.tensor or rollout_tensor_size(model.heads, devices, weights, device_bytes)
    if devices % tensor:
        raise ConfigError(f"rollout.tensor={tensor} does not divide the {devices} devices.")
    config, replicas = replace(config, {"rollout.tensor": tensor}), devices // tensor
    free = CPU_CACHE_GIB * GIB if device_bytes is None else 0.8 * (device_bytes - weights / tensor)
    budget = config.rollout.cache_gib * GIB or free
    fit = int(budget // cache_bytes_per_slot(config, model)) * replicas
    slots = config.rollout.slots or min(-(-most // replicas) * replicas, fit)
    if not 0 < slots <= fit:
        raise ConfigError(
            f"{slots or 'no'} slots of {longest} tokens: {fit} fit into {max(budget, 0) / GIB:.3g} GiB of cache per device. "
            "Lower --slots, --max-prompt or --max-new, or raise rollout.cache_gib or rollout.tensor."
        )
    return replace(config, {"rollout.slots": slots, "rollout.cache_gib": budget / GIB})


def load_weights(served: Served, engine: Engine, say: Callable[[str], None] = print) -> dict:
    """The weights of exactly this checkpoint in the engine's layout, read into its mesh's shards. `say` is told where they come
    without checksums."""
    return engine.load_params(_read_weights(served, engine, "give another step", say))


def load_newest(served: Served, engine: Engine, say: Callable[[str], None] = print) -> tuple[Served, dict]:
    """`load_weights` of the newest checkpoint that can be read, and which one that is: `served` itself, or one before it where
    a run was named and not a step. `say` is told of those that cannot."""
    if served.step is None:
        return served, load_weights(served, engine, say)

    def read(step: Path, remedy: str) -> dict:
        checkpoint.read_meta(step, remedy)
        return _read_weights(dataclasses.replace(served, step=step), engine, remedy, say)

    step, params = checkpoint.newest_readable(served.found_in, read, say)
    return dataclasses.replace(served, step=step), engine.load_params(params)


def _read_weights(served: Served, engine: Engine, remedy: str, say: Callable[[str], None]) -> dict:
    source, dtype = served.source, jnp.dtype(served.config.rollout.dtype)
    if served.step is None and not is_converted(source.name):
        return load_params(source, dtype=dtype, mesh=engine.mesh)
    stored = source.path / PARAMS if served.step is None else served.step / PARAMS
    if note := checkpoint.without_checksums(stored):
        say(note)
    specs = parameter_table(source.config)
    shardings = {spec.name: named_sharding(engine.mesh, spec.axes, spec.shape) for spec in specs}
    target = {
        name: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shardings[name])
        for name, shape in abstract_parameters(source.config).items()
    }
    if served.step is None:
        return load_converted(source, target)
    return checkpoint.load_params(stored, target, remedy)
