"""The process from which grader processes are forked: graders imported and warm, no jax, no threads.

`python -c` starts it with the parent's sys.path. Neither multiprocessing's fork server nor its spawn is used, because
both import the parent's main module into every child, and a training script brings jax with it.

Requests, one JSON line each, on the inherited socket: {"fork": [cpu_seconds, memory_bytes]} with the new worker's
socket attached -> {"pid": n}; {"stop": pid} -> {"status": wait status} after killing and reaping it.
Everything ends with the parent: the nursery when its socket ends, each worker when the nursery does.
"""

import contextlib
import gc
import json
import os
import signal
import socket

from jaxgrpo.machine import end_with
from jaxgrpo.reward import worker
from jaxgrpo.reward.router import score

_WARM_UP = (r"\frac{1}{2}", r"\sqrt{3}+1"), (r"x^2+2x+1", r"(x+1)^2"), (r"2^{10}\pi", r"1024\pi"), (r"3+4i", r"4i+3")
_NICE = 10  # decoding goes first: devices that wait for each other lose twice what one of them loses


def main(descriptor: int, parent: int) -> None:
    """Serve fork and stop requests on the socket `descriptor` until it, or the process `parent`, ends."""
    end_with(parent)
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    control = socket.socket(fileno=descriptor)
    for gold, answer in _WARM_UP:
        score("math__warm_up", rf"\boxed{{{answer}}}", gold)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        request = json.loads(message)
        reply = _stop(request["stop"]) if "stop" in request else _fork(control, descriptors[0], *request["fork"])
        control.sendall(json.dumps(reply).encode())


def _fork(control: socket.socket, descriptor: int, cpu_seconds: float, memory_bytes: int) -> dict:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return {"pid": pid}
    status = 1
    try:
        control.close()
        end_with(nursery)
        connection = socket.socket(fileno=descriptor)  # open until the very end, so that its end means an exit code
        worker.serve(connection, cpu_seconds, memory_bytes)
        status = 0
    except MemoryError:  # outside a grader: the item itself does not fit
        status = worker.OUT_OF_MEMORY
    finally:
        os._exit(status)  # never back into the nursery's loop, whatever was raised


def _stop(pid: int) -> dict:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return {"status": os.waitpid(pid, 0)[1]}
