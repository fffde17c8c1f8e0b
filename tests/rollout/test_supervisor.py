"""The supervisor, with children that do nothing but come up, die or hang."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxgrpo.rollout import supervisor
from jaxgrpo.rollout.supervisor import PortError, Supervisor, reserve_port
from tests.run.commands import ROOT

READY = "import os, sys; os.write(int(sys.argv[1]), b'up %d' % os.getpid());"
SERVE = READY + "sys.stdin.buffer.read()"


def supervise(code: str) -> subprocess.Popen:
    """A supervisor in a process of its own over `python -c code`."""
    script = "import sys; from jaxgrpo.rollout.supervisor import Supervisor; sys.exit(Supervisor(sys.argv[1:]).run())"
    command = [sys.executable, "-c", script, sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_supervisor_and_child_with_0(number):
    process = supervise(SERVE)
    assert process.stdout.readline().startswith("up ")
    process.send_signal(number)
    process.communicate(timeout=20)  # returns once the child, which has the same output, has ended too
    assert process.returncode == 0


def test_a_child_does_not_outlive_a_killed_supervisor():
    process = supervise(SERVE)
    assert process.stdout.readline().startswith("up ")
    process.kill()
    process.communicate(timeout=20)


def test_a_killed_child_is_started_again():
    process = supervise(SERVE)
    first = int(process.stdout.readline().split()[1])
    os.kill(first, signal.SIGKILL)
    assert f"process {first}) was ended by SIGKILL" in process.stdout.readline()
    assert int(process.stdout.readline().split()[1]) != first
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(2)", 2), ("sys.exit(1)", 1), ("sys.exit(9)", 1)])
def test_a_child_that_never_comes_up_is_not_started_again(code, expected):
    assert Supervisor([sys.executable, "-c", f"import sys; {code}"]).run() == expected


def test_a_child_that_came_up_once_has_three_more_attempts(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.0)
    flag = tmp_path / "came up"
    code = f"import os, sys; p = {str(flag)!r}\nif os.path.exists(p): sys.exit(1)\nopen(p, 'w').close()\n{READY}"
    assert Supervisor([sys.executable, "-c", code]).run() == 1
    assert capfd.readouterr().out.count("starting it again") == 3


def test_a_child_that_does_not_end_is_killed(monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "STOP_S", 0.5)
    child = supervisor.Child([sys.executable, "-c", READY + "import time; time.sleep(300)"])
    while not child.ready_line(timeout=0.1):
        assert child.alive()
    start = time.monotonic()
    child.stop()
    assert child.code == -signal.SIGKILL and time.monotonic() - start < 5
    assert "was killed" in capfd.readouterr().out


def test_a_port_that_is_taken_or_is_none_is_refused_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} of 127.0.0.1 .* give another --port"):
            reserve_port("127.0.0.1", port)
    assert reserve_port("127.0.0.1", port) == port
    assert reserve_port("127.0.0.1", 0) > 0
    with pytest.raises(PortError, match="70000"):
        reserve_port("127.0.0.1", 70000)
