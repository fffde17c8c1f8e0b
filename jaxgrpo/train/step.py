"""The update step: one jitted, sharded, donated program per minibatch, and the scoring pass for what the update cannot know.

Micro-batches are looped over on the device with a trip count that is data, so that one compiled program serves every
minibatch and empty rows cost nothing. The loss is an exact mean over the whole minibatch: each micro-batch's share is divided
by the count of all of them, so its size and the number of devices do not matter.

Shapes: M micro-batches, D rows of one (a row of each device), T tokens of a row, C predictions of a row.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrpo.algo import token_weights, weighted_policy_loss
from jaxgrpo.config import AlgoConfig, TrainConfig
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.embedding import look_up_sharded
from jaxgrpo.model.logprobs import Head, prediction_logprobs, prediction_loss
from jaxgrpo.model.packed_attention import attention_backend, packed_attention
from jaxgrpo.model.qwen2 import hidden_states, output_matrix
from jaxgrpo.parallel.sharding import replicated, to_device
from jaxgrpo.train.optimizer import apply_gradients
from jaxgrpo.train.rows import Rows
from jaxgrpo.train.state import TrainState, state_shardings


def rows_sharding(mesh) -> NamedSharding:
    """[M, D, ...]: the rows of a micro-batch are spread over the data and fsdp axes."""
    return NamedSharding(mesh, P(None, ("data", "fsdp")))


def micro_batch(rows, index):
    """Micro-batch `index` of a tree of [M, D, ...] arrays: each [D, ...]."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), rows)


class Forward:
    """The model's forward pass over one micro-batch of rows, and its head."""

    def __init__(self, model: ModelConfig, train: TrainConfig, temperature: float, mesh):
        self.model, self.train, self.mesh = model, train, mesh
        self.dtype = jnp.dtype(train.dtype)
        self.head = Head(model.tied, temperature, train.logit_chunk, self.dtype, mesh)
        self.backend = attention_backend(mesh, self.dtype)

    def states(self, params, rows: Rows, remat: str) -> jax.Array:
        """[D, T, E] after the final norm."""
        attend = packed_attention(self.backend, rows.spans, rows.segment_ids, self.mesh)
        x = look_up_sharded(params["embed"], rows.tokens, self.dtype, self.mesh)
        return hidden_states(
            params,
            self.model,
            x,
            rows.positions,
            attend,
            dtype=self.dtype,
            remat=remat,
            unroll=self.train.unroll,
        )

    def logprobs(self, params, rows: Rows) -> jax.Array:
        """log p [D, C] of the predicted tokens."""
        x = self.states(params, rows, "none")
        return prediction_logprobs(self.head, x, output_matrix(params), rows.predictions)[0]

    def loss(self, params, rows: Rows, token_loss: Callable, inputs: dict):
        """(loss, logp [D, C], entropy [D, C], sums): see `prediction_loss`."""
        x = self.states(params, rows, self.train.remat)
        return prediction_loss(self.head, token_loss, x, output_matrix(params), rows.predictions, inputs)


def make_score(model: ModelConfig, train: TrainConfig, temperature: float, mesh) -> Callable:
    """`score(params, rows, used) -> logp [M, D, C]`: log-probabilities of the predictions of the first `used` micro-batches.

    Layers that lie in host memory come to the device one by one.
    """
    forward = Forward(model, train, temperature, mesh)

    def score(params, rows: Rows, used):
        params = params | to_device({name: x for name, x in params.items() if not name.startswith("layers.")})

        def body(index, out):
            logp = forward.logprobs(params, micro_batch(rows, index))
            return jax.lax.dynamic_update_index_in_dim(out, logp, index, 0)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.lax.fori_loop(0, used, body, jnp.zeros(rows.mask.shape, jnp.float32))

    return jax.jit(score, out_shardings=rows_sharding(mesh))


ON_POLICY = 1.0  # an old log-probability that none can be: the policy that learns is the one that sampled


