"""The rollout programs of all seven sizes compile for real TPUs and fit their memory. Compiled by libtpu in a process of its
own, without a TPU: this process has virtual CPU devices."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from tpu_programs import CASES, peak_bytes, program_bytes, rollout_residents, table

from tests.run.commands import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: EXTRAS=jetstream,test,tpu launch/test.sh"
)
IN_CI = "0.5b-v5e-2x2"


def compiled(name: str) -> dict:
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/rollout/tpu_programs.py", "measure", name]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(line: dict) -> None:
    print(table([line]).splitlines()[-1])
    assert line["attention"] == "ragged"
    for program in line["programs"].values():
        assert program_bytes(program) <= line["memory"], program
    assert peak_bytes(line) <= line["memory"]
    slots = rollout_residents(line["programs"])["slots"]
    for program in (line["programs"][kind] for kind in ("decode", "insert")):  # the slots are updated where they lie
        assert program["outputs"] - program["aliased"] < 0.01 * slots
        assert program["temporaries"] < 0.25 * slots


def test_every_size_and_every_chip_is_covered():
    assert {case.size for case in CASES} == {"0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"}
    for chip in ("v5e", "v5p", "v6e"):
        assert len({case.size for case in CASES if case.chip == chip}) >= 3


@needs_libtpu
@pytest.mark.timeout(900)
def test_the_programs_of_0_5b_compile_for_v5e_and_fit():
    check(compiled(IN_CI))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name != IN_CI])
def test_the_programs_of_every_size_compile_and_fit(name):
    check(compiled(name))
