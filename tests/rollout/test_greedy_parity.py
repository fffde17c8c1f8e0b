"""Greedy tokens of the engine and scheduler against transformers' `generate`: committed tokens always, live where torch is."""

import json

import pytest
from engines import engine_of, load, requests_of
from make_greedy_reference import CASES, NEW_TOKENS, REFERENCE, prompts, transformers_greedy, weights_of, write_case

from jaxgrpo.rollout.scheduler import generate
from tests.model.tiny_hf_model import checksum


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    directory = write_case(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, directory, load(directory)


def greedy(model) -> list[list[int]]:
    """Seven prompts in four slots, so that some wait for a slot and are put beside others half way."""
    engine, params = engine_of(model, slots=4, max_prompt=48, max_new=NEW_TOKENS, chunk=16, prefill_tokens=96)
    responses = generate(engine, params, requests_of(prompts(), max_new=NEW_TOKENS))
    assert all(r.finish == "length" for (r,) in responses)
    return [r.tokens for (r,) in responses]


def test_greedy_tokens_of_prompts_of_different_lengths_equal_the_committed_ones_of_transformers(case):
    name, _, model = case
    reference = json.loads(REFERENCE.read_text())[name]
    assert checksum(weights_of(name)) == reference["weights"], "numpy draws other weights: run make_greedy_reference.py"
    assert min(len(set(tokens)) for tokens in reference["tokens"]) > 3, "a parity of constant answers says little"
    assert greedy(model) == reference["tokens"]


def test_greedy_tokens_equal_those_of_transformers_now(case):
    pytest.importorskip("torch")
    _, directory, model = case
    assert greedy(model) == transformers_greedy(directory)