def make_loss(model: ModelConfig, train: TrainConfig, algo: AlgoConfig, temperature: float, mesh) -> Callable:
    """`loss(params, rows, old_logp, ref_logp, denominator) -> (loss, (sums, largest))` of one micro-batch: its share of the
    minibatch, metrics that add up over micro-batches, and those of which the largest counts."""
    forward = Forward(model, train, temperature, mesh)

    def token_loss(logp, entropy, inputs):
        old = jnp.where(inputs["old"] > 0, jax.lax.stop_gradient(logp), inputs["old"])
        value, metrics = weighted_policy_loss(
            logp,
            old,
            inputs["advantages"],
            inputs["weights"],
            ref_logp=inputs.get("ref"),
            clip_low=algo.clip_low,
            clip_high=algo.clip_high,
            dual_clip=algo.dual_clip,
            kl_coef=algo.kl_coef,
            kl=algo.kl,
            behaviour_logp=inputs["behaviour"],
            tis_cap=algo.tis_cap,
        )
        difference = jnp.abs(inputs["behaviour"] - logp) * inputs["mask"]
        return value, metrics | {"entropy_sum": jnp.sum(entropy * inputs["mask"]), "logprob_diff_sum": difference.sum()}

    def loss(params, rows: Rows, old_logp, ref_logp, denominator):
        weights = token_weights(rows.mask, algo.aggregation, segment_ids_BT=rows.sequence, denominator=denominator)
        inputs = {
            "weights": weights,
            "mask": rows.mask,
            "advantages": rows.advantages,
            "behaviour": rows.behaviour_logp,
            "old": old_logp,
            "ref": ref_logp,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        value, logp, _, sums = forward.loss(params, rows, token_loss, given)
        largest = {"logprob_diff_max": jnp.max(jnp.abs(rows.behaviour_logp - logp) * rows.mask)}
        return value, jax.lax.stop_gradient((sums | {"tokens": rows.mask.sum()}, largest))

    return loss


def _loss_denominator(rows: Rows, aggregation: str) -> jax.Array:
    """Tokens of the minibatch, or its sequences."""
    if aggregation == "token-mean":
        return rows.mask.sum()
    return jnp.max(rows.sequence * (rows.mask > 0), axis=-1).sum().astype(jnp.float32)


def accumulate(loss: Callable, params, rows: Rows, old_logp, ref_logp, used, aggregation: str):
    """(gradients float32, metrics) of the whole minibatch, added up over its micro-batches."""
    denominator = _loss_denominator(rows, aggregation)
    gradient = jax.grad(loss, has_aux=True)

    def one(index):
        return gradient(params, *(micro_batch(tree, index) for tree in (rows, old_logp, ref_logp)), denominator)

    def add(index, total):
        (gradients, (sums, largest)), (more, (more_sums, larger)) = total, one(index)
        add, most = partial(jax.tree.map, jnp.add), partial(jax.tree.map, jnp.maximum)
        return add(gradients, more), (add(sums, more_sums), most(largest, larger))

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
    gradients, (sums, largest) = jax.lax.fori_loop(0, used, add, zeros)
    return gradients, sums | largest


def make_update(model, train: TrainConfig, algo: AlgoConfig, temperature, clip_norm, optimizer, mesh) -> Callable:
    """`update(state, rows, old_logp, ref_logp, used) -> (state, metrics)`; the state is donated.

    Where old_logp [M, D, C] is ON_POLICY, it is the state's own: the first minibatch of a step needs no pass to know it.
    ref_logp may be None (no KL term). Gradients are clipped to `clip_norm` by their global norm. If the norm is not finite the
    state is returned as it was and `skipped_updates` is 1.
    """
    loss = make_loss(model, train, algo, temperature, mesh)

    def update(state: TrainState, rows: Rows, old_logp, ref_logp, used):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gradients, metrics = accumulate(loss, state.params, rows, old_logp, ref_logp, used, algo.aggregation)
            norm = optax.tree.norm(gradients)
            finite = jnp.isfinite(norm)
            scale = jnp.where(norm > clip_norm, clip_norm / norm, 1.0)
            state = apply_gradients(optimizer, state, gradients, scale, finite)
        return state, metrics | {"grad_norm": norm, "skipped_updates": (~finite).astype(jnp.float32)}

    return jax.jit(
        update,
        donate_argnames="state",
        out_shardings=(state_shardings(model, optimizer, mesh, train.offload != "none"), replicated(mesh)),
    )
