"""What the operating system tells a process, and does for it, where it can. Imports nothing but the standard library."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def usable_cores() -> list[int]:
    """The cores that this process may use: those it is bound to, or all where the system binds none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def bind_to(cores: list[int]) -> None:
    """Keep this process to these cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def end_with(parent: int) -> None:
    """Let the kernel end this process when `parent` ends. Only Linux can; elsewhere a pipe or socket that ends must do."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
