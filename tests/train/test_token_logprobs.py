"""Chunked log-probabilities against a plain log-softmax over all logits, for every chunk size, and their gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.model.logprobs import next_token_logprobs

ROWS, LENGTH, EMBED, VOCAB = 3, 13, 8, 29
CHUNKS = [1, 2, 3, 9, 18, 36, 37, 1000]


def case(seed=0, length=LENGTH):
    rng = np.random.default_rng(seed)
    states = rng.normal(0, 2, (ROWS, length, EMBED)).astype(np.float32)
    output = rng.normal(0, 1, (EMBED, VOCAB)).astype(np.float32)
    return states, output, rng.integers(0, VOCAB, (ROWS, length)).astype(np.int32)


def reference(states, output, tokens, temperature):
    """(log-probabilities, entropies) in float64, nothing chunked."""
    logits = np.asarray(states, np.float64)[:, :-1] @ np.asarray(output, np.float64) / temperature
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0]
    return tuple(np.pad(value, ((0, 0), (1, 0))) for value in (chosen, -(np.exp(logs) * logs).sum(-1)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_entropies_equal_a_plain_log_softmax(chunk, temperature):
    states, output, tokens = case()
    logp, entropy = jax.jit(next_token_logprobs, static_argnums=(3, 4))(states, output, tokens, temperature, chunk)
    expected_logp, expected_entropy = reference(states, output, tokens, temperature)
    assert logp.dtype == entropy.dtype == np.float32
    np.testing.assert_allclose(logp, expected_logp, rtol=0, atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 9, 36, 1000])
def test_gradients_equal_those_of_a_plain_log_softmax(chunk):
    states, output, tokens = case(1)
    weights = np.random.default_rng(2).normal(size=tokens.shape).astype(np.float32)

    def chunked(states, output):
        return jnp.sum(weights * next_token_logprobs(states, output, tokens, 0.8, chunk)[0])

    got = jax.jit(jax.grad(chunked, argnums=(0, 1)))(states, output)
    logits = np.asarray(states, np.float64)[:, :-1] @ np.asarray(output, np.float64) / 0.8
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    slope = weights[:, 1:, None] * (np.eye(VOCAB)[tokens[:, 1:]] - probs) / 0.8  # d/d logits of the weighted sum
    expected_states = np.pad(slope @ output.T, ((0, 0), (0, 1), (0, 0)))
    expected_output = np.einsum("btd,btv->dv", states[:, :-1], slope)
    for ours, theirs in zip(got, (expected_states, expected_output), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.linalg.norm(theirs)


def test_values_and_gradients_equal_those_of_torch():
    torch = pytest.importorskip("torch")
    states, output, tokens = case(3)
    x, w = torch.tensor(states, requires_grad=True), torch.tensor(output, requires_grad=True)
    logs = torch.log_softmax(x[:, :-1] @ w / 0.7, -1)
    chosen = logs.gather(-1, torch.tensor(tokens[:, 1:, None], dtype=torch.long))[..., 0]
    chosen.square().sum().backward()
    value, gradient = jax.value_and_grad(
        lambda x, w: jnp.sum(next_token_logprobs(x, w, tokens, 0.7, 9)[0] ** 2), argnums=(0, 1)
    )(states, output)
    np.testing.assert_allclose(value, chosen.square().sum().item(), rtol=1e-5)
    for ours, theirs in zip(gradient, (x.grad, w.grad), strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * np.linalg.norm(theirs.numpy())


@pytest.mark.parametrize("length", [1, 2])
def test_the_first_token_has_no_prediction_and_counts_zero(length):
    states, output, tokens = case(4, length)
    logp, entropy = next_token_logprobs(states, output, tokens, 1.0, 1024)
    expected_logp, expected_entropy = reference(states, output, tokens, 1.0)
    assert logp.shape == entropy.shape == (ROWS, length)
    assert (np.asarray(logp)[:, 0] == 0).all() and (np.asarray(entropy)[:, 0] == 0).all()
    np.testing.assert_allclose(logp, expected_logp, atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5)


def test_logits_in_the_hundreds_do_not_overflow():
    states, output, tokens = case(5)
    logp, entropy = next_token_logprobs(100 * states, output, tokens, 1.0, 9)
    expected_logp, expected_entropy = reference(100 * states, output, tokens, 1.0)
    assert expected_logp.min() < -200
    np.testing.assert_allclose(logp, expected_logp, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-3)


@pytest.mark.parametrize("chunk", [3, 9])
def test_no_array_of_all_logits_exists_forwards_or_backwards(chunk):
    states, output, tokens = case(6, length=40)

    def loss(states, output):
        return jnp.sum(next_token_logprobs(states, output, tokens, 1.0, chunk)[0])

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(states, output).compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", program)}
    with_vocab = [shape for shape in shapes if VOCAB in shape and shape not in {(EMBED, VOCAB), (VOCAB, EMBED)}]
    assert with_vocab, "the logits of one chunk are there"
    assert max(np.prod(shape) for shape in with_vocab) <= chunk * VOCAB
