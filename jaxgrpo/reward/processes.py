"""The parent's side of the grader processes: start, send, receive, kill."""

import contextlib
import json
import os
import socket
import subprocess
import sys

from jaxgrpo.reward.sandbox import LEVEL_VARIABLE, Level

_START = "import sys; sys.path[:] = {path!r}; from jaxgrpo.reward.nursery import main; main({descriptor}, {parent})"


class NurseryError(RuntimeError):
    """The process that forks grader processes could not start, or ended."""


class Nursery:
    """One warm process that forks grader processes (`jaxgrpo.reward.nursery`)."""

    def __init__(self, sandbox: Level) -> None:
        self._control, theirs = socket.socketpair()
        code = _START.format(path=sys.path, descriptor=theirs.fileno(), parent=os.getpid())
        # a fixed hash seed gives sympy one order of terms in every process
        environment = os.environ | {"PYTHONHASHSEED": "0", LEVEL_VARIABLE: sandbox}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the trainer alone
        )
        theirs.close()

    def fork(self, cpu_seconds: float, memory_bytes: int) -> "Worker":
        """A fresh grader process with the limits of `worker.serve`; waits for the nursery to be warm. NurseryError."""
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps({"fork": [cpu_seconds, memory_bytes]}).encode()
            reply = self._ask(request, theirs.fileno())
        return Worker(reply["pid"], ours)

    def stop(self, worker: "Worker") -> int:
        """Kill and reap `worker`; its exit code, minus the signal that ended it, also when it had ended before."""
        worker.connection.close()
        status = self._ask(json.dumps({"stop": worker.pid}).encode())["status"]
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the nursery and with it every worker."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # still importing
            self._process.kill()
            self._process.wait()

    def _ask(self, request: bytes, *descriptors: int) -> dict:
        try:
            socket.send_fds(self._control, [request], descriptors)
            reply = self._control.recv(4096)
        except OSError as error:
            raise NurseryError(f"the grader nursery is gone: {error}") from error
        if not reply:
            code = self._process.wait()
            raise NurseryError(f"the grader nursery ended with exit code {code}; its own message is on stderr")
        return json.loads(reply)


class Worker:
    """One grader process and what it is working on."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self.tasks: list = []  # sent and not answered, in order
        self.deadline = 0.0  # of the first of them, on the monotonic clock
        self.used = False
        self._received = b""

    def send(self, request: bytes, timeout: float) -> bool:
        """Hand over one request line; False when the process does not take it within `timeout` seconds."""
        self.used = True
        self.connection.settimeout(timeout)
        try:
            self.connection.sendall(request)
        except OSError:
            return False
        self.connection.settimeout(None)
        return True

    def receive(self) -> list[list] | None:
        """The replies that have arrived, [number, score, error] each; None when the process has ended."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self.connection.recv(1 << 16)
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]
