"""A grader process: reads items from a socket, answers each with one line, ends when the socket does."""

import contextlib
import json
import resource
import signal
import socket
import sys

from jaxgrpo.reward.router import marked

OUT_OF_MEMORY = 3  # exit code


def serve(connection: socket.socket, cpu_seconds: float, memory_bytes: int) -> None:
    """Grade until `connection` ends. One request line is one list of [number, data_source, response, truth, extra].

    The limits are the kernel's, so that nothing in a grader can catch or outlast them: SIGPROF ends the process when
    an item has used `cpu_seconds` of processor time; allocations fail beyond `memory_bytes` of address space.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(*() if sys.platform == "linux" else (OSError, ValueError)):  # macOS knows this limit, but not how
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), connection.makefile("rb") as requests:
        for line in requests:
            for number, *item in json.loads(line):
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
                reply = json.dumps([number, *_graded(*item)])
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                connection.sendall(reply.encode() + b"\n")


def _graded(data_source: str, response: str, ground_truth: object, extra_info: object) -> tuple[float, str | None, dict]:
    try:
        score, figures = marked(data_source, response, ground_truth, extra_info)
        return score, None, figures
    except Exception as error:  # reported with the item; it never becomes a score
        return 0.0, f"{type(error).__name__}: {error}"[:300], {}
