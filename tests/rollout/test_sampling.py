"""Sampling against independent NumPy in float64: the tokens that truncation keeps, how often each is drawn, and the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from jaxgrpo.rollout.sampling import Sampling, exponential_noise, sample_keys, sample_tokens, truncation_threshold

QWEN_VOCAB = 151_936
DRAWS = 8_000


def kept_by_sorting(probs_V: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Bool [V]: the top_k largest, of these the fewest that hold top_p of their mass, of these those of min_p times the
    largest. Float64, by sorting; tokens as probable as the last one kept are kept too."""
    probs_V = np.asarray(probs_V, np.float64)
    falling = np.sort(probs_V)[::-1]
    least = falling[min(top_k or len(falling), len(falling)) - 1]
    if top_p < 1:
        falling = falling[falling >= least]
        least = falling[np.searchsorted(np.cumsum(falling), top_p * falling.sum())]
    return probs_V >= max(least, min_p * probs_V.max())


def batched(*samplings: Sampling) -> Sampling:
    columns = zip(*((s.temperature, s.top_k, s.top_p, s.min_p) for s in samplings), strict=True)
    return Sampling(*(jnp.array(c, d) for c, d in zip(columns, (float, int, float, float), strict=True)))


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return sample_keys(seed, "train", 1, np.arange(count), np.zeros(count, int))


kept_by_threshold = jax.jit(lambda p_BV, sampling: p_BV >= truncation_threshold(p_BV, sampling)[:, None])
draw = jax.jit(sample_tokens, static_argnames="truncate")
noise = jax.jit(exponential_noise, static_argnums=2)


def drawn(logits_V, sampling: Sampling, count: int = DRAWS, *, truncate=True, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """`count` tokens with their log-probabilities, each of a key of its own, the same logits for all."""
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (count, len(logits_V)))
    tokens, logps = draw(
        logits_BV, keys_of(count, seed), jnp.zeros(count, int), batched(*[sampling] * count), truncate=truncate
    )
    return np.asarray(tokens), np.asarray(logps)


def separated(seed: int, vocab: int) -> np.ndarray:
    """Probabilities relative to the largest, in random order, each 1 to 2.5 % below the one before: more than rounding."""
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.cumsum(rng.uniform(0.01, 0.025, vocab)))
    return rng.permutation(falling / falling[0]).astype(np.float32)


def off_the_edges(p_V: np.ndarray, top_k: int, top_p: float, min_p: float) -> tuple[float, float]:
    """top_p and min_p moved away from values at which rounding would decide whether one more token is kept."""
    falling = np.sort(p_V.astype(np.float64))[::-1][: top_k or None]
    shares = np.append(0, np.cumsum(falling) / falling.sum())
    if top_p < 1:  # half way between the shares of n and n + 1 tokens
        n = min(np.searchsorted(shares, top_p), len(shares) - 1)
        top_p = float((shares[n - 1] + shares[n]) / 2)
    if min_p > 0 and np.abs(p_V - min_p).min() < 1e-3 * min_p:
        min_p *= 0.995
    return top_p, min_p


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([2, 50, 400]),
    top_k=st.one_of(st.just(0), st.integers(1, 60), st.just(10**6)),
    top_p=st.one_of(st.just(1.0), st.floats(1e-4, 0.9999)),
    min_p=st.one_of(st.just(0.0), st.floats(1e-3, 0.99)),
)
def test_the_tokens_kept_by_top_k_top_p_and_min_p_are_those_found_by_sorting(seed, vocab, top_k, top_p, min_p):
    p_V = separated(seed, vocab)
    top_p, min_p = off_the_edges(p_V, top_k, top_p, min_p)
    kept = np.asarray(kept_by_threshold(p_V[None], batched(Sampling(1.0, top_k, top_p, min_p))))[0]
    np.testing.assert_array_equal(kept, kept_by_sorting(p_V, top_k, top_p, min_p))
    assert kept[np.argmax(p_V)]


