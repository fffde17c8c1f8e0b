"""What `jaxgrpo serve CHECKPOINT` serves: a checkpoint as an engine with its weights, and the process that answers for it.

CHECKPOINT is a run directory (its newest step), one step of it, a directory that `convert` wrote, a Hugging Face directory or a
hub id. Weights go straight into the rollout mesh's shards in the dtype they are served in. Sizes come from the overrides, else
from the run's own config, else from the model and the memory of the devices.
"""

import dataclasses
import json
import math
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.config import Config, ConfigError, load_config, replace
from jaxgrpo.data import load_tokenizer
from jaxgrpo.errors import UserError
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.hf import load_params
from jaxgrpo.model.parameters import abstract_parameters, parameter_table
from jaxgrpo.model.source import ModelSource, resolve_model
from jaxgrpo.parallel.mesh import rollout_tensor_size
from jaxgrpo.parallel.sharding import named_sharding
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.train import checkpoint
from jaxgrpo.train.conversion import is_converted, load_converted, run_companions
from jaxgrpo.train.sizes import CPU_CACHE_GIB, GIB, cache_bytes_per_slot, config_sampling, device_memory, engine_settings

KEYS = (  # of the configuration, that serving looks at
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
)
MOST_SLOTS = 64  # unless asked for more


@dataclass(frozen=True)
class Served:
    """A checkpoint that was found, before its weights are read."""

    source: ModelSource
    step: Path | None  # the step directory of a run; None for a model
    config: Config  # with automatic values left

    @property
    def name(self) -> str:
        return str(self.step or self.source.name)


def find(path: str, overrides: list[str]) -> Served:
    """Resolve CHECKPOINT and its configuration. UserError with the remedy if there is nothing to serve."""
    given = {override.partition("=")[0] for override in overrides}
    if unused := sorted(given - set(KEYS)):
        raise ConfigError(f"{unused[0]} means nothing to a server; the keys are {', '.join(KEYS)}.")
    start = Path(path)
    if is_converted(path) and (start / "config.json").exists():
        source, step, stored = resolve_model(path, need_weights=False), None, None
    elif start.is_dir() and not (start / "config.json").exists():
        step = checkpoint.step_directory(start)
        companions = run_companions(step)
        source, stored = resolve_model(str(companions), need_weights=False), companions.parent / "config.yaml"
    else:
        source, step, stored = resolve_model(path), None, None
    in_run = stored is not None and stored.exists()
    config = load_config(str(stored) if in_run else None, overrides)
    return Served(
        source, step, replace(config, _serving_values(config, given, None if in_run else source.config.max_positions))
    )


def _serving_values(config: Config, given: set[str], positions: int | None) -> dict:
    """What a server has in place of the values of training, for keys that were not given. positions: what the model knows, for
    a model that no run has set lengths for."""
    values = {"rollout.slots": 0, "rollout.cache_gib": 0.0, "rollout.tensor": 0, "rollout.temperature": 0.0}
    values["data.tokenizer"] = ""  # the model's own, which a run keeps a copy of
    if positions is not None:
        prompt = config.data.max_prompt_tokens
        if "data.max_prompt_tokens" not in given:
            prompt = min(prompt, max(1, positions // 3))
        values["data.max_prompt_tokens"] = prompt
        values["rollout.max_new_tokens"] = max(1, min(config.rollout.max_new_tokens, positions - prompt))
    return {key: value for key, value in values.items() if key not in given}


def make_engine(served: Served) -> Engine:
    """The engine of a checkpoint on all devices; every size is decided here."""
    model, config = served.source.config, served.config
    devices = jax.devices()
    config = serving_sizes(config, model, len(devices), device_memory(devices[0]))
    name = config.data.tokenizer or served.source.path
    if name is None:
        raise ConfigError(f"{served.name} comes without a tokenizer: set data.tokenizer to a directory or hub id.")
    tokenizer = load_tokenizer(str(name))
    if len(tokenizer) > model.vocab:
        raise ConfigError(f"the tokenizer {name} has {len(tokenizer)} tokens, the model {model.vocab}: set data.tokenizer.")
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stop_ids = served.source.stop_ids or (() if eos is None else (eos,))
    settings = engine_settings(config, stop_ids, 0 if pad is None else pad)
    settings = dataclasses.replace(settings, chunk=1, prefill_tokens=1)  # the Driver prefills one prompt at a time: one row
    mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, config.rollout.tensor), ("replica", "tensor"))
    return Engine(model, settings, mesh, tokenizer=tokenizer)


def serving_sizes(config: Config, model: ModelConfig, devices: int, device_bytes: int | None) -> Config:
    """rollout.tensor, rollout.cache_gib and rollout.slots where they are automatic. device_bytes: None on CPU."""
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
    slots = config.rollout.slots or min(-(-MOST_SLOTS // replicas) * replicas, fit)
    if not 0 < slots <= fit:
        raise ConfigError(
            f"{slots or 'no'} slots of {longest} tokens: {fit} fit into {max(budget, 0) / GIB:.3g} GiB of cache per device. "
            "Lower --slots, --max-prompt or --max-new, or raise rollout.cache_gib or rollout.tensor."
        )
    return replace(config, {"rollout.slots": slots, "rollout.cache_gib": budget / GIB})


def load_weights(served: Served, engine: Engine) -> dict:
    """The weights in the engine's layout, read into its mesh's shards."""
    source, dtype = served.source, jnp.dtype(served.config.rollout.dtype)
    if served.step is None and not is_converted(source.name):
        return engine.load_params(load_params(source, dtype=dtype, mesh=engine.mesh))
    specs = parameter_table(source.config)
    shardings = {spec.name: named_sharding(engine.mesh, spec.axes, spec.shape) for spec in specs}
    target = {
        name: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shardings[name])
        for name, shape in abstract_parameters(source.config).items()
    }
    if served.step is None:
        return engine.load_params(load_converted(source, target))
    return engine.load_params(checkpoint.load_params(served.step / "params", target, "give another step"))


class Lifeline:
    """Notices that the supervisor has let go: the standard input, on which nothing comes, has ended."""

    def __init__(self):
        self.on_end = lambda: os._exit(0)  # nothing is served yet
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        sys.stdin.buffer.read()
        self.on_end()


def main(options: dict, ready: int) -> None:
    """Serve until the supervisor lets go. options: checkpoint, overrides, host, port; ready: a pipe for one line."""
    lifeline = Lifeline()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal to the whole group means the supervisor, which lets go
    from jaxgrpo.rollout.server import Server, address

    served = find(options["checkpoint"], options["overrides"])
    engine = make_engine(served)
    print(f"loading {served.name}", flush=True)
    params = load_weights(served, engine)
    sizes = engine.settings
    print(f"compiling: {sizes.slots} slots, prompts of {sizes.max_prompt}, answers of {sizes.max_new} tokens", flush=True)
    sampling = config_sampling(served.config)
    server = Server(engine, params, host=options["host"], port=options["port"], sampling=sampling, seed=served.config.seed)
    lifeline.on_end = server.stop
    where = address(options["host"], options["port"])
    server.run(lambda: os.write(ready, f"serving {served.name} on {where}\n".encode()))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), int(sys.argv[2]))
        code = 0
    except UserError as error:
        print(f"jaxgrpo: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except Exception:  # whatever it is, the process must end: the Driver's threads would keep it and the port
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the Driver's threads would keep the interpreter alive
