"""What hosts tell each other: plain data, equal on both sides; what a stranger writes runs nowhere and is no end of a job."""

import dataclasses
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import sampling
from eval.sampling import Graded
from jaxgrpo.config import load_config
from jaxgrpo.parallel.messages import MessageError, packed, unpacked
from jaxgrpo.reward import Grade
from jaxgrpo.rollout.scheduler import Response
from jaxgrpo.train import stored
from jaxgrpo.train.stored import Stored
from tests.run.commands import CONFIG, ROOT

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    LEAVES,
    lambda of: st.lists(of) | st.lists(of).map(tuple) | st.dictionaries(st.text() | st.integers(0, 9), of),
    max_leaves=30,
)


@given(VALUES)
def test_a_message_arrives_as_it_was_sent(value):
    arrived = unpacked(packed(value))
    assert arrived == value and repr(arrived) == repr(value)  # 1 is not True, nor (1,) [1]


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_data(data):
    try:
        assert unpacked(data) is None or isinstance(unpacked(data), bool | int | float | str | bytes | list | tuple | dict)
    except MessageError:
        pass


@pytest.mark.parametrize("value", [object(), {1, 2}, np.zeros(2), lambda: 0, Grade(1.0)])
def test_other_things_are_not_sent(value):
    with pytest.raises(TypeError, match="plain data"):
        packed([value])


class Harm:
    def __reduce__(self):
        return os._exit, (0,)


def test_a_pickle_is_no_message():
    with pytest.raises(MessageError):
        unpacked(pickle.dumps(Harm()))


def test_graded_answers_arrive_as_they_were_sent():
    responses = [[Response(3, 1, [5, 151_935], [-0.1, float(np.float32(-1e-7))], "stop")], [Response(4, 0)]]
    graded = Graded(responses, [[Grade(0.25, None, {"cell_accuracy": 0.25})], [Grade(0.0, "died")]], 1.5, 0.25)
    assert sampling.from_message(unpacked(packed(sampling.as_message(graded)))) == graded
    message = sampling.as_message(graded)
    message[0][0][0] = (3, 1, message[0][0][0][2], b"", "stop")
    with pytest.raises(ValueError, match="2 tokens with 0 log-probabilities"):
        sampling.from_message(message)


def test_what_a_run_directory_holds_arrives_as_it_was_sent():
    config = load_config(CONFIG, ["eval.suites=[gsm8k]", "optim.lr=3e-7", "run_dir=off"])
    held = Stored(config, {"data": {"digest": "ab"}}, "runs/x", 7, {"step": 3}, ("a note",))
    assert stored.from_message(unpacked(packed(stored.as_message(held)))) == held
    assert stored.from_message(unpacked(packed(stored.as_message(None)))) is None
    older = dataclasses.replace(held, inputs=None)
    assert stored.from_message(unpacked(packed(stored.as_message(older)))) == older


HOST = """
import sys
from jaxgrpo.config import HostsConfig
from jaxgrpo.parallel import hosts
port, index, key, value = sys.argv[1], int(sys.argv[2]), sys.argv[3], bytes.fromhex(sys.argv[4])
hosts.start(HostsConfig(count=2, index=index, coordinator=f"127.0.0.1:{port}"))
with hosts.ending_together():
    if index == 1:  # what a stranger who reaches the port can do
        hosts._client().key_value_set_bytes(key, value)
    hosts.barrier("the stranger")
    print(hosts.from_first([1], "the config of host 0"))
"""


def run_hosts(key: str, value: bytes) -> list[tuple[int, str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(port), str(index), key, value.hex()],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in (0, 1)
    ]  # fmt: skip
    return [(host.wait(120), host.stdout.read(), host.stderr.read()) for host in both]


def test_a_stranger_s_pickle_runs_nowhere_and_is_told():
    for code, said, errors in run_hosts("jaxgrpo/1/the config of host 0", pickle.dumps(Harm())):
        assert code != 0 and said == "", errors
        assert "Another program writes to the job's key-value store" in errors or "ended with host" in errors, errors
        assert "Traceback" not in errors


def test_a_stranger_s_failure_is_not_taken_for_done():
    ended = run_hosts("jaxgrpo/failure", b"0 all is well")
    assert all(code == 1 for code, _, _ in ended), ended
