"""A job of several processes, one per host: starting it, what the hosts tell each other, and how all of them end.

JAX's own runtime is the engine: `jax.distributed` connects the processes, collectives move what is large, and its key-value
store and barriers, which have deadlines, carry what is small. Every wait here has one and says what it waits for. With one
process every function returns at once what that process has.
"""

import hashlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from jaxgrpo import interruption
from jaxgrpo.config import Config, ConfigError, HostsConfig, flatten
from jaxgrpo.errors import UserError
from jaxgrpo.parallel.messages import MessageError, packed, unpacked

WAIT_S = 3600  # of one host for another in the middle of a step: rollouts of unequal length, a compilation
START_S = 60  # for what takes no time once all hosts are there
FAILED = 1
LOST = 76  # exit code where another host was lost: launchers start the job again
_OF_ANOTHER_HOST = re.compile("gloo|connection|peer|heartbeat|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED", re.IGNORECASE)
ENDS = ("1", "2", "75", str(LOST))  # exit codes that a host may tell the others; 0 would be taken for done
_FOREIGN = "Another program writes to the job's key-value store: start the job at a port that nobody else reaches."
_ending, _left = threading.Event(), threading.Event()
_FAILURE = "jaxgrpo/failure"


class HostsError(UserError):
    """The hosts of a job do not find each other or do not agree; the message names them and the remedy."""


class DisagreementError(HostsError):
    """Raised on every host at the same place, so that all leave in order."""

    on_all_hosts = True


class LostHostError(HostsError):
    """Another host is stuck or gone."""

    exit_code = LOST


def start(config: HostsConfig) -> None:
    """Connect this process to the others of its job, before JAX touches a device. Nothing to do for one process.

    hosts.count=0 leaves the finding to JAX: TPU pods, SLURM, Open MPI and Kubernetes say it in their environment.
    ConfigError where there is no cluster; HostsError after `hosts.start_s` seconds without the others.
    """
    if config.count == 1:
        return
    given = {}
    if config.count > 1:
        if not config.coordinator:
            raise ConfigError(f"hosts.count={config.count} needs hosts.coordinator=HOST:PORT, the address of process 0.")
        if not 0 <= config.index < config.count:
            raise ConfigError(f"hosts.index={config.index} is none of 0 to {config.count - 1} (hosts.count).")
        given = {"coordinator_address": config.coordinator, "num_processes": config.count, "process_id": config.index}
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = f"process {config.index} of {config.count}" if config.count else "this process"
    watch = _Watchdog(
        config.start_s,
        f"{who} has waited {config.start_s} s for the others at {config.coordinator or 'the address that the cluster names'}: "
        "see that hosts.coordinator is the address of process 0, that its port is open, and that every process was started.",
    )
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=config.start_s + 30,  # when it is over, JAX aborts the process
            heartbeat_timeout_seconds=config.heartbeat_s,
            shutdown_timeout_seconds=START_S,
        )
    except Exception as error:  # JAX raises several kinds, and ValueError where it finds no cluster
        if not config.count:
            raise ConfigError(
                f"hosts.count=0, but no cluster was found here ({_first_line(error)}): on other machines give hosts.count, "
                "hosts.index and hosts.coordinator."
            ) from error
        raise HostsError(f"{watch.message} ({_first_line(error)})") from error
    finally:
        watch.cancel()
    _listener.start()


def count() -> int:
    return jax.process_count()


def index() -> int:
    return jax.process_index()


def is_first() -> bool:
    """Whether this process is the one that writes logs and files."""
    return index() == 0


def barrier(what: str, seconds: float = WAIT_S) -> None:
    """Wait until every host is here. HostsError, naming the hosts that are missing, after `seconds`."""
    if count() == 1:
        return
    started = time.monotonic()
    try:
        _client().wait_at_barrier(f"jaxgrpo/{_next(what)}/{what}", int(seconds * 1000))
    except Exception as error:
        raise _lost(what, time.monotonic() - started, error) from error


