"""Log-probabilities of chosen next tokens, and a loss of them, without ever holding [tokens, vocab] logits.

Chunk by chunk, one pass computes the logits, the log-probabilities and entropies, the loss of the chunk, and at once the
gradients of the states and of the output matrix: the logits are gone before the next chunk, nothing is computed twice, and the
backward pass only scales. Only states that predict a response token are multiplied; the number of chunks is data.

The devices of one row work on it together, each with its part of the vocabulary (`tensor`) and that part's matrix gathered over
fsdp: they exchange a chunk's sums and the gradient of its states, never logits.

Shapes: B rows; T tokens of a row, C predictions of a row, c of a chunk, D embed, V vocab, or a device's part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgrpo.parallel.sharding import partition_spec

BATCH = ("data", "fsdp")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Predictions:
    """Int arrays [B, C] and the count [B] of those in use, which come first."""

    source: jax.Array  # the token of the row whose state predicts
    target: jax.Array  # the token predicted
    count: jax.Array


@dataclass(frozen=True)
class Head:
    """How states become logits. `tied`: the matrix is the embedding [V, D], else [D, V]."""

    tied: bool
    temperature: float
    chunk: int
    dtype: jnp.dtype  # of the products; they add up in float32
    mesh: jax.sharding.Mesh

    @property
    def axes(self) -> tuple[str, str]:
        return ("vocab", "embed") if self.tied else ("embed", "vocab")


def prediction_logprobs(head: Head, x_BTD: jax.Array, matrix: jax.Array, predictions: Predictions):
    """(logp_BC, entropy_BC) in float32, 0 where there is no prediction; not differentiable.

    x_BTD are the states after the final norm; probabilities are softmax(logits / temperature).
    """
    _, logp_BC, entropy_BC, _ = _run(head, None, False, x_BTD, matrix, predictions, None)[0]
    return logp_BC, entropy_BC


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def prediction_loss(head: Head, token_loss: Callable, x_BTD, matrix, predictions: Predictions, inputs):
    """(loss, logp_BC, entropy_BC, sums), differentiable in x_BTD and the float32 matrix through the loss alone.

    token_loss(logp_c, entropy_c, inputs_c) -> (loss, dict of scalars) of a chunk, where inputs is a tree of arrays [B, C];
    loss and sums are added up over chunks and rows. Entropies are constants to the gradient.
    """
    return _run(head, token_loss, False, x_BTD, matrix, predictions, inputs)[0]


def _loss_forward(head, token_loss, x_BTD, matrix, predictions, inputs):
    return _run(head, token_loss, True, x_BTD, matrix, predictions, inputs)


def _loss_backward(head, token_loss, gradients, cotangents):
    scale = cotangents[0]
    dx_BTD, dmatrix = gradients
    return (scale * dx_BTD).astype(dx_BTD.dtype), scale * dmatrix, None, None


prediction_loss.defvjp(_loss_forward, _loss_backward)


def _run(head: Head, token_loss, differentiate: bool, x_BTD, matrix, predictions: Predictions, inputs):
    """((loss, logp_BC, entropy_BC, sums), (dx_BTD, dmatrix) or None): every device's chunks, inside shard_map."""
    matrix_spec = partition_spec(head.axes, matrix.shape, head.mesh)
    split = tuple(matrix_spec).index("fsdp") if "fsdp" in tuple(matrix_spec) else None
    parts = "tensor" if "tensor" in tuple(matrix_spec) else None

    def local(x_1TD, matrix, predictions, inputs):
        matrix = matrix.astype(head.dtype)
        if split is not None:
            matrix = jax.lax.all_gather(matrix, "fsdp", axis=split, tiled=True)
        row = lambda tree: jax.tree.map(lambda a: a[0], tree)  # noqa: E731
        most = jax.lax.pmax(predictions.count[0], BATCH)
        operands = x_1TD[0], matrix, row(predictions), most, row(inputs)
        results, gradients = _chunks(head, token_loss, differentiate, parts, *operands)
        loss, logp_C, entropy_C, sums = results
        loss, sums = jax.lax.psum((loss, sums), BATCH)
        if differentiate:
            dx_TD, dmatrix = gradients
            if split is not None:
                dmatrix = jax.lax.psum_scatter(dmatrix, "fsdp", scatter_dimension=split, tiled=True)
            dmatrix = jax.lax.psum(dmatrix, BATCH if split is None else "data")
            gradients = dx_TD[None], dmatrix
        return (loss, logp_C[None], entropy_C[None], sums), gradients

    rows = lambda tree: jax.tree.map(lambda a: P(BATCH), tree)  # noqa: E731
    run = jax.shard_map(
        local,
        mesh=head.mesh,
        in_specs=(P(BATCH), matrix_spec, rows(predictions), rows(inputs)),
        out_specs=((P(), P(BATCH), P(BATCH), P()), (P(BATCH), matrix_spec) if differentiate else None),
        check_vma=False,
    )
    return run(x_BTD, matrix, predictions, inputs)


