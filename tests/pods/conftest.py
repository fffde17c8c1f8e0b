"""One compilation cache, one job of two hosts that nothing interrupted, and one process with as many devices."""

from pathlib import Path

import pytest

from tests.pods.pods import TENSOR, Pod, pod_environment
from tests.run.commands import CONFIG, SHORT, jaxgrpo


@pytest.fixture(scope="session")
def env(tmp_path_factory) -> dict:
    return pod_environment(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def whole_pod(env, tmp_path_factory) -> Path:
    """The run directory of a short job of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("whole-pod")
    pod = Pod(2, folder, env)
    assert pod.run() == 0, pod.output()
    return pod.run_dir


@pytest.fixture(scope="session")
def one_process(env, tmp_path_factory) -> Path:
    """The same work in one process with eight devices."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = jaxgrpo("train", CONFIG, *SHORT, TENSOR, f"run_dir={run_dir}", env=env | flags)
    assert done.returncode == 0, done.stderr
    return run_dir