def from_first(value, what: str, seconds: float = START_S):
    """The value that host 0 gives, on every host: plain data, see `messages`. Small: it travels in the key-value store."""
    if count() == 1:
        return value
    key, started = f"jaxgrpo/{_next(what)}/{what}", time.monotonic()
    if is_first():
        try:
            _client().key_value_set_bytes(key, packed(value))
        except jax.errors.JaxRuntimeError as error:
            raise HostsError(f"{what} cannot be told the other hosts ({_first_line(error)}). {_FOREIGN}") from error
        return value
    try:
        data = _client().blocking_key_value_get_bytes(key, int(seconds * 1000))
    except Exception as error:
        raise _lost(what, time.monotonic() - started, error) from error
    return _message(data, f"{what} of host 0")


def gather(value, what: str, seconds: float = WAIT_S) -> list:
    """The values of all hosts, plain data, in their order, on every host. They travel over the devices' network, whatever their
    size."""
    if count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    barrier(what, seconds)
    data = np.frombuffer(packed(value), np.uint8)
    sizes = process_allgather(np.int64(len(data)) if jax.config.jax_enable_x64 else np.int32(len(data)))
    room = 1 << int(max(sizes) - 1).bit_length()  # few shapes, since each is compiled
    everyone = process_allgather(np.pad(data, (0, room - len(data))))
    return [
        _message(row[:size].tobytes(), f"{what} of host {host}")
        for host, (row, size) in enumerate(zip(everyone, np.ravel(sizes), strict=True))
    ]


def spread(tree, sharding):
    """Host arrays, equal on every host, as global arrays of one sharding: every host sends its own devices their part."""
    if count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), sharding, lambda at: a[at]), tree)


def check_same(config: Config) -> None:
    """DisagreementError when the hosts run other code, other versions or another config than host 0; it names what differs."""
    if count() == 1:
        return
    own = {key: value for key, value in flatten(config).items() if not key.startswith("hosts.")}
    own |= {"the code of jaxgrpo": _code(), "jax": jax.__version__, "Python": sys.version.split()[0]}
    first = from_first(own, "the config of host 0")
    changed = [
        f"{key}: {own.get(key)} there, {first.get(key)} on host 0" for key in {*own, *first} if own.get(key) != first.get(key)
    ]
    complaints = gather(sorted(changed), "the comparison of configs", START_S)
    for host, complaint in enumerate(complaints):
        if complaint:
            raise DisagreementError(
                f"host {host} differs from host 0 ({'; '.join(complaint)}): start all hosts with the same code and command."
            )


def check_shared(path: Path, marker: str) -> None:
    """DisagreementError when a file that host 0 wrote is not seen by the others: the run directory must be on a shared disk."""
    barrier(f"{path} to be made by host 0", START_S)
    seen = gather((path / marker).exists(), "the run directory to be seen by all hosts", START_S)
    if not all(seen):
        raise DisagreementError(
            f"run_dir={path} of host 0 is not seen by host {seen.index(False)}: the hosts of a job write to one directory; "
            "put it on a disk that all of them share."
        )


@contextmanager
def ending_together():
    """All hosts leave this block together: after the work, or, as soon as one of them fails, with its reason.

    A host that raised alone would leave the others waiting in a collective. What all of them raise at the same place, as
    errors with `on_all_hosts` are, ends the job in order."""
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        yield
    except UserError as error:
        if not error.on_all_hosts:
            print(f"jaxgrpo: {error}", file=sys.stderr)
            _end(str(error), error.exit_code)
        _leave()
        raise
    except OSError as error:  # a full disk, a missing file
        print(f"jaxgrpo: {error}; mend that and run the same command again.", file=sys.stderr)
        _end(str(error), FAILED)
    except jax.errors.JaxRuntimeError as error:
        if not _OF_ANOTHER_HOST.search(str(error)):
            _end_with_traceback(error)
        print(f"jaxgrpo: another host is lost ({_first_line(error)}); its log says more.", file=sys.stderr)
        _end("another host is lost", LOST)
    except BaseException as error:
        _end_with_traceback(error)
    _leave()


