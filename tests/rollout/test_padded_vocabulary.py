"""Ids that the tokenizer does not know: never sampled, and log-probabilities stay those of the trainer, over all ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import VOCAB, CompilationCounter, engine_of, prompts_of, requests_of, said, trainer_logits, trainer_logps
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare
from test_sampling import batched, kept_by_sorting, keys_of

from jaxgrpo.data import DataError, build_tokenizer, unknown_ids
from jaxgrpo.rollout.driver_process import DriverProcess
from jaxgrpo.rollout.sampling import Sampling, sample_tokens
from jaxgrpo.rollout.scheduler import generate
from jaxgrpo.rollout.settings import EngineError, EngineSettings
from tests.data.tiny_hf import write_tiny_tokenizer

DRAWS = 8_000
V = 24
UNKNOWN = {
    "padded": ((15, V),),
    "holes": ((0, 2), (9, 12)),
    "padded, with holes": ((3, 4), (20, V)),
    "all but one": ((0, 7), (8, V)),
}
CHOICES = [Sampling(1.0), Sampling(0.7), Sampling(0.0), Sampling(1.0, 3), Sampling(1.0, 0, 0.6), Sampling(1.3, 0, 1.0, 0.2)]

draw = jax.jit(sample_tokens, static_argnames=("truncate", "unknown"))


def known_V(unknown) -> np.ndarray:
    known = np.ones(V, bool)
    for first, end in unknown:
        known[first:end] = False
    return known


def drawn(logits_V, sampling, unknown, count=DRAWS):
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (count, V))
    choice = {"truncate": sampling.truncates(), "unknown": unknown}
    tokens, logps = draw(logits_BV, keys_of(count), jnp.zeros(count, int), batched(*[sampling] * count), **choice)
    return np.asarray(tokens), np.asarray(logps)


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize("sampling", CHOICES, ids=str)
def test_draws_follow_the_probabilities_of_the_known_ids_and_report_those_of_all(sampling, case):
    """Unknown ids hold most of the probability; reference in float64."""
    unknown, temperature = UNKNOWN[case], sampling.temperature or 1.0
    known = known_V(unknown)
    logits_V = np.random.default_rng(7).normal(0, 1.5, V) + 3.0 * ~known
    tokens, logps = drawn(logits_V, sampling, unknown)
    np.testing.assert_allclose(logps, log_softmax(logits_V / temperature)[tokens], atol=2e-6)
    wanted_V = np.where(known, softmax(logits_V / temperature), 0)
    if sampling.truncates():
        wanted_V *= kept_by_sorting(wanted_V / wanted_V.max(), sampling.top_k, sampling.top_p, sampling.min_p)
    if sampling.temperature == 0:
        wanted_V = wanted_V == wanted_V.max()
    counts_V = np.bincount(tokens, minlength=V)
    assert (counts_V[wanted_V == 0] == 0).all()
    likely = wanted_V > 0
    if likely.sum() > 1:
        assert chisquare(counts_V[likely], DRAWS * wanted_V[likely] / wanted_V.sum()).pvalue > 1e-3


@pytest.mark.parametrize("sampling", CHOICES[:4], ids=str)
@pytest.mark.parametrize("ahead", [50.0, 500.0, 1e6])
def test_unknown_ids_that_are_far_more_probable_are_not_sampled_either(sampling, ahead):
    logits_V = np.random.default_rng(8).normal(0, 1.5, V)
    logits_V[15:] += ahead
    tokens, logps = drawn(logits_V, sampling, ((15, V),), 200)
    assert tokens.max() < 15 and (sampling.temperature in (0, 0.7) or sampling.truncates() or len(set(tokens)) > 5)
    np.testing.assert_allclose(logps, log_softmax(logits_V / (sampling.temperature or 1.0))[tokens], rtol=1e-5)


def test_known_tokens_are_drawn_as_without_padding():
    """The same draws as a model whose vocabulary ends with the tokenizer's, to the bit."""
    logits_V = np.random.default_rng(9).normal(0, 1.5, V)
    shorter = jnp.broadcast_to(jnp.asarray(logits_V[:15], jnp.float32), (500, 15))
    expected, _ = draw(shorter, keys_of(500), jnp.zeros(500, int), batched(*[Sampling()] * 500), truncate=False)
    assert np.array_equal(drawn(logits_V, Sampling(), ((15, V),), 500)[0], expected)


