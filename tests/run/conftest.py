"""One compilation cache and one uninterrupted run for all tests of whole runs."""

from pathlib import Path

import pytest

from tests.run.commands import CONFIG, SHORT, environment, jaxgrpo


@pytest.fixture(scope="session")
def env(tmp_path_factory) -> dict:
    return environment(tmp_path_factory.mktemp("xla"), devices=2)


@pytest.fixture(scope="session")
def whole_run(env, tmp_path_factory) -> Path:
    """The run directory of a short run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={run_dir}", env=env)
    assert done.returncode == 0, done.stderr
    return run_dir
