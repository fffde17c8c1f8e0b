"""The update step: one jitted, sharded, donated program per minibatch, and the scoring pass that precedes it.

Micro-batches are looped over on the device with a trip count that is data, so that one compiled program serves every
minibatch and empty rows cost nothing. The loss is an exact mean over the whole minibatch: each micro-batch's share is divided
by the count of all of them, so its size and the number of devices do not matter.

Shapes: M micro-batches, b rows of one, T tokens of a row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrpo.algo import policy_loss
from jaxgrpo.config import AlgoConfig, TrainConfig
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.logprobs import next_token_logprobs
from jaxgrpo.model.qwen2 import hidden_states, output_matrix
from jaxgrpo.parallel.sharding import replicated
from jaxgrpo.train.rows import Rows
from jaxgrpo.train.state import TrainState, state_shardings


def rows_sharding(mesh) -> NamedSharding:
    """[M, b, T]: the rows of a micro-batch are spread over the data and fsdp axes."""
    return NamedSharding(mesh, P(None, ("data", "fsdp"), None))


def row_logprobs(params, model: ModelConfig, train: TrainConfig, rows: Rows, temperature: float):
    """(logp_bT, entropy_bT) of every token of one micro-batch under `params`, forward in train.dtype."""
    dtype = jnp.dtype(train.dtype)
    x_bTD = hidden_states(
        params, model, rows.tokens, rows.positions, rows.segment_ids, dtype=dtype, remat=train.remat, unroll=train.unroll
    )
    return next_token_logprobs(x_bTD, output_matrix(params).astype(dtype), rows.tokens, temperature, train.logit_chunk)


def micro_batch(rows: Rows, index) -> Rows:
    """Micro-batch `index` of [M, b, T] arrays: each [b, T]."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), rows)


def make_score(model: ModelConfig, train: TrainConfig, temperature: float, mesh) -> Callable:
    """`score(params, rows, used) -> logp [M, b, T]`: log-probabilities of the tokens of the first `used` micro-batches."""

    def score(params, rows: Rows, used):
        def body(index, out):
            logp_bT, _ = row_logprobs(params, model, train, micro_batch(rows, index), temperature)
            return jax.lax.dynamic_update_index_in_dim(out, logp_bT, index, 0)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.lax.fori_loop(0, used, body, jnp.zeros(rows.tokens.shape, jnp.float32))

    return jax.jit(score, out_shardings=rows_sharding(mesh))


def make_loss(model: ModelConfig, train: TrainConfig, algo: AlgoConfig, temperature: float) -> Callable:
    """`loss(params, rows, old_logp, ref_logp, denominator) -> (loss, metrics)` of a micro-batch: its share of the minibatch."""

    def loss(params, rows: Rows, old_logp, ref_logp, denominator):
        logp, entropy = row_logprobs(params, model, train, rows, temperature)
        value, metrics = policy_loss(
            logp,
            old_logp,
            rows.advantages,
            rows.mask,
            ref_logp_BT=ref_logp,
            clip_low=algo.clip_low,
            clip_high=algo.clip_high,
            dual_clip=algo.dual_clip,
            kl_coef=algo.kl_coef,
            kl=algo.kl,
            aggregation=algo.aggregation,
            segment_ids_BT=rows.segment_ids,
            denominator=denominator,
            behaviour_logp_BT=rows.behaviour_logp,
            tis_cap=algo.tis_cap,
        )
        tokens = rows.mask.sum()
        return value, metrics | {"entropy_sum": jnp.sum(entropy * rows.mask), "tokens": tokens}

    return loss


def _loss_denominator(rows: Rows, aggregation: str) -> jax.Array:
    if aggregation == "token-mean":
        return rows.mask.sum()
    starts = (rows.positions == 0) & (rows.segment_ids > 0)
    return starts.sum().astype(jnp.float32)


def accumulate(loss: Callable, params, rows: Rows, old_logp, ref_logp, used, aggregation: str):
    """(gradients float32, metrics) of the whole minibatch, summed over its micro-batches."""
    denominator = _loss_denominator(rows, aggregation)
    gradient = jax.grad(loss, has_aux=True)

    def one(index):
        reference = None if ref_logp is None else micro_batch(ref_logp, index)
        return gradient(params, micro_batch(rows, index), micro_batch(old_logp, index), reference, denominator)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
    return jax.lax.fori_loop(0, used, lambda index, total: jax.tree.map(jnp.add, total, one(index)), zeros)


def make_update(model, train: TrainConfig, algo: AlgoConfig, temperature, clip_norm, optimizer, mesh) -> Callable:
    """`update(state, rows, old_logp, ref_logp, used) -> (state, metrics)`; the state is donated.

    ref_logp may be None (no KL term). Gradients are clipped to `clip_norm` by their global norm. If the norm is not finite the
    state is returned as it was and `skipped_updates` is 1.
    """
    loss = make_loss(model, train, algo, temperature)

    def update(state: TrainState, rows: Rows, old_logp, ref_logp, used):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gradients, metrics = accumulate(loss, state.params, rows, old_logp, ref_logp, used, algo.aggregation)
            norm = optax.tree.norm(gradients)
            finite = jnp.isfinite(norm)
            scale = jnp.where(norm > clip_norm, clip_norm / norm, 1.0)
            updates, opt_state = optimizer.update(jax.tree.map(lambda g: g * scale, gradients), state.opt_state, state.params)
            changed = TrainState(optax.apply_updates(state.params, updates), opt_state)
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, state)
        return state, metrics | {"grad_norm": norm, "skipped_updates": (~finite).astype(jnp.float32)}

    return jax.jit(
        update,
        donate_argnames="state",
        out_shardings=(state_shardings(model, optimizer, mesh), replicated(mesh)),
    )
