"""Training-style requests through JetStream's Driver in a child process, against our scheduler."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from engines import engine_of, prompts_of, requests_of, trainer_logits

from jaxgrpo.rollout.engine import EngineError
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.scheduler import generate

pytestmark = pytest.mark.skipif(find_spec("jetstream") is None, reason="google-jetstream is not installed")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from jaxgrpo.rollout.driver_process import DriverProcess

    with pytest.MonkeyPatch.context() as patch, DriverProcess() as driver:  # children share a compilation cache
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield driver


@pytest.fixture(scope="module")
def engine(model):
    """An engine of eight slots and a stop token, which ends some responses early; and its weights."""
    said = prompts_of([5], seed=2)[0].tolist()
    for _ in range(7):
        said.append(int(trainer_logits(model, said)[-1].argmax()))
    return engine_of(model, max_prompt=16, stop_ids=(said[-1],))


def assert_same(theirs, ours):
    assert [[r.tokens for r in group] for group in theirs] == [[r.tokens for r in group] for group in ours]
    assert [[r.finish for r in group] for group in theirs] == [[r.finish for r in group] for group in ours]
    for their, our in zip(sum(theirs, []), sum(ours, []), strict=True):
        np.testing.assert_allclose(their.logps, our.logps, atol=1e-5)


def test_the_header_brings_back_what_was_put_in():
    from jaxgrpo.rollout.driver import HEADER, read_header, with_header

    key, sampling = np.array([2**32 - 1, 7], np.uint32), Sampling(0.7, 40, 0.9, 0.05)
    tokens = with_header(np.array([3, 4]), key, sampling, 24)
    assert tokens.dtype == np.int32 and tokens[HEADER:].tolist() == [3, 4]
    back_key, back, limit = read_header(tokens)
    np.testing.assert_array_equal(back_key, key)
    assert limit == 24 and back.top_k == 40
    np.testing.assert_array_equal(np.float32([back.temperature, back.top_p, back.min_p]), np.float32([0.7, 0.9, 0.05]))


def test_sampled_groups_with_limits_of_their_own_equal_the_schedulers(engine, driver):
    prompts = prompts_of([5, 16, 12, 1, 14, 9, 3, 8], seed=2)
    requests = requests_of(prompts, samples=3, temperature=1.0)
    requests = [replace(request, max_new=np.array([24, 7, 1])) for request in requests]
    finished = []
    theirs = driver.generate(*engine, requests, on_finish=lambda r: finished.append((r.request, r.sample)))
    assert_same(theirs, generate(*engine, requests))
    assert sorted(finished) == [(r, s) for r in range(8) for s in range(3)]
    assert {r.finish for group in theirs for r in group} == {"stop", "length"}


def test_64_greedy_prompts_equal_the_schedulers(engine, driver):
    rng = np.random.default_rng(1)
    requests = requests_of(prompts_of(rng.integers(1, 17, 64), seed=3))
    assert_same(driver.generate(*engine, requests), generate(*engine, requests))


def test_new_weights_reach_the_same_child(model, engine, driver):
    ours, params = engine
    requests = requests_of(prompts_of([5, 16, 12]), temperature=1.0)
    before, pid = driver.generate(ours, params, requests), driver.pid
    other = ours.load_params({name: value * 1.1 for name, value in model.params.items()})
    theirs = driver.generate(ours, other, requests)
    assert driver.pid == pid
    assert_same(theirs, generate(ours, other, requests))
    assert theirs[0][0].tokens != before[0][0].tokens


def test_a_request_that_the_engine_cannot_serve_never_reaches_the_child(engine, driver):
    pid = driver.pid
    with pytest.raises(EngineError, match="request 1 has 17 tokens"):
        driver.generate(*engine, requests_of(prompts_of([5, 17])))
    assert driver.pid == pid


def kill_while_it_answers(engine, driver) -> int:
    """SIGKILL, as the package's Driver does to itself, after the first of 160 answers; returns the child's pid."""
    from jaxgrpo.rollout.driver_process import DriverError

    requests = requests_of(prompts_of([5] * 40), samples=4, temperature=1.0)
    driver.generate(*engine, requests[:1])
    pid, killed = driver.pid, []

    def kill(response):
        if not killed:
            killed.append(os.kill(pid, signal.SIGKILL))

    with pytest.raises(DriverError, match=f"process {pid}, was ended by SIGKILL") as died:
        driver.generate(*engine, requests, on_finish=kill)
    assert died.value.exit_code == 1
    return pid


def test_a_child_that_dies_is_an_error_that_names_it(engine, driver):
    kill_while_it_answers(engine, driver)
    assert driver.pid is None


@pytest.mark.slow
def test_the_call_after_an_error_has_another_child(engine, driver):
    killed = kill_while_it_answers(engine, driver)
    requests = requests_of(prompts_of([5, 16, 12]))
    assert_same(driver.generate(*engine, requests), generate(*engine, requests))
    assert driver.pid not in (None, killed)


@pytest.mark.slow
def test_the_child_ends_with_its_parent():
    """Also when the parent is killed: its end of the socket closes."""
    code = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
child = subprocess.Popen([sys.executable, "-c", "import jaxgrpo.rollout.driver_process as d, sys; d._read(d.Connection("
    "int(sys.argv[1])), d.queue.Queue())", str(theirs.fileno())], pass_fds=[theirs.fileno()])
print(child.pid, flush=True)
time.sleep(300)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    parent.kill()
    parent.communicate(timeout=50)  # returns once the child, which writes to the same pipe, has ended too
