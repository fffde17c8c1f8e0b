"""A real `jaxgrpo serve` in a real process, and what its tests ask it."""

import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc

from jaxgrpo.rollout.client import decode_request, pb, pb_grpc
from tests.run.commands import ROOT


class ServedProcess:
    """The command, its lines as they come, and a stub once it says that it serves."""

    def __init__(self, *arguments: str, env: dict):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxgrpo.cli", "serve", *arguments],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            self._new.put(line)
        self._new.put("")

    def wait_for(self, pattern: str, timeout: float = 120) -> re.Match:
        """The next line that matches; AssertionError with everything said if there is none in time."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._new.get(timeout=left)
            except queue.Empty:
                break
            if match := re.search(pattern, line):
                return match
            if not line:
                break
        raise AssertionError(f"no line like {pattern!r} in:\n{''.join(self.lines)}")

    def connect(self) -> None:
        """Once it says that it serves, also for the second time."""
        self.address = self.wait_for(r"serving .* on (127\.0\.0\.1:\d+)")[1]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = pb_grpc.OrchestratorStub(self.channel)

    def child(self) -> int:
        """The process that serves."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def stream(self, prompt, max_tokens: int, timeout: float = 60):
        return self.stub.Decode(decode_request(prompt, max_tokens), timeout=timeout)

    def tokens(self, prompt, max_tokens: int) -> list[int]:
        return [token for r in self.stream(prompt, max_tokens) for token in r.stream_content.samples[0].token_ids]

    def held(self) -> int:
        """Requests that the Driver holds, queued or in a slot."""
        _, call = self.stub.HealthCheck.with_call(pb.HealthCheckRequest(), timeout=20)
        return int(dict(call.trailing_metadata())["requests-held"])

    def end(self, number: int, code: int = 0) -> float:
        """Send a signal and wait; seconds that it took. AssertionError for another exit code than `code`."""
        start = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(timeout=60) == code, "".join(self.lines)
        return time.monotonic() - start


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
