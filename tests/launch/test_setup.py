import os
import subprocess

import pytest

from tests.run.commands import ROOT


@pytest.fixture
def clone(tmp_path):
    """A fresh clone in an empty folder, with nothing installed."""
    path = tmp_path / "jaxgrpo"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(path)], check=True)
    return path


def bash(*arguments: str, cwd, **variables: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "VIRTUAL_ENV", "CI")} | variables
    return subprocess.run(["bash", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_scripts_are_valid_bash():
    for script in [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]:
        assert bash("-n", str(script), cwd=ROOT).returncode == 0, script


def test_an_interpreter_that_is_missing_or_too_old_is_named(tmp_path):
    missing = bash("launch/quickstart.sh", cwd=ROOT, PYTHON="python-that-is-not-there", VENV=str(tmp_path / "venv"))
    assert missing.returncode == 2
    assert "needs Python 3.11 or newer" in missing.stderr
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9;; *) exit 1;; esac\n')
    old.chmod(0o755)
    refused = bash("launch/quickstart.sh", cwd=ROOT, PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert refused.returncode == 2
    assert "is 3.9" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_two_commands_of_the_readme_work_in_a_fresh_clone(clone):
    first = bash("launch/quickstart.sh", cwd=clone)
    assert first.returncode == 0, first.stderr
    assert "installed jaxgrpo" in first.stdout
    assert (clone / "runs/quickstart/plots/learning_curve.png").exists()
    again = bash("launch/quickstart.sh", cwd=clone)
    assert again.returncode == 0, again.stderr
    assert "installed jaxgrpo" not in again.stdout
    tests = bash("launch/test.sh", "-q", "tests/algo", "tests/test_config.py", cwd=clone)
    assert tests.returncode == 0, tests.stdout