@pytest.mark.parametrize(("mesh", "temperature"), [((1, 1), 1.0), ((1, 1), 0.0), ((4, 2), 0.7)])
def test_sampler_and_trainer_agree_on_a_model_with_many_padded_ids(model, mesh, temperature):
    """Two thirds of the vocabulary are unknown to the tokenizer. The trainer's softmax runs over all of it."""
    prompts = [prompt % 20 for prompt in prompts_of([1, 7, 17, 32])]
    engine, params = engine_of(model, *mesh, unknown=((20, VOCAB),))
    responses = generate(engine, params, requests_of(prompts, samples=4, temperature=temperature))
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            tokens = np.array(response.tokens)
            assert tokens.max() < 20
            expected = trainer_logps(model, prompt, tokens, temperature or 1.0)
            assert np.abs(expected - response.logps).max() <= 1e-4
            if temperature == 0:
                logits_TV = trainer_logits(model, np.concatenate([prompt, tokens]))[len(prompt) - 1 : -1]
                assert np.array_equal(logits_TV[:, :20].argmax(axis=1), tokens)


def test_padded_ids_cost_no_compilation_after_warm_up_and_change_no_other_token(model):
    engine, params = engine_of(model, unknown=((20, VOCAB),))
    prompts = [prompt % 20 for prompt in prompts_of([3, 9, 31], seed=4)]
    requests = requests_of(prompts, samples=3, temperature=1.0)
    engine.compile(params)
    first = generate(engine, params, requests)
    with CompilationCounter() as compiled:
        assert said(generate(engine, params, requests[::-1])[::-1]) == said(first)
    assert compiled.count == 0


@pytest.mark.slow
def test_jetstreams_driver_samples_no_padded_ids_and_says_the_same(model):
    engine, params = engine_of(model, unknown=((20, VOCAB),))
    requests = requests_of([prompt % 20 for prompt in prompts_of([5, 12], seed=5)], samples=2, temperature=1.0)
    with DriverProcess() as driver:
        responses = driver.generate(engine, params, requests)
    assert max(token for group in responses for r in group for token in r.tokens) < 20
    ours = generate(engine, params, requests)
    assert [[r.tokens for r in group] for group in responses] == [[r.tokens for r in group] for group in ours]


def test_the_unknown_ids_are_those_that_the_tokenizer_has_no_token_for(tmp_path):
    assert unknown_ids(build_tokenizer(), 64) == ((44, 64),)
    assert unknown_ids(build_tokenizer(), 44) == ()
    tokenizer = write_tiny_tokenizer(tmp_path)
    assert unknown_ids(tokenizer, 512) == ((len(tokenizer), 512),)
    with pytest.raises(DataError, match="44 tokens, the last with id 43, the model a vocabulary of 40"):
        unknown_ids(build_tokenizer(), 40)


def test_ids_of_a_tokenizer_with_gaps_are_all_found():
    class Gaps:
        name_or_path = "gaps"

        def get_vocab(self):
            return {"a": 2, "b": 3, "c": 7}

    assert unknown_ids(Gaps(), 10) == ((0, 2), (4, 7), (8, 10))
    assert unknown_ids(Gaps(), 8) == ((0, 2), (4, 7))


@pytest.mark.parametrize("unknown", [((0, 64),), ((60, 65),), ((5, 5),)])
def test_an_engine_needs_known_ids(unknown):
    settings = EngineSettings(1, 4, 4, 1, 4, stop_ids=(), unknown=unknown, attention="xla")
    with pytest.raises(EngineError, match="unknown token ids"):
        settings.check(64, 1)
