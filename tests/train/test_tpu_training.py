"""The training step of all seven sizes compiles for real TPU slices and fits their memory. Compiled by libtpu in a process of
its own, without a TPU: this process has virtual CPU devices."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from tpu_training import CASES, peak_bytes, table

from tests.run.commands import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: EXTRAS=jetstream,test,tpu launch/test.sh"
)
IN_CI = "0.5b-v5e-2x2"


def compiled(name: str) -> dict:
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/train/tpu_training.py", "measure", name]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(line: dict) -> None:
    print(table([line]).splitlines()[-1])
    update = line["programs"]["update"]
    assert update["outputs"] - update["aliased"] < 0.01 * line["parameters"], "the state is updated where it lies"
    for phase, peak in peak_bytes(line).items():
        assert peak <= line["memory"], phase


def test_every_size_is_covered():
    assert {case.size for case in CASES} == {"0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"}


@needs_libtpu
@pytest.mark.timeout(900)
def test_the_training_step_of_0_5b_compiles_for_v5e_and_fits():
    check(compiled(IN_CI))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name != IN_CI])
def test_the_training_step_of_every_size_compiles_and_fits(name):
    check(compiled(name))
