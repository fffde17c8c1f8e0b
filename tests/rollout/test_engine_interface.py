"""The engine used as JetStream's drivers use it, and what it compiles when."""

import numpy as np
import pytest
from engines import VOCAB, CompilationCounter, engine_of, mesh_of, prompts_of, requests_of, said, settings_of

from jaxgrpo.rollout.engine import Engine, EngineError
from jaxgrpo.rollout.scheduler import generate


def step_by_step(engine, params, prompts, steps: int) -> list[list[int]]:
    """Tokens per prompt through prefill, insert and `steps` calls of generate; prompt i goes into slot 2 i at step i."""
    state, tokens, shown = engine.init_decode_state(), [[] for _ in prompts], [[] for _ in prompts]
    for step in range(steps):
        if step < len(prompts):
            padded = np.pad(prompts[step], (0, 32 - len(prompts[step])))
            prefix = engine.prefill(params=params, padded_tokens=padded, true_length=len(prompts[step]))
            state = engine.insert(prefix, state, 2 * step)
        state, result = engine.generate(params, state)
        data_B5 = np.asarray(result.data)
        for i in range(min(step + 1, len(prompts))):
            token, _, valid, _, length = data_B5[2 * i]
            if valid:
                tokens[i].append(int(token))
                shown[i].append(int(length))
        assert not data_B5[1::2, 2:4].any(), "an empty slot says nothing"
    assert all(lengths == list(range(1, len(lengths) + 1)) for lengths in shown)
    return tokens


def test_prefill_insert_and_generate_hand_out_each_greedy_token_once(model):
    prompts = prompts_of([5, 16, 32, 1], seed=2)
    greedy = [r.tokens for (r,) in generate(*engine_of(model), requests_of(prompts))]
    stop = greedy[0][10]
    engine, params = engine_of(model, stop_ids=(stop,))
    expected = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in greedy]
    assert step_by_step(engine, params, prompts, steps=32) == expected
    assert [r.tokens for (r,) in generate(engine, params, requests_of(prompts))] == expected


def test_the_interface_names_its_sizes(model):
    engine, _ = engine_of(model)
    assert engine.max_concurrent_decodes == 8
    assert engine.max_prefill_length == 32
    assert engine.samples_per_slot == 1
    assert engine.mesh == mesh_of()


def test_prefill_refuses_what_it_cannot_do(model):
    engine, params = engine_of(model)
    with pytest.raises(EngineError, match="existing_prefix"):
        engine.prefill(params=params, existing_prefix=object(), padded_tokens=np.ones(4, int), true_length=4)
    with pytest.raises(EngineError, match="true length 20 in 16 padded tokens"):
        engine.prefill(params=params, padded_tokens=np.ones(16, int), true_length=20)
    with pytest.raises(EngineError, match="true length 0"):
        engine.prefill(params=params, padded_tokens=np.ones(16, int), true_length=0)
    with pytest.raises(EngineError, match="33 tokens"):
        engine.prefill_batch(params, [np.ones(33, int)])
    with pytest.raises(EngineError, match="9 prompts in one prefill of 8 rows"):
        engine.prefill_batch(params, [np.ones(4, int)] * 9)


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)], ids=["1 device", "8 devices"])
def test_nothing_compiles_after_compile_whatever_the_prompts(model, mesh):
    engine = Engine(model.config, settings_of(), mesh_of(*mesh))
    params = engine.load_params(model.params)
    with CompilationCounter() as before:
        engine.compile(params)
    assert before.count >= 2 * len(engine.settings.buckets) + 1
    with CompilationCounter() as after:
        for lengths in ([32], [1], [16, 17, 3, 32, 8], range(1, 33)):
            generate(engine, params, requests_of(prompts_of(lengths), samples=3, temperature=1.0))
        engine.load_params(model.params)
        engine.compile(params)
    assert after.count == 0


def test_compile_leaves_no_state_behind(model):
    engine, params = engine_of(model)
    requests = requests_of(prompts_of([3, 20]), samples=2, temperature=1.0)
    before = said(generate(engine, params, requests))
    assert engine.compile(params, stepwise=True) is None
    assert said(generate(engine, params, requests)) == before
    with CompilationCounter() as after:
        step_by_step(engine, params, prompts_of([7]), steps=3)
    assert after.count == 0


def test_buckets_cover_every_prompt_and_are_few():
    for max_prompt in (1, 6, 16, 17, 100, 2048, 3000, 32768):
        settings = settings_of(max_prompt=max_prompt, prefill_tokens=4096)
        assert settings.buckets[-1] == max_prompt and len(settings.buckets) <= 6
        assert list(settings.buckets) == sorted(set(settings.buckets))
        for length in {1, max_prompt // 3 + 1, max_prompt}:
            assert length <= settings.bucket(length) <= max(16, 2 * length, max_prompt / 8)
    assert settings_of(slots=64, prefill_tokens=100).prefill_rows(16, replicas=4) == 4
    assert settings_of(slots=64, prefill_tokens=40).prefill_rows(16, replicas=4) == 2
    assert VOCAB > settings_of().pad_id
