"""Small models, engines and requests for the rollout tests."""

from functools import cache

import jax
import numpy as np

from jaxgrpo.model import load_hf
from jaxgrpo.model.qwen2 import Qwen2
from jaxgrpo.rollout.engine import Engine, EngineSettings
from jaxgrpo.rollout.sampling import Sampling, sample_keys
from jaxgrpo.rollout.scheduler import Request

VOCAB = 64
SMALL = {"vocab": VOCAB, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96}
_COMPILED = "/jax/core/compile/backend_compile_duration"


def mesh_of(replicas: int = 1, tensor: int = 1):
    devices = jax.devices()[: replicas * tensor]
    return jax.sharding.Mesh(np.array(devices).reshape(replicas, tensor), ("replica", "tensor"))


def settings_of(**changes) -> EngineSettings:
    sizes = {"slots": 8, "max_prompt": 32, "max_new": 24, "chunk": 5, "prefill_tokens": 160, "stop_ids": (), "dtype": "float32"}
    return EngineSettings(**sizes | changes)


def load(directory) -> Qwen2:
    return load_hf(directory, dtype=jax.numpy.float32)


@cache
def engine_of(model: Qwen2, replicas: int = 1, tensor: int = 1, **changes) -> tuple[Engine, dict]:
    """An engine and the model's weights in its layout; the same ones again for the same arguments."""
    engine = Engine(model.config, settings_of(**changes), mesh_of(replicas, tensor))
    return engine, engine.load_params(model.params)


_forward = jax.jit(lambda model, tokens_BT: model(tokens_BT))


def trainer_logits(model: Qwen2, tokens_T) -> np.ndarray:
    """Logits [T, V] of the trainer's full forward pass; padded on the right, which causal attention does not see."""
    tokens_T = np.asarray(tokens_T, np.int32)
    return np.asarray(_forward(model, np.pad(tokens_T, (0, 64 - len(tokens_T)))[None])[0, : len(tokens_T)])


def trainer_logps(model, prompt, tokens, temperature: float) -> np.ndarray:
    """Log-probabilities of `tokens` after `prompt` by the trainer's full forward pass."""
    logits_TV = trainer_logits(model, np.concatenate([prompt, tokens]))
    logps_TV = np.asarray(jax.nn.log_softmax(logits_TV / temperature))
    positions = np.arange(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    return logps_TV[positions, tokens]


def prompts_of(lengths, vocab: int = VOCAB, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, length).astype(np.int32) for length in lengths]


def requests_of(prompts, *, samples=1, temperature=0.0, max_new=24, seed=0, stream="train", step=1) -> list[Request]:
    """One request a prompt, with the keys that the trainer would give it."""
    return [
        Request(
            prompt, sample_keys(seed, stream, step, np.full(samples, i), np.arange(samples)), Sampling(temperature), max_new
        )
        for i, prompt in enumerate(prompts)
    ]


def said(responses) -> list[list[tuple]]:
    """Tokens, log-probabilities and finish reason of every response, for exact comparison."""
    return [[(r.tokens, r.logps, r.finish) for r in group] for group in responses]


class CompilationCounter:
    """Counts the programs that XLA builds inside `with`."""

    def __enter__(self) -> "CompilationCounter":
        self.count, self._open = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_):
        self._open = False

    def _hear(self, event: str, *_, **__):
        self.count += self._open and event == _COMPILED