@pytest.mark.parametrize(
    "sampling, kept",
    [
        (Sampling(top_k=2), 3),  # second and third tie: both
        (Sampling(top_k=3), 3),
        (Sampling(top_k=4), 6),
        (Sampling(top_p=0.5), 3),  # the first two hold exactly a half
        (Sampling(top_p=0.25), 1),
        (Sampling(top_k=2, top_p=0.75), 3),  # 0.75 of the 1 that the three kept by top_k hold
        (Sampling(min_p=0.5), 3),
        (Sampling(min_p=0.25), 6),
        (Sampling(min_p=1.0), 1),
        (Sampling(top_k=0, top_p=1.0, min_p=0.0), 8),
    ],
)
def test_tokens_as_probable_as_the_last_one_kept_are_kept_too(sampling, kept):
    p_V = np.array([1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125], np.float32)
    got = np.asarray(kept_by_threshold(p_V[None], batched(sampling)))[0]
    assert got.sum() == kept and (np.flatnonzero(got) == np.arange(kept)).all()


def test_every_slot_is_truncated_by_its_own_numbers():
    p_V = separated(3, 50)
    cases = [(0, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.6, 0.0), (0, 1.0, 0.3), (20, 0.8, 0.2)]
    cases = [(k, *off_the_edges(p_V, k, p, m)) for k, p, m in cases]
    kept = kept_by_threshold(np.tile(p_V, (len(cases), 1)), batched(*(Sampling(1.0, *case) for case in cases)))
    for got, case in zip(np.asarray(kept), cases, strict=True):
        np.testing.assert_array_equal(got, kept_by_sorting(p_V, *case))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7),
        Sampling(1.0, top_k=12),
        Sampling(1.3, top_p=0.8),
        Sampling(1.0, min_p=0.05),
        Sampling(1.2, top_k=30, top_p=0.9, min_p=0.05),
    ],
)
def test_draws_follow_the_truncated_distribution_renormalised(sampling):
    logits_V = np.random.default_rng(1).normal(0, 1.5, 64)
    tokens, logps = drawn(logits_V, sampling, truncate=sampling.truncates())
    whole_V = np.exp(logits_V / sampling.temperature)
    whole_V /= whole_V.sum()
    kept_V = kept_by_sorting(whole_V, sampling.top_k, sampling.top_p, sampling.min_p)
    counts_V = np.bincount(tokens, minlength=64)
    assert counts_V[~kept_V].sum() == 0
    expected_V = np.where(kept_V, whole_V, 0) / whole_V[kept_V].sum() * len(tokens)
    common_V = expected_V >= 5
    observed = np.append(counts_V[common_V], counts_V[~common_V].sum())
    expected = np.append(expected_V[common_V], expected_V[~common_V].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) >= 8 and chisquare(observed, expected).pvalue > 1e-3
    np.testing.assert_allclose(logps, np.log(whole_V)[tokens], atol=2e-5, err_msg="of the distribution that is not truncated")


def test_temperature_zero_is_greedy_whatever_the_truncation():
    logits_V = np.random.default_rng(2).normal(0, 2, 64)
    exact = logits_V - np.log(np.exp(logits_V).sum())
    for sampling in (Sampling(0.0), Sampling(0.0, top_k=3), Sampling(0.0, top_p=0.1), Sampling(0.0, 5, 0.5, 1.0)):
        tokens, logps = drawn(logits_V, sampling)
        assert (tokens == logits_V.argmax()).all()
        np.testing.assert_allclose(logps, exact.max(), atol=1e-5, err_msg="at temperature 1")


