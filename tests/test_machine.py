"""Every command starts where the operating system binds no processes to cores and ends none with its parent, as macOS."""

import os
import subprocess
import sys

import pytest

from jaxgrpo.machine import usable_cores
from tests.run.commands import CONFIG, ROOT

# Read by every Python process of a command, its children included.
OTHER_SYSTEM = """
import ctypes, os

del os.sched_getaffinity, os.sched_setaffinity


class CDLL(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)


ctypes.CDLL = CDLL
"""
TINY = ["--layers", "1", "--hidden", "32", "--heads", "2", "--kv-heads", "1", "--ffn", "64", "--vocab", "64", "--prompts", "2"]
TINY += ["--samples", "2", "--prompt-len", "8", "--new-tokens", "8", "--repeats", "1"]
SMALL = ["data.prompts_per_step=8", "train.minibatch_prompts=8", "train.steps=1", "warmup.steps=0", "warmup.corrupt_steps=0"]
SMALL += ["eval.limit=8"]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other_system")
    (folder / "sitecustomize.py").write_text(OTHER_SYSTEM)
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return kept | {"PYTHONPATH": f"{folder}:{ROOT}", "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}


def run(env, *arguments: str, timeout: float = 240) -> str:
    command = [sys.executable, "-m", "jaxgrpo.cli", *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_cores_are_those_of_the_machine_where_none_can_be_chosen(env):
    cores = [sys.executable, "-c", "from jaxgrpo.machine import usable_cores; print(len(usable_cores()))"]
    assert int(subprocess.run(cores, env=env, capture_output=True, text=True, check=True).stdout) == os.cpu_count()
    assert usable_cores() == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", CONFIG, "--dry-run"],
        pytest.param(["bench", "rollout", *TINY], marks=pytest.mark.slow),
        pytest.param(["study", str(ROOT / "configs" / "study.yaml"), "--dry-run"], marks=pytest.mark.slow),
        pytest.param(["plan", CONFIG, "--topology", "v5e:2x2", "--no-compile"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_starts(arguments, env, tmp_path):
    assert run(env, *arguments)


def test_answers_are_graded_in_other_processes(env):
    code = (
        "from jaxgrpo.reward import GraderPool\nwith GraderPool() as pool:\n"
        "  print(pool.grade([('math__x', r'\\boxed{4}', '4', None), ('math__x', r'\\boxed{5}', '4', None)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "score=1.0, error=None" in done.stdout and "score=0.0, error=None" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_study_trains_its_runs_and_a_checkpoint_is_evaluated_and_exported(env, tmp_path):
    (tmp_path / "study.yaml").write_text(
        f"study: ladder\nconfig: {CONFIG}\nruns: {{w16: {{model: random:miniature-16}}, w24: {{model: random:miniature-24}}}}\n"
    )
    study = [sys.executable, "-m", "jaxgrpo.cli", "study", str(tmp_path / "study.yaml"), f"out={tmp_path}/out", *SMALL]
    done = subprocess.run(study, env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert "trained   2 runs" in done.stdout, done.stderr
    trained = str(tmp_path / "out" / "runs" / "w16-seed0")
    assert "report" in run(env, "eval", "--checkpoint", trained, "--out", str(tmp_path / "eval"), "eval.limit=8")
    assert "exported" in run(env, "export", trained, str(tmp_path / "hf"))
