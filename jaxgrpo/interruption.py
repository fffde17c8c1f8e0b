"""Requests to end: Ctrl-C (SIGINT), SIGTERM, and SIGHUP when the terminal is closed. What was ignored from the start stays so.

A thread hears them through the descriptor that Python's C handler writes to. So a process ends at once also while its main
thread is inside a compilation, and nothing depends on KeyboardInterrupt, which callbacks (such as JAX's, of the garbage
collector) swallow. By default a request ends the process with one line; SIGINT with exit code 130, the others by themselves.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_takers: list[Callable[[int], None]] = []  # the innermost takes the request
_leftovers: list[Callable[[], None]] = []  # undone before the process ends
_outlooks: list[Callable[[], str]] = []  # the innermost says what the same command would do next
_listening = False
_terminals: list[int] = []


def name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def heard(outlook: str = "") -> Iterator[None]:
    """While this lasts, requests are heard; in a thread other than the main one, or inside another `heard`, nothing changes."""
    global _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        with _while_in(_outlooks, lambda: outlook) if outlook else contextlib.nullcontext():
            yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    thread = threading.Thread(target=_listen, args=(read,), name="interruption", daemon=True)
    thread.start()
    _listening, fd_before = True, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _terminals[:] = [number for number in (0, 1, 2) if _is_terminal(number)]
    before = {number: signal.getsignal(number) for number in REQUESTS}
    taken = [number for number in REQUESTS if before[number] in (signal.SIG_DFL, signal.default_int_handler)]
    _listen_to(taken)
    try:
        with _while_in(_outlooks, lambda: outlook):
            yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(fd_before)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)
        _listening = False


@contextmanager
def taken_by(taker: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, `taker` gets the number of every request, in a thread of its own, instead of the process ending."""
    with heard(), _while_in(_takers, taker):
        if threading.current_thread() is threading.main_thread():  # JAX may have put a handler of its own in between
            _listen_to([number for number in REQUESTS if signal.getsignal(number) is _through_the_descriptor])
        yield


@contextmanager
def undone(leftover: Callable[[], None]) -> Iterator[None]:
    """`leftover` is called when this ends, also where the process is ended inside."""
    with _while_in(_leftovers, leftover):  # a request that comes while the leftover is being undone undoes it too
        try:
            yield
        finally:
            leftover()


def undone_at_exit(leftover: Callable[[], None]) -> None:
    """`leftover` is called when the process ends, also where it is ended by a request."""
    atexit.register(leftover)
    _leftovers.append(leftover)


def looking_ahead(outlook: Callable[[], str]):
    """While this lasts, `outlook` says what is left and what the same command would do, in the line of a request."""
    return _while_in(_outlooks, outlook)


def end(number: int) -> None:
    """End the process at once, as the request `number` asks: undo what must not stay, say so in one line."""
    for leftover in reversed(_leftovers):
        with contextlib.suppress(Exception):
            leftover()
    try:
        outlook = _outlooks[-1]() if _outlooks else ""
    except Exception:  # the line must come
        outlook = ""
    with contextlib.suppress(OSError):
        if _is_terminal(1):
            os.write(1, b"\r\x1b[2K\x1b[?25h")  # a live line may stand there, with the cursor hidden
        os.write(2, f"jaxgrpo: ended by {name_of(number)}{'; ' + outlook if outlook else ''}.\n".encode())
    if number == signal.SIGINT:
        os._exit(INTERRUPTED)
    ctypes.CDLL(None).signal(number, None)  # signal.signal is for the main thread, which may be busy
    os.kill(os.getpid(), number)


@contextmanager
def _while_in(entries: list, entry) -> Iterator[None]:
    entries.append(entry)
    try:
        yield
    finally:
        entries.remove(entry)


def _listen(read: int) -> None:
    while True:
        for number in os.read(read, 64):
            if number == 0:
                return
            if number in REQUESTS:
                _take(number)


def _take(number: int) -> None:
    if number == signal.SIGHUP:  # nothing can be written to a terminal that is gone
        nothing = os.open(os.devnull, os.O_RDWR)
        for terminal in _terminals:
            os.dup2(nothing, terminal)
    (_takers[-1] if _takers else end)(number)


def _listen_to(numbers: list[int]) -> None:
    for number in numbers:
        signal.signal(number, _through_the_descriptor)


def _through_the_descriptor(number, frame) -> None:
    """Python's own part of a handler: the thread has been told."""


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _forget() -> None:
    """In a forked child: what is sent to the whole group is the parent's to hear, once."""
    if _listening:
        signal.set_wakeup_fd(-1)
        for number in REQUESTS:
            if signal.getsignal(number) is _through_the_descriptor:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
