"""A tiny Qwen2, a fixed batch of sequences, and the loss of the whole step written plainly: one sequence a row, all logits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.config import AlgoConfig, TrainConfig
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import parameter_table
from jaxgrpo.model.qwen2 import Qwen2
from jaxgrpo.parallel.mesh import trainer_mesh
from jaxgrpo.train.rows import Rows, RowShape, Sequence, pack
from jaxgrpo.train.state import parameter_shardings
from jaxgrpo.train.step import rows_sharding

MODEL = ModelConfig(
    vocab=64,
    embed=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=96,
    tied=True,
    rope_theta=1e4,
    rms_eps=1e-6,
    max_positions=64,
)
TRAIN = TrainConfig(dtype="float32", logit_chunk=16, remat="layer")
ALGO = AlgoConfig(kl_coef=0.05)
TEMPERATURE = 0.9
LONGEST_PROMPT, LONGEST_RESPONSE = 8, 14
MESHES = {1: (1, 1, 1), 8: (2, 2, 2)}


def mesh_of(devices: int):
    return trainer_mesh(MESHES[devices], jax.devices()[:devices])


def random_params(seed=0, model=MODEL):
    """Weights large enough that the policy is far from uniform; norms and biases are not trivial either."""
    rng = np.random.default_rng(seed)
    params = {}
    for spec in parameter_table(model):
        centre, scale = {"normal": (0, 0.15), "zeros": (0, 0.1), "ones": (1, 0.1)}[spec.init]
        params[spec.name] = rng.normal(centre, scale, spec.shape).astype(np.float32)
    return params


def nearby(params, seed, scale=0.03):
    """Another policy, not far away: what sampled the batch, or the reference."""
    rng = np.random.default_rng(seed)
    return {name: value + rng.normal(0, scale, value.shape).astype(np.float32) for name, value in params.items()}


def placed(params, mesh):
    """A fresh copy on the mesh (updates donate theirs)."""
    shardings = parameter_shardings(MODEL, mesh)
    return {name: jax.device_put(np.array(value), shardings[name]) for name, value in params.items()}


def random_sequences(groups=4, samples=3, seed=0) -> list[Sequence]:
    """Groups of responses of many lengths to one prompt; a quarter of the advantages is zero."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(groups):
        prompt = rng.integers(0, MODEL.vocab, rng.integers(1, LONGEST_PROMPT + 1)).astype(np.int32)
        for _ in range(samples):
            response = rng.integers(0, MODEL.vocab, rng.integers(1, LONGEST_RESPONSE + 1)).astype(np.int32)
            advantage = 0.0 if len(out) % 4 == 3 else float(rng.normal(0, 1.5))
            out.append(Sequence(prompt, response, np.zeros(len(response), np.float32), advantage))
    return out


@jax.jit
def padded_logprobs(params, tokens_BT):
    """Log-probabilities [B, T, V] of the next token, from the logits of the whole model call."""
    return jax.nn.log_softmax(Qwen2(MODEL, params)(tokens_BT) / TEMPERATURE, axis=-1)


def padded(sequences, values=None) -> np.ndarray:
    """One sequence per row, zeros at the end: its tokens, or `values` (one array per sequence) on its response tokens."""
    out = np.zeros((len(sequences), max(map(len, sequences))), np.int32 if values is None else np.float32)
    for row, s in enumerate(sequences):
        if values is None:
            out[row, : len(s)] = np.concatenate([s.prompt, s.response])
        else:
            out[row, len(s.prompt) : len(s)] = values[row]
    return out


def plain_logprobs(params, sequences) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per sequence: (log p of its response tokens, entropy of the policy there)."""
    logs_BTV = np.asarray(padded_logprobs(params, padded(sequences)), np.float64)
    out = []
    for logs_TV, s in zip(logs_BTV, sequences, strict=True):
        logs = logs_TV[len(s.prompt) - 1 : len(s) - 1]
        out.append((logs[np.arange(len(s.response)), s.response], -(np.exp(logs) * logs).sum(-1)))
    return out


@jax.jit
@jax.value_and_grad
def _plain_loss(params, tokens, advantage, weight, old, reference, kl_coef):
    logs = padded_logprobs(params, tokens)[:, :-1]
    logp = jnp.pad(jnp.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0], ((0, 0), (1, 0)))
    logp = jnp.where(weight > 0, logp, 0.0)
    ratio, d = jnp.exp(logp - old), reference - logp
    value = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 0.8, 1.2))
    value = jnp.where(advantage < 0, jnp.minimum(value, -advantage * 3.0), value)
    return jnp.sum(weight * (value + kl_coef * jnp.clip(jnp.exp(d) - d - 1, -10, 10)))


def plain_loss_and_gradient(params, sequences, old, reference, algo=ALGO):
    """The loss of PAPER 1.3 over unpacked sequences (`old`, `reference`: log-probabilities per sequence) and its gradient."""
    lengths = np.array([len(s.response) for s in sequences])
    each = 1 / lengths / len(lengths) if algo.aggregation == "seq-mean-token-mean" else np.full(len(lengths), 1 / lengths.sum())
    weight, advantage = padded(sequences, each), padded(sequences, [s.advantage for s in sequences])
    places = (padded(sequences), advantage, weight, padded(sequences, old), padded(sequences, reference))
    return _plain_loss(params, *places, algo.kl_coef)


def packed(sequences, row_tokens, share, mesh, values=None) -> tuple[Rows, np.int32]:
    """Rows on the mesh; `values`, one array per sequence, take the place of the behaviour log-probabilities."""
    if values is not None:
        sequences = [
            Sequence(s.prompt, s.response, np.asarray(v, np.float32), s.advantage)
            for s, v in zip(sequences, values, strict=True)
        ]
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, used = pack(sequences, RowShape(row_tokens, devices, 12, LONGEST_PROMPT, LONGEST_RESPONSE, share, 5), pad_id=0)
    return jax.device_put(rows, rows_sharding(mesh)), np.int32(used)
