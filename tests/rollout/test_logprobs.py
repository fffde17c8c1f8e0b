"""The sampler's log-probabilities against the full forward pass of the trainer."""

import numpy as np
import pytest
from engines import engine_of, prompts_of, requests_of, trainer_logps

from jaxgrpo.rollout.scheduler import generate


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)], ids=["1 device", "8 devices"])
def test_log_probabilities_of_sampler_and_trainer_agree(model, mesh, temperature):
    engine, params = engine_of(model, *mesh)
    prompts = prompts_of([1, 7, 16, 17, 32])
    responses = generate(engine, params, requests_of(prompts, samples=2, temperature=temperature))
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            expected = trainer_logps(model, prompt, np.array(response.tokens), temperature)
            assert np.abs(expected - response.logps).max() <= 1e-4
    assert np.std([x for group in responses for r in group for x in r.logps]) > 0.5, "the log-probabilities differ"


def test_greedy_tokens_report_their_log_probability_at_temperature_one(model):
    engine, params = engine_of(model)
    (prompt,) = prompts_of([9])
    ((response,),) = generate(engine, params, requests_of([prompt]))
    expected = trainer_logps(model, prompt, np.array(response.tokens), 1.0)
    assert np.abs(expected - response.logps).max() <= 1e-4
