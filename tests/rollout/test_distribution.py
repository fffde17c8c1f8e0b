"""Sampled tokens follow the exact softmax: chi-square tests with fixed seeds."""

from collections import Counter

import jax
import numpy as np
import pytest
from engines import engine_of, prompts_of, requests_of, trainer_logits
from scipy.stats import chisquare

from jaxgrpo.rollout.scheduler import generate

SAMPLES = 4096


def p_value(counts_V: np.ndarray, probs_V: np.ndarray) -> float:
    """Of Pearson's chi-square, tokens with fewer than 5 expected draws taken together."""
    expected_V = probs_V.astype(np.float64) / probs_V.sum(dtype=np.float64) * counts_V.sum()
    common = expected_V >= 5
    counts = np.append(counts_V[common], counts_V[~common].sum())
    expected = np.append(expected_V[common], expected_V[~common].sum())
    assert common.sum() >= 10
    return chisquare(counts, expected).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_and_second_tokens_follow_the_softmax(model, temperature):
    engine, params = engine_of(model, slots=512, max_prompt=16, max_new=2, chunk=1, prefill_tokens=16)
    (prompt,) = prompts_of([12], seed=4)
    requests = requests_of([prompt], samples=SAMPLES, temperature=temperature, max_new=2, seed=17)
    pairs = np.array([r.tokens for r in generate(engine, params, requests)[0]])
    vocab = model.config.vocab

    probs_V = np.asarray(jax.nn.softmax(trainer_logits(model, prompt)[-1] / temperature))
    assert p_value(np.bincount(pairs[:, 0], minlength=vocab), probs_V) > 1e-3

    first, _ = Counter(pairs[:, 0].tolist()).most_common(1)[0]
    second = pairs[pairs[:, 0] == first, 1]
    probs_V = np.asarray(jax.nn.softmax(trainer_logits(model, np.append(prompt, first))[-1] / temperature))
    assert p_value(np.bincount(second, minlength=vocab), probs_V) > 1e-3


def test_steps_streams_and_seeds_draw_different_samples(model):
    engine, params = engine_of(model)
    (prompt,) = prompts_of([12])
    answers = [
        tuple(response.tokens)
        for where in ({"seed": 1}, {"seed": 2}, {"step": 2}, {"stream": "heldout"})
        for response in generate(engine, params, requests_of([prompt], samples=8, temperature=1.0, **where))[0]
    ]
    assert len(set(answers)) == len(answers) == 32
