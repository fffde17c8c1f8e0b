"""The jitted update of 8,192 tokens over Qwen's vocabulary never holds their logits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.config import AlgoConfig, OptimConfig, TrainConfig
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.parallel.mesh import trainer_mesh
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.rows import RowShape, pack
from jaxgrpo.train.sizes import CPU_LOGIT_CHUNK, CPU_QUERIES
from jaxgrpo.train.state import abstract_state
from jaxgrpo.train.step import make_update

TOKENS, VOCAB = 8192, 152_064
ALL_LOGITS = 4 * TOKENS * VOCAB
MODEL = ModelConfig(
    vocab=VOCAB,
    embed=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    mlp=128,
    tied=True,
    rope_theta=1e6,
    rms_eps=1e-6,
    max_positions=TOKENS,
)


def temporary_bytes(program, *arguments) -> int:
    return program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_the_update_needs_a_fifth_of_what_its_logits_would_take():
    mesh = trainer_mesh((1, 1, 1), jax.devices()[:1])
    optimizer = make_optimizer(OptimConfig())
    train = TrainConfig(dtype="float32", remat="layer", logit_chunk=CPU_LOGIT_CHUNK)
    update = make_update(MODEL, train, AlgoConfig(), 1.0, 1.0, optimizer, mesh)
    rows, _ = pack([], RowShape(TOKENS, 1, 4, 1024, TOKENS - 1024, True, CPU_QUERIES), pad_id=0)
    logp = np.zeros(rows.mask.shape, np.float32)
    temporary = temporary_bytes(update, abstract_state(MODEL, optimizer, mesh), rows, logp, logp, np.int32(1))
    assert 5 * temporary <= ALL_LOGITS


def test_a_loss_that_materialises_the_logits_would_be_noticed():
    def loss(states_TD, matrix_VD, targets_T):
        logs_TV = jax.nn.log_softmax(states_TD @ matrix_VD.T, axis=-1)
        return jnp.take_along_axis(logs_TV, targets_T[:, None], axis=-1).sum()

    shapes = jnp.zeros((TOKENS, 64)), jnp.zeros((VOCAB, 64)), jnp.zeros(TOKENS, jnp.int32)
    assert 5 * temporary_bytes(jax.jit(jax.grad(loss, (0, 1))), *shapes) > ALL_LOGITS
