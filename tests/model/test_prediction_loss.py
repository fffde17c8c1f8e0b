"""The fused head against a plain log-softmax: values, entropies, loss and gradients, for any chunk and any sharding."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.algo import weighted_policy_loss
from jaxgrpo.model.logprobs import Head, Predictions, prediction_logprobs, prediction_loss
from jaxgrpo.parallel.mesh import trainer_mesh

ROW, EMBED, VOCAB, PLACES = 11, 8, 28, 14
MESHES = [(1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 1, 4), (2, 2, 2)]


def mesh_of(shape):
    return trainer_mesh(shape, jax.devices()[: int(np.prod(shape))])


def case(rows, seed=0, scale=2.0):
    """(states [B, T, D], matrix [V, D], predictions, inputs of the loss): several predictions share a source."""
    rng = np.random.default_rng(seed)
    states = rng.normal(0, scale, (rows, ROW, EMBED)).astype(np.float32)
    matrix = rng.normal(0, 1, (VOCAB, EMBED)).astype(np.float32)
    source = rng.integers(0, ROW, (rows, PLACES)).astype(np.int32)
    target = rng.integers(0, VOCAB, (rows, PLACES)).astype(np.int32)
    count = rng.integers(0, PLACES + 1, rows).astype(np.int32)
    count[0] = PLACES
    values = rng.normal(0, 1, (3, rows, PLACES)).astype(np.float32)
    return states, matrix, Predictions(source, target, count), values


def plain(states, matrix, predictions, temperature):
    """(logp [B, C], entropy [B, C]) in the dtype of the states; 0 where there is no prediction."""
    rows = jnp.arange(len(states))[:, None]
    logs = jax.nn.log_softmax(states[rows, predictions.source] @ matrix.T / temperature, axis=-1)
    valid = jnp.arange(PLACES) < predictions.count[:, None]
    logp = jnp.take_along_axis(logs, predictions.target[..., None], -1)[..., 0]
    return jnp.where(valid, logp, 0), jnp.where(valid, -(jnp.exp(logs) * logs).sum(-1), 0)


def token_loss(logp, entropy, inputs):
    """A loss with curvature, clipping and a divergence: the trainer's own."""
    old, advantages, reference, weights = inputs
    value, metrics = weighted_policy_loss(
        logp,
        old,
        advantages,
        weights,
        ref_logp=reference,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=3.0,
        kl_coef=0.1,
        kl="k3",
        behaviour_logp=old,
        tis_cap=0.0,
    )
    return value, metrics | {"entropy": jnp.sum(entropy * weights)}


def inputs_of(logp, values, predictions):
    """Old and reference log-probabilities near the policy's own, advantages, and weights of the valid places."""
    valid = np.arange(PLACES) < np.asarray(predictions.count)[:, None]
    old, reference = logp + 0.3 * values[0], logp + 0.3 * values[1]
    return tuple(np.asarray(x, np.float32) for x in (old, values[2], reference, valid / 10))


def near(got, expected, tolerance=1e-5):
    got, expected = np.asarray(got), np.asarray(expected)
    assert np.linalg.norm(got - expected) <= tolerance * max(np.linalg.norm(expected), 1e-3)


def compare(mesh_shape, chunk, tied, temperature, seed):
    mesh = mesh_of(mesh_shape)
    states, matrix, predictions, values = case(mesh_shape[0] * mesh_shape[1], seed)
    head = Head(tied, temperature, chunk, jnp.dtype("float32"), mesh)
    laid = matrix if tied else matrix.T
    logp, entropy = plain(states, matrix, predictions, temperature)
    got_logp, got_entropy = jax.jit(partial(prediction_logprobs, head))(states, laid, predictions)
    near(got_logp, logp)
    near(got_entropy, entropy)
    inputs = inputs_of(np.asarray(logp), values, predictions)

    def fused(states, laid):
        loss, *rest = prediction_loss(head, token_loss, states, laid, predictions, inputs)
        return loss, rest

    def whole(states, matrix):
        return token_loss(*plain(states, matrix, predictions, temperature), inputs)

    (loss, (logp_again, entropy_again, sums)), gradients = jax.jit(jax.value_and_grad(fused, (0, 1), has_aux=True))(
        states, laid
    )
    (expected, metrics), wanted = jax.value_and_grad(whole, (0, 1), has_aux=True)(states, matrix)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    near(logp_again, logp)
    near(entropy_again, entropy)
    for name in metrics:
        np.testing.assert_allclose(sums[name], metrics[name], rtol=1e-5, atol=1e-5)
    near(gradients[0], wanted[0])
    near(gradients[1] if tied else gradients[1].T, wanted[1])
    assert np.linalg.norm(wanted[0]) > 0.01


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(MESHES), st.integers(1, PLACES + 3), st.booleans(), st.sampled_from([1.0, 0.6]), st.integers(0, 99))
def test_values_entropies_loss_and_gradients_equal_the_plain_ones(mesh_shape, chunk, tied, temperature, seed):
    compare(mesh_shape, chunk, tied, temperature, seed)


