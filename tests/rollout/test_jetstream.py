"""The engine as the package's own Engine. Skipped where google-jetstream is not installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from engines import engine_of, mesh_of, prompts_of, requests_of, settings_of

from jaxgrpo.rollout.engine import Engine, EngineError
from jaxgrpo.rollout.scheduler import generate

pytestmark = pytest.mark.skipif(find_spec("jetstream") is None, reason="google-jetstream is not installed")

IMPORTS = """
import logging, sys
logging.getLogger().setLevel(logging.ERROR)
import jax
import jaxgrpo.rollout.jetstream
from jaxgrpo.rollout.jetstream_import import jetstream_module
orchestrator = jetstream_module("core.orchestrator")
assert logging.getLogger().level == logging.ERROR and not logging.getLogger().handlers
unwanted = {"tensorflow", "seqio", "tiktoken", "torch"} & {name.split(".")[0] for name in sys.modules}
assert not unwanted, unwanted
leaf = jax.numpy.ones(3)
orchestrator.delete_pytree({"a": leaf})
assert leaf.is_deleted()
from transformers.utils.import_utils import is_tiktoken_available
print(is_tiktoken_available())
"""


def run_python(code: str, *arguments: str, timeout: float = 120) -> str:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests" / "rollout")])
    command = [sys.executable, *(["-c", code] if code else []), *arguments]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=timeout, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_loads_no_tensorflow_and_leaves_no_stand_ins_behind():
    assert run_python(IMPORTS).split()[-1] == str(find_spec("tiktoken") is not None)


def test_greedy_tokens_through_the_packages_interface_equal_ours(model):
    from jaxgrpo.rollout.jetstream import JetStreamEngine, engine_api

    ours, params = engine_of(model)
    engine = JetStreamEngine(ours)
    assert isinstance(engine, engine_api.Engine) and engine.max_concurrent_decodes == 8
    prompts = prompts_of([5, 16, 32, 1, 20], seed=2)
    expected = [r.tokens for (r,) in generate(ours, params, requests_of(prompts))]
    state, tokens = engine.init_decode_state(), [[] for _ in prompts]
    for slot, prompt in enumerate(prompts):
        padded = np.pad(prompt, (0, 32 - len(prompt)))
        state = engine.insert(engine.prefill(params=params, padded_tokens=padded, true_length=len(prompt)), state, slot=slot)
    for _ in range(26):
        state, result = engine.generate(params, state)
        assert isinstance(result, engine_api.ResultTokens)
        result = result.convert_to_numpy()
        for slot in range(len(prompts)):
            data = result.get_result_at_slot(slot)
            if data.valid.any():
                tokens[slot].append(int(data.tokens[0, 0]))
                assert data.lengths.item() == len(tokens[slot])
    assert tokens == expected


def test_the_tokenizer_speaks_the_packages_interface(model, tmp_path):
    from jaxgrpo.rollout.jetstream import JetStreamEngine
    from tests.data.tiny_hf import write_tiny_tokenizer

    tokenizer = write_tiny_tokenizer(tmp_path)
    engine = JetStreamEngine(Engine(model.config, settings_of(), mesh_of(), tokenizer=tokenizer))
    wrapped = engine.build_tokenizer(engine.get_tokenizer())
    text = "The answer is \\boxed{45}."
    tokens, length = wrapped.encode(text, is_bos=True, max_prefill_length=32, jax_padding=False)
    assert len(tokens) == 16 and tokens[:length].tolist() == tokenizer(text)["input_ids"]
    assert set(tokens[length:].tolist()) == {wrapped.pad_id}
    assert wrapped.decode(tokens[:length].tolist()) == text
    assert wrapped.stop_tokens == set() and wrapped.eos_id == tokenizer.eos_token_id
    with pytest.raises(EngineError, match="the engine takes at most 32"):
        wrapped.encode(text * 10, max_prefill_length=32)


def test_prompt_limits_are_padded_to_a_length_that_the_package_knows(model):
    from jaxgrpo.rollout.jetstream import JetStreamEngine

    assert JetStreamEngine(Engine(model.config, settings_of(max_prompt=40), mesh_of())).max_prefill_length == 64
    with pytest.raises(EngineError, match="at most 32768"):
        JetStreamEngine(Engine(model.config, settings_of(max_prompt=32769), mesh_of()))


def test_an_engine_without_a_tokenizer_says_that_the_drivers_need_one(model):
    from jaxgrpo.rollout.jetstream import JetStreamEngine

    with pytest.raises(EngineError, match="need a tokenizer"):
        JetStreamEngine(Engine(model.config, settings_of(), mesh_of())).build_tokenizer()


def test_the_drivers_assertion_on_free_slots_holds_when_all_are_free(model):
    from jaxgrpo.rollout.jetstream import JetStreamEngine

    slots = JetStreamEngine(engine_of(model)[0]).max_concurrent_decodes
    assert slots == 8 and 8 < slots and list(range(slots)) == list(range(8))
