"""`rollout.driver: jetstream`: training-style requests through JetStream's Driver, to check our scheduler against it.

The Driver kills its process on any error, so it runs in a child of its own, on CPU devices laid out as the engine's mesh (an
accelerator's memory is the trainer's). Same requests, same keys, same answers as `rollout.scheduler.generate`; nothing that
trains depends on it. What it costs, for it is a check and not a fast path: every call whose weights are new sends them through
a socket as NumPy arrays (the host holds them up to three times meanwhile: 3 GB for 0.5B in bfloat16), every sample is prefilled
anew, because the Driver deletes a prefix after its insert, and every token is a dispatch of its own.
"""

import asyncio
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from multiprocessing.connection import Connection

import jax
import numpy as np

from jaxgrpo.machine import end_with
from jaxgrpo.parallel.mesh import prepare_cpu_devices
from jaxgrpo.rollout.engine import Engine, EngineError, NonFiniteError
from jaxgrpo.rollout.scheduler import Request, Response, check_requests

CLOSE_S = 5.0


class DriverError(EngineError):
    """The child failed; the message names it and how it ended."""

    exit_code = 1


class DriverProcess:
    """JetStream's Driver over a copy of one engine in a child process, which the first `generate` starts."""

    def __init__(self):
        self._child: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._sent: weakref.ref | None = None  # to a leaf of the weights that the child has

    def __enter__(self) -> "DriverProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def generate(
        self, engine: Engine, params, requests: list[Request], on_finish: Callable[[Response], None] = lambda response: None
    ) -> list[list[Response]]:
        """As `scheduler.generate`: responses[request][sample], each of which `on_finish` sees as it ends.

        EngineError for a request that the engine cannot serve, NonFiniteError for log-probabilities that are not finite,
        DriverError when the child dies. After an error the next call starts another child.
        """
        check_requests(engine, requests)
        answered = False
        try:
            if self._child is None:
                self._start(engine)
            self._send_weights(params)
            responses = self._ask(engine, requests, on_finish)
            answered = True
        finally:
            if not answered:
                self.close()
        return responses

    def close(self) -> None:
        """End the child. It ends by itself when its socket does; one that hangs is killed."""
        if self._child is None:
            return
        self._connection.close()
        try:
            self._child.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = self._connection = self._sent = None

    def _start(self, engine: Engine) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "jaxgrpo.rollout.driver_process", str(theirs.fileno()), str(os.getpid())],
                env=_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno(),  # the Driver prints there what it dies of
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._connection = Connection(ours.detach())
        self._send((engine.config, engine.settings, dict(engine.mesh.shape)))
        self._receive()

    def _send_weights(self, params) -> None:
        leaves = jax.tree.leaves(params)
        if self._sent is not None and self._sent() is leaves[0]:
            return
        self._send(("weights", jax.device_get(params), [leaf.sharding.spec for leaf in leaves]))
        self._receive()
        self._sent = weakref.ref(leaves[0])

    def _ask(self, engine, requests, on_finish) -> list[list[Response]]:
        from jaxgrpo.rollout.driver import with_header

        responses = [[Response(r, s) for s in range(len(q.keys))] for r, q in enumerate(requests)]
        flat = [response for group in responses for response in group]
        headed = [
            with_header(request.prompt, key, request.sampling, int(limit))
            for request in requests
            for key, limit in zip(request.keys, request.limits, strict=True)
        ]
        self._send(("generate", headed))
        for _ in flat:
            index, ints = self._receive()
            _fill(flat[index], ints, engine.settings.stop_ids)
            on_finish(flat[index])
        return responses

    def _send(self, message) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._death() from error

    def _receive(self):
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(message, EngineError):
            raise message
        return message

    def _death(self) -> DriverError:
        try:
            code = self._child.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            code = None
        ended = f"ended with exit code {code}" if code is None or code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return DriverError(
            f"JetStream's Driver, process {self._child.pid}, {ended} while it was asked; what it died of stands above. "
            "Run the same command with rollout.driver=engine, which does not need it."
        )


