"""Keeps a server alive in a child process, and ends it cleanly. Imports neither jax nor grpc.

The child shares two pipes with its supervisor. On one it writes a line once it takes requests. The other is its standard input,
on which nothing is ever written: when it ends, because the supervisor stops or has died itself, the child lets running requests
end and exits. So no child outlives its supervisor, and no signal needs to reach it.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time

from jaxgrpo import interruption
from jaxgrpo.errors import UserError

STOP_S = 8.0  # seconds that a child has to end before it is killed
QUICK_S = 60.0  # a child that lived shorter died quickly
LONGEST_PAUSE_S = 30.0  # before a restart
FAILED_STARTS = 3  # in a row, after which there is no other


class PortError(UserError):
    """The port cannot be had."""

    exit_code = 2


def reserve_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. PortError if it cannot be bound, before anything is loaded to serve on it."""
    if not 0 <= port < 2**16:
        raise PortError(f"--port {port} is not a port: give 1 to 65535, or 0 for a free one.")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no obstacle
            probe.bind(where)
            return probe.getsockname()[1]
    except OSError as error:
        raise PortError(f"cannot listen on port {port} of {host} ({error.strerror}): give another --port or --host.") from None


class Supervisor:
    """Runs `command` with the number of the ready pipe's descriptor as its last argument, again whenever it dies."""

    def __init__(self, command: list[str]):
        self.command = command
        self.child: Child | None = None
        self.asked = 0  # the request to end

    @property
    def stopping(self) -> bool:
        return bool(self.asked)

    def run(self) -> int:
        """Until it is asked to end: 0, or 130 by Ctrl-C before anything was served. Otherwise the exit code of a child that
        never came up, 1 if a signal ended it."""
        with interruption.taken_by(self._stop), interruption.undone(self._kill):
            return self._keep_alive()

    def _stop(self, number: int) -> None:
        if self.asked and number != signal.SIGHUP:
            interruption.end(number)
        self.asked = number

    def _kill(self) -> None:
        if self.child:
            self.child.kill()

    def _keep_alive(self) -> int:
        served, failed_starts, quick_deaths = False, 0, 0
        while True:
            child = self.child = Child(self.command)
            started = time.monotonic()
            while child.alive() and not self.stopping:
                if line := child.ready_line(timeout=0.1):
                    print(line, flush=True)
            if self.stopping:
                ends = "running requests may end" if child.was_ready else "nothing is served yet"
                print(f"{interruption.name_of(self.asked)}: stopping, {ends}", flush=True)
                if not child.was_ready:
                    child.kill()
                child.stop()
                return interruption.INTERRUPTED if self.asked == signal.SIGINT and not (served or child.was_ready) else 0
            if child.was_ready:
                served, failed_starts = True, 0
            else:
                failed_starts += 1
                if not served or failed_starts == FAILED_STARTS:
                    return child.code if child.code in (1, 2) else 1
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < QUICK_S else 0
            pause = min(2.0 ** (quick_deaths - 2), LONGEST_PAUSE_S) if quick_deaths > 1 else 0.0
            print(f"the server (process {child.pid}) {child.end()}; starting it again in {pause:g} s", flush=True)
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopping:
            time.sleep(0.1)


class Child:
    """One run of the command."""

    def __init__(self, command: list[str]):
        self.was_ready = False
        self._ready, theirs = os.pipe()
        self._process = subprocess.Popen(
            [*command, str(theirs)],
            stdin=subprocess.PIPE,
            pass_fds=[theirs],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is the supervisor's to handle
        )
        os.close(theirs)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def alive(self) -> bool:
        """Whether it still runs; closes the pipes when it does not."""
        if self._process.poll() is None:
            return True
        self._close()
        return False

    def ready_line(self, timeout: float) -> str:
        """What the child says when it takes requests, once; otherwise "" after at most `timeout` seconds."""
        if self.was_ready:
            time.sleep(timeout)
            return ""
        if not select.select([self._ready], [], [], timeout)[0]:
            return ""
        line = os.read(self._ready, 4096).decode().strip()
        self.was_ready = bool(line)
        if not line:
            time.sleep(timeout)  # it is about to end
        return line

    def stop(self) -> None:
        """Let it end; kill it if it does not."""
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            print(f"the server did not end within {STOP_S:g} s and was killed", flush=True)
            self._process.kill()
            self._process.wait()
        self._close()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()

    def end(self) -> str:
        """How it ended."""
        return f"exited with {self.code}" if self.code >= 0 else f"was ended by {signal.Signals(-self.code).name}"

    def _close(self) -> None:
        self._process.stdin.close()
        os.close(self._ready)