def _chunks(head: Head, token_loss, differentiate: bool, parts, x_TD, matrix, predictions: Predictions, most, inputs):
    """One row: a loop over its chunks, as many as the row with the `most` predictions needs. `parts`: the mesh axis over which
    the vocabulary is spread, or None where the device has all of it."""
    added = lambda tree: jax.lax.psum(tree, parts) if parts else tree  # noqa: E731
    first = jax.lax.axis_index(parts) * matrix.shape[0 if head.tied else 1] if parts else 0
    T, D = x_TD.shape
    C = len(predictions.source)
    c = min(head.chunk, C)
    chunks = -(-most // c)
    forward, to_states, to_matrix = (
        ("cD,VD->cV", "cV,VD->cD", "cV,cD->VD") if head.tied else ("cD,DV->cV", "cV,DV->cD", "cD,cV->DV")
    )
    pad = -C % c
    padded = lambda a: jnp.pad(a, (0, pad))  # noqa: E731
    source_C, target_C = jnp.pad(predictions.source, (0, pad), constant_values=T), padded(predictions.target)
    source_C = jnp.where(jnp.arange(C + pad) < predictions.count, source_C, T)
    inputs = jax.tree.map(padded, inputs)

    def one(index, carry):
        logp_C, entropy_C, total, sums, dx_CD, dmatrix = carry
        part = lambda a: jax.lax.dynamic_slice_in_dim(a, index * c, c)  # noqa: E731
        source_c, target_c = part(source_C), part(target_C)
        x_cD = x_TD.at[source_c].get(mode="fill", fill_value=0)
        logits_cV = jnp.einsum(forward, x_cD, matrix, preferred_element_type=jnp.float32) * (1.0 / head.temperature)
        largest_c1 = jnp.max(logits_cV, axis=-1, keepdims=True)
        largest_c1 = jax.lax.pmax(largest_c1, parts) if parts else largest_c1
        weights_cV = jnp.exp(logits_cV - largest_c1)
        chosen_cV = first + jax.lax.broadcasted_iota(jnp.int32, logits_cV.shape, 1) == target_c[:, None]
        sum_c1, logit_c, weighted_c = added(
            (
                weights_cV.sum(axis=-1, keepdims=True),
                jnp.sum(jnp.where(chosen_cV, logits_cV, 0.0), axis=-1),
                jnp.sum(weights_cV * logits_cV, axis=-1),
            )
        )
        logz_c1 = largest_c1 + jnp.log(sum_c1)
        logp_c = logit_c - logz_c1[:, 0]
        entropy_c = logz_c1[:, 0] - weighted_c / sum_c1[:, 0]
        valid_c = source_c < T
        logp_c, entropy_c = jnp.where(valid_c, logp_c, 0.0), jnp.where(valid_c, entropy_c, 0.0)
        write = lambda array, value: jax.lax.dynamic_update_slice_in_dim(array, value, index * c, 0)  # noqa: E731
        logp_C, entropy_C = write(logp_C, logp_c), write(entropy_C, entropy_c)
        if token_loss is None:
            return logp_C, entropy_C, total, sums, dx_CD, dmatrix
        loss_of = lambda logp_c: token_loss(logp_c, entropy_c, jax.tree.map(part, inputs))  # noqa: E731
        (loss, more), dlogp_c = jax.value_and_grad(loss_of, has_aux=True)(logp_c)
        total, sums = total + loss, jax.tree.map(jnp.add, sums, more)
        if differentiate:
            slope_c1 = jnp.where(valid_c, dlogp_c, 0.0)[:, None] * (1.0 / head.temperature)
            dlogits_cV = (slope_c1 * (chosen_cV - weights_cV / sum_c1)).astype(head.dtype)
            dx_cD = added(jnp.einsum(to_states, dlogits_cV, matrix, preferred_element_type=jnp.float32))
            dx_CD = write(dx_CD, dx_cD.astype(dx_CD.dtype))
            operands = (dlogits_cV, x_cD) if head.tied else (x_cD, dlogits_cV)
            dmatrix = dmatrix + jnp.einsum(to_matrix, *operands, preferred_element_type=jnp.float32)
        return logp_C, entropy_C, total, sums, dx_CD, dmatrix

    zeros_C = jnp.zeros(C + pad, jnp.float32)
    sums = {}
    if token_loss is not None:
        shapes = jax.eval_shape(token_loss, zeros_C[:c], zeros_C[:c], jax.tree.map(lambda a: a[:c], inputs))[1]
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    dx_CD = jnp.zeros((C + pad, D), x_TD.dtype) if differentiate else None
    dmatrix = jnp.zeros(matrix.shape, jnp.float32) if differentiate else None
    carry = (zeros_C, zeros_C, jnp.zeros(()), sums, dx_CD, dmatrix)
    logp_C, entropy_C, total, sums, dx_CD, dmatrix = jax.lax.fori_loop(0, chunks, one, carry)
    gradients = None
    if differentiate:  # a state that predicts several tokens, a shared prompt's last, gets the sum of them
        dx_TD = jnp.zeros((T, D), jnp.float32).at[source_C].add(dx_CD.astype(jnp.float32), mode="drop")
        gradients = dx_TD.astype(x_TD.dtype), dmatrix
    return (total, logp_C[:C], entropy_C[:C], sums), gradients
