"""Eight virtual CPU devices for every test, set before jax is imported anywhere; the same drawn examples in every run."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import settings

settings.register_profile("same-every-time", derandomize=True)
settings.load_profile("same-every-time")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it, and children would too

os.environ.pop("COLUMNS", None)  # workers of pytest-xdist have one: what a pipe gets would be as narrow as a terminal
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def pytest_sessionfinish(session, exitstatus):
    """In continuous integration a test that is skipped is a test that nobody notices to be missing: it fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # of several processes only the first has one
    if os.environ.get("CI") != "true" or exitstatus != 0 or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if not _expected(str(report.longrepr))]
    if skipped:
        reporter.write_line(f"unexpected skips: {', '.join(sorted({report.nodeid for report in skipped}))}", red=True)
        session.exitstatus = 1


def _expected(reason: str) -> bool:
    return "could not import 'torch'" in reason and sys.version_info >= (3, 12)  # no small build of it is to be had there