def _end_with_traceback(error: BaseException) -> NoReturn:
    traceback.print_exception(error)
    _end(f"{type(error).__name__}: {_first_line(error)}", FAILED)


def _end(reason: str, code: int) -> NoReturn:
    """End this process at once; the other hosts print `reason` and end too."""
    _ending.set()
    try:
        _client().key_value_set(_FAILURE, f"{code} host {index()}: {reason}")
    except Exception:  # another host was first, or the coordinator is gone and the others end by themselves
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(1.0)  # for the others to read it while the coordinator, which may be this process, still lives
    os._exit(code)


def _leave() -> None:
    barrier("the end of the job")
    jax.distributed.shutdown()
    _left.set()
    _listener.join(START_S)  # a thread that is still inside the client when Python ends takes the process down with it


class StopRequest:
    """SIGTERM (a spot machine that is taken away, SLURM, a person), SIGHUP or Ctrl-C as a wish that all hosts see at the end of
    a step. `tell` is called with the number of the first one."""

    def __init__(self, tell: Callable[[int], None]):
        self.tell = tell
        self.number: int | None = None
        self.training = False  # until a step is under way there is nothing to save, and Ctrl-C ends the process at once

    def watched(self):
        """While this lasts, the first request is noted; a second one ends the process at once. SIGHUP is no second one: shell
        and kernel may both send it when a terminal is closed."""
        return interruption.taken_by(self._take)

    def _take(self, number: int) -> None:
        if self.number is None and (self.training or number != signal.SIGINT):
            self.number = number
            self.tell(number)
        elif number != signal.SIGHUP:
            interruption.end(number)

    def anywhere(self) -> int | None:
        """The number of the request to the first host that was asked to stop; the same answer on all."""
        return next((number for number in gather(self.number, "the end of the step") if number is not None), None)


class _Watchdog:
    """Ends the process with a message when it is not cancelled in time: JAX may wait longer than it was told to."""

    def __init__(self, seconds: float, message: str):
        self.message = message
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        print(f"jaxgrpo: {self.message}", file=sys.stderr, flush=True)
        os._exit(FAILED)

    def cancel(self) -> None:
        self._timer.cancel()


def _end_with_the_others() -> None:
    """Thread: when another host says why it failed, say so and end, wherever the main thread is stuck."""
    while True:
        try:
            code, _, reason = _client().blocking_key_value_get(_FAILURE, 24 * 3600 * 1000).partition(" ")
        except Exception:
            if _left.wait(1.0):
                return
            continue
        if _ending.is_set():  # the reason is this host's own
            return
        print(f"jaxgrpo: ended with {reason}", file=sys.stderr, flush=True)
        os._exit(int(code) if code in ENDS else FAILED)


_listener = threading.Thread(target=_end_with_the_others, daemon=True)
_calls: dict[str, int] = {}


def _next(what: str) -> int:
    """How often `what` was waited for: every host counts alike, so that no two waits share a name."""
    _calls[what] = _calls.get(what, 0) + 1
    return _calls[what]


def _message(data: bytes, what: str):
    """What a host sent. HostsError where it is none of our messages: something else writes to the job's store."""
    try:
        return unpacked(data)
    except MessageError as error:
        raise HostsError(f"{what} is no message of a host ({error}). {_FOREIGN}") from None


def _client():
    from jax._src import distributed  # JAX shows its key-value store and barriers nowhere else; Orbax uses the same

    return distributed.global_state.client


def _lost(what: str, seconds: float, error: Exception) -> HostsError:
    return LostHostError(
        f"host {index()} has waited {seconds:.0f} s for {what} ({_first_line(error)}): another host is stuck or gone; its log "
        "says more. The same command goes on from the last checkpoint."
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__


def _code() -> str:
    """A digest of the package's source files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]