@pytest.mark.parametrize("truncate", [False, True])
def test_logits_of_minus_infinity_are_never_chosen(truncate):
    logits_V = np.random.default_rng(3).normal(size=64)
    logits_V[np.arange(64) % 3 != 0] = -np.inf
    for sampling in (Sampling(1.0), Sampling(5.0), Sampling(0.0)):
        tokens, logps = drawn(logits_V, sampling, truncate=truncate)
        assert (tokens % 3 == 0).all() and np.isfinite(logps).all()


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.0), Sampling(1.0, 5, 0.9, 0.1)])
def test_a_nan_among_the_logits_shows_in_the_log_probability_and_in_its_slot_only(sampling):
    logits_BV = np.random.default_rng(4).normal(size=(3, 40)).astype(np.float32)
    logits_BV[1, 7] = np.nan
    tokens, logps = draw(logits_BV, keys_of(3), jnp.zeros(3, int), batched(*[sampling] * 3), truncate=True)
    assert np.isnan(logps).tolist() == [False, True, False]
    assert ((np.asarray(tokens) >= 0) & (np.asarray(tokens) < 40)).all(), "a token that can be looked up"


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=1000), Sampling(1.0, top_p=0.3)])
def test_a_flat_distribution_over_the_whole_vocabulary_is_drawn_from_evenly(sampling):
    logits_V = np.random.default_rng(5).permutation(np.linspace(0, 0.5, QWEN_VOCAB))
    whole_V = np.exp(logits_V) / np.exp(logits_V).sum()
    kept = kept_by_sorting(whole_V, sampling.top_k, sampling.top_p, sampling.min_p).sum()
    tokens, logps = drawn(logits_V, sampling, 64, truncate=sampling.truncates())
    order = np.argsort(-whole_V)
    rank_V = np.empty(QWEN_VOCAB, int)
    rank_V[order] = np.arange(QWEN_VOCAB)
    assert rank_V[tokens].max() < kept * 1.001, "sums in float32 may be off by a few of 10^5 tokens"
    mass_V = np.cumsum(whole_V[order])
    assert kstest(mass_V[rank_V[tokens]] / mass_V[kept - 1], "uniform").pvalue > 1e-3
    np.testing.assert_allclose(logps, np.log(whole_V)[tokens], atol=1e-4)


def test_a_peaked_distribution_over_the_whole_vocabulary_gives_its_peak():
    logits_V = np.random.default_rng(6).normal(0, 1, QWEN_VOCAB)
    logits_V[77_777] = 40.0
    cases = [Sampling(1.0), Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=50), Sampling(1.0, 50, 0.95, 0.05)] * 2
    logits_BV = jnp.tile(jnp.asarray(logits_V, jnp.float32), (len(cases), 1))
    tokens, logps = draw(logits_BV, keys_of(len(cases)), jnp.zeros(len(cases), int), batched(*cases), truncate=True)
    assert (tokens == 77_777).all() and np.abs(logps).max() < 1e-6


def uniforms(keys_B2, index_B, vocab: int) -> np.ndarray:
    """The noise mapped to (0, 1) by its own distribution function."""
    return -np.expm1(-np.asarray(noise(keys_B2, jnp.asarray(index_B), vocab), np.float64))


def test_the_noise_is_exponential_along_the_vocabulary_the_keys_and_the_indices():
    for seed in range(3):
        by_token = uniforms(keys_of(1, seed), [seed], QWEN_VOCAB)[0]
        by_key = uniforms(keys_of(4000, seed), np.zeros(4000, int), 3)[:, 2]
        by_index = uniforms(np.repeat(keys_of(1, seed), 4000, axis=0), np.arange(4000), 3)[:, 1]
        for values in (by_token, by_key, by_index):
            assert 0 < values.min() and values.max() < 1
            assert kstest(values, "uniform").pvalue > 1e-3


def test_neighbouring_tokens_indices_and_keys_have_noise_that_does_not_correlate():
    raw = np.stack([np.full(64, 7), np.arange(64)], axis=1).astype(np.uint32)  # keys that differ in the lowest bits
    for keys in (keys_of(64), raw):
        by_key = uniforms(keys, np.full(64, 5), 4096)
        by_index = uniforms(np.repeat(keys[:1], 64, axis=0), np.arange(64), 4096)
        pairs = [by_key[1:], by_key[:-1]], [by_index[1:], by_index[:-1]]
        pairs += tuple([by_key[:, lag:], by_key[:, :-lag]] for lag in (1, 2, 64, 128, 1024))
        for one, other in pairs:
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            assert abs(correlation) < 4 / np.sqrt(one.size)
        assert abs(np.corrcoef(by_key.mean(axis=1), np.arange(64))[0, 1]) < 0.5


def test_the_same_key_and_index_give_the_same_noise_in_any_batch():
    keys = keys_of(8)
    together = np.asarray(noise(keys, jnp.arange(8), 100))
    for b in range(8):
        assert np.array_equal(noise(keys[b : b + 1], jnp.array([b]), 100)[0], together[b])


@pytest.mark.parametrize("truncate", [False, True])
def test_the_compiled_sampler_sorts_nothing(truncate):
    arguments = jnp.zeros((4, 1000)), keys_of(4), jnp.zeros(4, int), batched(*[Sampling()] * 4)
    assert " sort(" not in draw.lower(*arguments, truncate=truncate).compile().as_text()