@pytest.mark.parametrize("mesh_shape", MESHES)
def test_every_sharding_of_the_vocabulary_gives_the_same(mesh_shape):
    compare(mesh_shape, 5, True, 0.8, 1)


def test_values_and_gradients_equal_those_of_torch():
    torch = pytest.importorskip("torch")
    states, matrix, predictions, _ = case(1, 3)
    head = Head(True, 0.7, 4, jnp.dtype("float32"), mesh_of((1, 1, 1)))
    x, w = torch.tensor(states[0], requires_grad=True), torch.tensor(matrix, requires_grad=True)
    source, target = (torch.tensor(a[0], dtype=torch.long) for a in (predictions.source, predictions.target))
    torch.log_softmax(x[source] @ w.T / 0.7, -1).gather(-1, target[:, None]).square().sum().backward()
    squares = lambda logp, entropy, inputs: (jnp.sum(logp**2), {})  # noqa: E731
    loss = lambda states, matrix: prediction_loss(head, squares, states, matrix, predictions, ())[0]  # noqa: E731
    gradients = jax.jit(jax.grad(loss, (0, 1)))(states, matrix)
    near(gradients[0][0], x.grad)
    near(gradients[1], w.grad)


def test_logits_in_the_hundreds_do_not_overflow():
    states, matrix, predictions, _ = case(1, 5, scale=200.0)
    head = Head(True, 1.0, 4, jnp.dtype("float32"), mesh_of((1, 1, 1)))
    logp, entropy = jax.jit(partial(prediction_logprobs, head))(states, matrix, predictions)
    expected, expected_entropy = plain(states, matrix, predictions, 1.0)
    assert np.asarray(expected).min() < -200
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-3)


def test_what_lies_beyond_the_count_is_not_read():
    states, matrix, predictions, _ = case(1, 6)
    head = Head(True, 1.0, 4, jnp.dtype("float32"), mesh_of((1, 1, 1)))
    few = Predictions(predictions.source, predictions.target, np.array([5], np.int32))
    poisoned = states.copy()
    unread = sorted(set(range(ROW)) - set(predictions.source[0, :5].tolist()))
    poisoned[0, unread] = np.nan
    total = lambda logp, entropy, inputs: (logp.sum(), {})  # noqa: E731
    (loss, dx), (expected, _) = (
        jax.jit(jax.value_and_grad(lambda x: prediction_loss(head, total, x, matrix, few, ())[0]))(x)
        for x in (poisoned, states)
    )
    assert np.isfinite(loss) and loss == expected and np.isfinite(np.asarray(dx)).all()


@pytest.mark.parametrize("chunk", [3, 9])
def test_no_array_of_all_logits_exists_forwards_or_backwards(chunk):
    states, matrix, predictions, _ = case(1, 7)
    head = Head(True, 1.0, chunk, jnp.dtype("float32"), mesh_of((1, 1, 1)))
    total = lambda logp, entropy, inputs: (logp.sum(), {})  # noqa: E731
    loss = lambda states, matrix: prediction_loss(head, total, states, matrix, predictions, ())[0]  # noqa: E731
    program = jax.jit(jax.grad(loss, (0, 1))).lower(states, matrix).compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", program)}
    with_vocab = [shape for shape in shapes if VOCAB in shape and shape not in {(EMBED, VOCAB), (VOCAB, EMBED)}]
    assert with_vocab, "the logits of one chunk are there"
    assert max(np.prod(shape) for shape in with_vocab) <= chunk * VOCAB
