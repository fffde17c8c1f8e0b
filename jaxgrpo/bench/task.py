"""The task that is timed: a random Qwen2.5-architecture model, random prompts of one length, responses of forced lengths."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.config import Config, ConfigError, load_config
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import count_parameters, initialise
from jaxgrpo.model.source import resolve_model
from jaxgrpo.parallel.mesh import rollout_mesh, trainer_mesh
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.sampling import Sampling, sample_keys
from jaxgrpo.rollout.scheduler import Request
from jaxgrpo.train.sizes import device_memory, engine_settings, resolve_sizes
from jaxgrpo.train.state import parameter_shardings


@dataclass(frozen=True)
class Task:
    """What `jaxgrpo bench` is asked to time; the fields are its options."""

    model: str | None = None  # random:NAME, instead of the seven sizes below
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 1024
    vocab: int = 4096
    prompts: int = 64
    samples: int = 8
    prompt_len: int = 64
    new_tokens: int = 128
    lengths: str = "fixed"  # or "long-tail"
    dtype: str = "float32"
    slots: int = 0
    chunk: int = 0
    repeats: int = 3
    seed: int = 0
    set: tuple[str, ...] = ()  # KEY=VALUE of the configuration

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples

    def check(self) -> None:
        """ConfigError for a size below 1 or heads that do not divide."""
        for name, value in vars(self).items():
            least = 0 if name in ("slots", "chunk", "seed") else 1
            if isinstance(value, int) and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: it needs at least {least}.")
        if self.heads % self.kv_heads or self.hidden % (2 * self.heads):
            raise ConfigError(
                f"--heads {self.heads} must be a multiple of --kv-heads {self.kv_heads} and divide --hidden {self.hidden} into "
                "even parts."
            )

    def model_config(self) -> ModelConfig:
        if self.model:
            return resolve_model(self.model, need_weights=False).config
        return ModelConfig(
            vocab=self.vocab,
            embed=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            mlp=self.ffn,
            tied=True,
            rope_theta=1e6,
            rms_eps=1e-6,
            max_positions=max(32_768, self.prompt_len + self.new_tokens),
        )


def response_lengths(task: Task) -> np.ndarray:
    """Tokens of every response [prompts, samples]. "fixed": the limit. "long-tail": exponentially distributed, cut at the limit
    and scaled so that their mean is a quarter of it; about one in fifty is at the limit, as in the published runs."""
    if task.lengths == "fixed":
        return np.full((task.prompts, task.samples), task.new_tokens)
    uniform = (np.arange(task.sequences) + 0.5) / task.sequences
    low, high = 0.0, float(task.new_tokens)
    for _ in range(60):  # the mean grows with the scale
        scale = (low + high) / 2
        lengths = np.clip(np.round(-scale * np.log1p(-uniform)), 1, task.new_tokens).astype(int)
        low, high = (scale, high) if lengths.mean() < task.new_tokens / 4 else (low, scale)
    return np.random.default_rng(task.seed).permutation(lengths).reshape(task.prompts, task.samples)


@dataclass
class Bench:
    """A task made ready: nothing is compiled yet."""

    task: Task
    config: Config
    model: ModelConfig
    mesh: jax.sharding.Mesh
    params: dict
    engine: Engine
    requests: list[Request]
    lengths_PG: np.ndarray


def make_bench(task: Task) -> Bench:
    task.check()
    model = task.model_config()
    devices = jax.devices()
    changes = {
        "data.prompts_per_step": task.prompts,
        "data.max_prompt_tokens": task.prompt_len,
        "rollout.samples": task.samples,
        "rollout.max_new_tokens": task.new_tokens,
        "rollout.slots": task.slots,
        "rollout.chunk": task.chunk,
        "rollout.dtype": task.dtype,
        "train.dtype": task.dtype,
        "train.minibatch_prompts": task.prompts,
        "train.remat": "layer" if task.model else "none",
        "train.unroll": 1 if task.model else model.layers,
        "optim.weight_decay": 0.0,
    }
    lines = [f"{key}={value}" for key, value in changes.items()]
    config = resolve_sizes(load_config(None, [*lines, *task.set]), model, len(devices), device_memory(devices[0]))
    mesh = trainer_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), devices)
    params = jax.jit(lambda: initialise(model, task.seed), out_shardings=parameter_shardings(model, mesh))()
    settings = engine_settings(config, stop_ids=(), pad_id=0)
    engine = Engine(model, settings, rollout_mesh(mesh, config.rollout.tensor))
    lengths_PG = response_lengths(task)
    return Bench(task, config, model, mesh, params, engine, _requests(task, model, lengths_PG), lengths_PG)


def _requests(task: Task, model: ModelConfig, lengths_PG: np.ndarray) -> list[Request]:
    rng = np.random.default_rng(task.seed)
    samples = np.arange(task.samples)
    return [
        Request(
            rng.integers(0, model.vocab, task.prompt_len).astype(np.int32),
            sample_keys(task.seed, "bench", 0, np.full(task.samples, prompt), samples),
            Sampling(),
            lengths_PG[prompt],
        )
        for prompt in range(task.prompts)
    ]


def weight_bytes(model: ModelConfig, dtype) -> int:
    """Bytes of the matrices and vectors that one decoded token multiplies: all but an untied embedding table."""
    return (count_parameters(model)["non_embedding"] + model.vocab * model.embed) * jnp.dtype(dtype).itemsize


def cache_bytes_per_token(model: ModelConfig, dtype) -> int:
    """K and V of one position in all layers."""
    return 2 * model.layers * model.kv_heads * model.head_dim * jnp.dtype(dtype).itemsize