def _environment() -> dict[str, str]:
    """The child's: CPU only, devices of its own number, the parent's modules and compilation cache."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if cache := jax.config.jax_compilation_cache_dir:
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        own |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(least)}
    return os.environ | own


def _fill(response: Response, ints: list[int], stop_ids: tuple[int, ...]) -> None:
    """Put what the Driver answered, token and log-probability bits in turn, into a response."""
    response.tokens = ints[0::2]
    response.logps = np.array(ints[1::2], np.int32).view(np.float32).tolist()
    if not response.tokens or not math.isfinite(sum(response.logps)):
        raise NonFiniteError(
            f"request {response.request}, sample {response.sample}: {len(response.tokens)} tokens, whose log-probabilities are "
            "not all finite, so the model's weights or activations are not. Start a new run_dir from a sound checkpoint."
        )
    response.finish = "stop" if response.tokens[-1] in stop_ids else "length"


# The child --------------------------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Answer messages on a socket until it ends: (config, settings, mesh shape) once, then weights and prompts."""
    connection = Connection(descriptor)
    config, settings, shape = connection.recv()
    prepare_cpu_devices(shape["replica"] * shape["tensor"])
    try:
        child = _Child(config, settings, shape)
    except EngineError as error:
        connection.send(error)
        return
    inbox: queue.Queue = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    connection.send("ready")
    while True:
        kind, *content = inbox.get()
        if kind == "weights":
            child.load(*content)
            connection.send("loaded")
        else:
            for answer in child.answers(*content):
                connection.send(answer)


def _read(connection: Connection, inbox: queue.Queue) -> None:
    """Messages into the inbox. The parent's end is this process's, whatever it is doing."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the Driver's threads would keep the interpreter alive


class _Child:
    def __init__(self, config, settings, shape: dict[str, int]):
        from jaxgrpo.rollout import driver

        self.driver_module, self.driver, self.weights = driver, None, None
        devices = np.array(jax.devices()[: shape["replica"] * shape["tensor"]])
        self.mesh = jax.sharding.Mesh(devices.reshape(shape["replica"], shape["tensor"]), ("replica", "tensor"))
        self.engine = Engine(config, settings, self.mesh)
        self.loop = asyncio.new_event_loop()  # one for good: the Driver's threads post to it after the last token too
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def load(self, params, specs: list) -> None:
        """Take new weights. No request is in a slot: every call was answered in full."""
        leaves, tree = jax.tree.flatten(params)
        shardings = [jax.sharding.NamedSharding(self.mesh, spec) for spec in specs]
        params = jax.tree.unflatten(tree, jax.device_put(leaves, shardings))
        if self.driver is None:
            self.engine.compile(params, stepwise=True)
            self.weights = self.driver_module.Weights(params)
            engine = self.driver_module.RequestEngine(self.engine, logps=True)
            self.driver = self.driver_module.RequestDriver(engine, self.weights)
        self.weights.value = params

    def answers(self, prompts: list[np.ndarray]) -> Iterator[tuple[int, list[int]]]:
        """(index, ints) of every prompt as it is answered."""

        async def answer(index: int, prompt: np.ndarray) -> tuple[int, list[int]]:
            return index, await self.driver_module.ask(self.driver, prompt)

        futures = [asyncio.run_coroutine_threadsafe(answer(i, prompt), self.loop) for i, prompt in enumerate(prompts)]
        for future in as_completed(futures):
            yield future.result()


if __name__ == "__main__":
    try:
        end_with(int(sys.argv[2]))  # also while it compiles, when it does not look at the socket
        main(int(sys.argv[1]))
    except Exception:  # whatever it is, the process must end: the Driver's threads would keep it and the parent waiting
        traceback.print_exc()
        os._exit(1)
