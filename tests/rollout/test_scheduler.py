"""Ends of sequences, refilled slots, and requests or sizes that are refused."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from engines import VOCAB, engine_of, mesh_of, prompts_of, requests_of, said, settings_of

from jaxgrpo.rollout.engine import Engine, EngineError, NonFiniteError
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.scheduler import generate


@pytest.fixture(scope="module")
def requests():
    return requests_of(prompts_of([4, 14, 9, 17, 30]), samples=4, temperature=1.0)


@pytest.fixture(scope="module")
def endless(model, requests):
    """What the requests say without stop tokens."""
    return generate(*engine_of(model), requests)


@pytest.mark.parametrize("which", [slice(-1, None), slice(0, 3)], ids=["the commonest token", "three rare tokens"])
def test_the_first_stop_token_ends_a_sequence_and_belongs_to_it(model, requests, endless, which):
    tokens, counts = np.unique([t for g in endless for r in g for t in r.tokens], return_counts=True)
    stops = tuple(tokens[np.argsort(counts, stable=True)[which]].tolist())
    finished = []
    responses = generate(*engine_of(model, stop_ids=stops), requests, finished.append)
    for group, whole in zip(responses, endless, strict=True):
        for response, longer in zip(group, whole, strict=True):
            end = next((i + 1 for i, token in enumerate(longer.tokens) if token in stops), None)
            assert response.tokens == longer.tokens[:end]
            assert response.logps == longer.logps[:end]
            assert response.finish == ("length" if end is None else "stop")
    kinds = [r.finish for group in responses for r in group]
    assert {"stop", "length"} == set(kinds), "the case covers both ends"
    assert sorted((r.request, r.sample) for r in finished) == [(i, j) for i in range(5) for j in range(4)]


def test_limits_end_sequences_each_at_its_own(model, requests, endless):
    limited = [replace(request, max_new=limit) for request, limit in zip(requests, (1, 2, 5, 23, 24), strict=True)]
    for group, whole, request in zip(generate(*engine_of(model), limited), endless, limited, strict=True):
        assert [r.tokens for r in group] == [r.tokens[: request.max_new] for r in whole]
        assert {r.finish for r in group} == {"length"}


def test_one_new_token_each_needs_no_decoding(model, requests, endless):
    engine, params = engine_of(model)
    singles = generate(engine, params, [replace(request, max_new=1) for request in requests])
    assert said(singles) == [[(r.tokens[:1], r.logps[:1], "length") for r in group] for group in endless]


def test_a_slot_that_ends_early_takes_the_next_sample_at_once(model, requests):
    engine, params = engine_of(model)
    short, long = replace(requests[0], max_new=1), replace(requests[1], max_new=24)
    chunks = 0

    class Counting:
        def __getattr__(self, name):
            return getattr(engine, name)

        def decode_chunk(self, *args):
            nonlocal chunks
            chunks += 1
            return engine.decode_chunk(*args)

    limits = [24] + [2] * 6
    mixed = [replace(long, keys=long.keys[:1], max_new=limit) for limit in limits]
    generate(Counting(), params, [short, *mixed, *mixed[1:]])
    assert chunks == 5, "23 tokens after the first in chunks of 5; twelve short ones fit beside them in 7 slots"


def test_a_request_without_samples_and_no_requests_give_nothing(model, requests):
    engine, params = engine_of(model)
    nothing = replace(requests[0], keys=np.zeros((0, 2), np.uint32))
    responses = generate(engine, params, [nothing, requests[1]])
    assert responses[0] == [] and len(responses[1]) == 4
    assert generate(engine, params, []) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": np.zeros(0, np.int32)}, "the prompt of request 1 has 0 tokens"),
        ({"prompt": np.full(33, 5, np.int32)}, "has 33 tokens; prompts need 1 to 32"),
        ({"prompt": np.array([5, VOCAB], np.int32)}, f"has token {VOCAB}, outside the vocabulary of {VOCAB}"),
        ({"prompt": np.array([5, -1], np.int32)}, "has token -1"),
        ({"max_new": 0}, "request 1 asks for 0 new tokens; the engine gives 1 to 24"),
        ({"max_new": 25}, "request 1 asks for 25 new tokens"),
        ({"max_new": np.array([3, 4, 25, 2])}, "request 1 asks for 25 new tokens"),
        ({"max_new": np.array([3, 4])}, "request 1 has 2 limits for its 4 samples"),
        ({"sampling": Sampling(-0.5)}, "request 1 has temperature -0.5"),
        ({"sampling": Sampling(float("nan"))}, "temperature nan"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p 0.0; it needs more than 0"),
        ({"sampling": Sampling(top_p=1.5)}, "top_p 1.5"),
        ({"sampling": Sampling(top_k=-1)}, "top_k -1"),
        ({"sampling": Sampling(min_p=2.0)}, "min_p 2.0"),
        ({"sampling": Sampling(top_k=5)}, "for which this engine was not compiled"),
        ({"keys": np.zeros(2, np.uint32)}, r"keys of shape \(2,\)"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_anything_is_generated(model, requests, change, words):
    engine, params = engine_of(model)
    with pytest.raises(EngineError, match=words):
        generate(engine, params, [requests[0], replace(requests[1], **change)], lambda response: pytest.fail("generated"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stop_ids": (3, VOCAB)}, rf"\[{VOCAB}\] lie outside the vocabulary of {VOCAB}"),
        ({"stop_ids": (-1,)}, r"\[-1\]"),
        ({"pad_id": VOCAB}, f"pad token id {VOCAB}"),
        ({"slots": 6}, "6 slots do not divide over 4 replicas"),
        ({"slots": 0}, "slots = 0"),
        ({"max_prompt": 0}, "max_prompt = 0"),
        ({"max_new": 0}, "max_new = 0"),
        ({"chunk": 0}, "chunk = 0"),
        ({"prefill_tokens": -1}, "prefill_tokens = -1"),
    ],
)
def test_sizes_that_no_engine_can_have_are_refused_with_their_value(model, change, words):
    with pytest.raises(EngineError, match=words):
        Engine(model.config, settings_of(**change), mesh_of(4, 2))


def test_a_model_that_is_not_finite_is_an_error_that_names_the_request(model, requests):
    engine, _ = engine_of(model)
    broken = engine.load_params({**model.params, "final_norm": model.params["final_norm"].at[3].set(jnp.nan)})
    with pytest.raises(NonFiniteError, match="request 0, sample 0: the log-probability") as error:
        generate(engine, broken, requests)
    assert isinstance(error.value, EngineError) and error.value.exit_code == 1


def test_weights_that_fail_only_on_some_token_are_an_error_too(model, requests, endless):
    engine, _ = engine_of(model)
    late = next(t for t in endless[1][0].tokens[8:] if t not in endless[1][0].tokens[:8] and t not in requests[1].prompt)
    broken = engine.load_params({**model.params, "embed": model.params["embed"].at[late].set(jnp.nan)})
    only = replace(requests[1], keys=requests[1].keys[:1])
    with pytest.raises(NonFiniteError, match="request 0, sample 0"):
        generate(engine, broken, [only])


def test_few_results_are_on_their_way_at_once(monkeypatch, model):
    """XLA's CPU client holds 32 programs of a device, and two devices that wait for each other's launch lock up when it is full
    (seen with 1,024 prompts of 400 tokens: now and then, so that the cause is tested and not the effect)."""
    from jaxgrpo.rollout import scheduler

    engine, params = engine_of(model, slots=40, prefill_tokens=32)
    requests = requests_of(prompts_of([20] * 80), samples=1, temperature=1.0)
    flying, most = 0, 0
    insert, read = engine.insert_group, scheduler._Rollout.read

    def counted_insert(*arguments):
        nonlocal flying, most
        flying, most = flying + 1, max(most, flying + 1)
        return insert(*arguments)

    def counted_read(self):
        nonlocal flying
        flying = len(self.unread) - 1
        read(self)

    expected = scheduler.generate(engine, params, requests)
    monkeypatch.setattr(engine, "insert_group", counted_insert)
    monkeypatch.setattr(scheduler._Rollout, "read", counted_read)
    again = scheduler.generate(engine, params, requests)
    assert 1 < most <= scheduler.MAX_UNREAD + 1
    assert [[r.tokens for r in group] for group in again] == [[r.tokens for r in group] for group in expected]
