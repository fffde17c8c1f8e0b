"""`jaxgrpo serve` in real processes, asked over real gRPC. Linux: the serving child is found through /proc."""

import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from engines import load, mesh_of, prompts_of, requests_of, settings_of

from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.scheduler import generate
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import environment

pytestmark = [
    pytest.mark.skipif(find_spec("jetstream") is None, reason="google-jetstream is not installed"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc"),
]
VOCAB, SLOTS, LONGEST = 512, 8, 400
SIZES = ["--slots", str(SLOTS), "--max-prompt", "16", "--max-new", str(LONGEST), "rollout.dtype=float32", "--port", "0"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A Hugging Face directory of a random model, whose greedy answers are told apart by their prompts."""
    directory = tmp_path_factory.mktemp("served")
    tokenizer = write_tiny_tokenizer(directory)
    sizes = {"vocab": VOCAB, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96}
    return write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id,), **sizes)


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("xla")) | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def served(directory, env):
    from served import ServedProcess

    served = ServedProcess(str(directory), *SIZES, env=env)
    try:
        served.connect()
        yield served
    finally:
        served.process.kill()
        served.process.wait()


@pytest.fixture(scope="module")
def ours(directory):
    """Greedy tokens of our scheduler for a list of prompts."""
    from transformers import AutoTokenizer

    model, tokenizer = load(directory), AutoTokenizer.from_pretrained(directory)
    padded = ((len(tokenizer), VOCAB),)  # ids behind the tokenizer's, which a server never says
    settings = settings_of(max_prompt=16, max_new=24, stop_ids=(tokenizer.eos_token_id,), unknown=padded)
    engine = Engine(model.config, settings, mesh_of())
    params = engine.load_params(model.params)
    return lambda prompts: [r.tokens for (r,) in generate(engine, params, requests_of(prompts))]


def wait_until_none_is_held(served, seconds: float) -> None:
    end = time.monotonic() + seconds
    while served.held():
        assert time.monotonic() < end, f"{served.held()} requests are still held after {seconds} s"
        time.sleep(0.05)


def test_64_prompts_have_the_schedulers_greedy_answers(served, ours):
    prompts = prompts_of(np.random.default_rng(1).integers(1, 17, 64), vocab=VOCAB, seed=3)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda prompt: served.tokens(prompt.tolist(), 24), prompts))
    assert answers == ours(prompts)
    assert len({tuple(answer) for answer in answers}) > 32


def test_text_is_answered_with_the_text_of_the_same_tokens(served, ours, directory):
    from transformers import AutoTokenizer

    from jaxgrpo.rollout.client import complete

    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text in ("The answer is", "naïve café"):
        (tokens,) = ours([np.array(tokenizer(text)["input_ids"], np.int32)])
        assert "".join(complete(served.address, text, 24)) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 5, "0 tokens; prompts need 1 to 16"),
        ("", 5, "0 tokens; prompts need 1 to 16"),
        ([3] * 17, 5, "17 tokens; prompts need 1 to 16"),
        ("The answer is 4. " * 9, 5, "prompts need 1 to 16"),
        ([3, VOCAB], 5, f"token {VOCAB}, outside the vocabulary of {VOCAB}"),
        ([3, -1], 5, "token -1, outside the vocabulary"),
        ([3], 0, f"0 new tokens; the engine gives 1 to {LONGEST}"),
        ([3], LONGEST + 1, f"{LONGEST + 1} new tokens; the engine gives 1 to {LONGEST}"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_served_is_refused_before_it_is_queued(served, prompt, max_tokens, message):
    import grpc

    child = served.child()
    with pytest.raises(grpc.RpcError) as refused:
        served.tokens(prompt, max_tokens)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and message in refused.value.details()
    assert served.held() == 0 and served.child() == child


def test_a_request_without_content_is_refused(served):
    import grpc

    from jaxgrpo.rollout.client import pb

    with pytest.raises(grpc.RpcError) as refused:
        list(served.stub.Decode(pb.DecodeRequest(max_tokens=5)))
    assert "give text_content or token_content" in refused.value.details()


def test_a_cancelled_request_gives_its_slot_back_at_once(served):
    streams = [served.stream([3, i], LONGEST) for i in range(SLOTS)]
    for stream in streams:
        next(stream)
    assert served.held() == SLOTS
    for stream in streams:
        stream.cancel()
    start = time.monotonic()
    wait_until_none_is_held(served, 10)
    cancelled_s, start = time.monotonic() - start, time.monotonic()
    served.tokens([3, 4], LONGEST)
    assert cancelled_s < max(0.5, 0.7 * (time.monotonic() - start)), "the slots were decoded to their limit"


def test_a_killed_child_is_replaced_and_answers_again(served, ours):
    import grpc

    stream, child = served.stream([3, 4, 5], LONGEST), served.child()
    next(stream)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as lost:
        list(stream)
    assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
    assert served.wait_for(r"process (\d+)\) was ended by SIGKILL; starting it again")[1] == str(child)
    address = served.address
    served.connect()
    assert served.child() != child and served.address == address
    (expected,) = ours([np.array([3, 4, 5], np.int32)])
    assert served.tokens([3, 4, 5], 24) == expected


def test_sigterm_lets_a_running_request_end_refuses_new_ones_and_leaves_no_process(served):
    """The last test of this server."""
    import grpc
    from served import is_alive

    stream, child = served.stream([3, 4, 5], LONGEST), served.child()
    first = next(stream)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(served.end, signal.SIGTERM)
        served.wait_for("stopping")
        rest = [token for r in stream for token in r.stream_content.samples[0].token_ids]
        assert len(first.stream_content.samples[0].token_ids) + len(rest) == LONGEST
        assert ending.result() < 10
    assert not is_alive(child)
    with pytest.raises(grpc.RpcError):
        served.tokens([3], 5)


@pytest.mark.slow
def test_sigint_while_it_loads_ends_it_with_130_and_leaves_no_process(directory, env):
    from served import ServedProcess, is_alive

    served = ServedProcess(str(directory), *SIZES, env=env)
    served.wait_for("loading")
    child = served.child()
    assert served.end(signal.SIGINT, code=130) < 10
    assert not is_alive(child)


@pytest.mark.slow
def test_after_1000_requests_with_cancels_and_disconnects_every_slot_is_free_and_it_stops(directory, env, ours):
    import grpc
    from served import ServedProcess, is_alive

    from jaxgrpo.rollout.client import decode_request, pb_grpc

    def ask(seed: int) -> str:
        rng = random.Random(seed)
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 16))]
        request, fate = decode_request(prompt, rng.randint(1, 60)), rng.choice(["read", "read", "cancel", "disconnect"])
        with grpc.insecure_channel(served.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stream = pb_grpc.OrchestratorStub(channel).Decode(request, timeout=300)
            if fate == "read":
                tokens = [token for r in stream for token in r.stream_content.samples[0].token_ids]
                assert 1 <= len(tokens) <= request.max_tokens
                return fate
            if rng.random() < 0.8:
                next(stream)
            else:
                time.sleep(rng.random() * 0.05)
            if fate == "cancel":
                stream.cancel()
        return fate  # leaving the channel with a running stream is a disconnect

    served = ServedProcess(str(directory), *SIZES, env=env)
    served.connect()
    child = served.child()
    with ThreadPoolExecutor(32) as pool:
        fates = list(pool.map(ask, range(1000)))
    assert min(fates.count(fate) for fate in ("read", "cancel", "disconnect")) > 150
    wait_until_none_is_held(served, 30)
    prompts = prompts_of(range(1, 17), vocab=VOCAB, seed=9)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda prompt: served.tokens(prompt.tolist(), 24), prompts)) == ours(prompts)
    assert served.child() == child, "the Driver lived through all of it"
    streams = [served.stream([3, i], LONGEST) for i in range(10 * SLOTS)]  # more than can end while it drains
    next(streams[0])
    assert served.end(signal.SIGTERM) < 10
    assert not is_alive(child)
