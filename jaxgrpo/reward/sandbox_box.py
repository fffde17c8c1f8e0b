"""The inside of `sandbox`: makes the namespaces, starts the program in them, reports how it ended. Standard library only.

Three processes: the box (this one, outside of its own pid namespace), the first process of that namespace, and the program.
When the first process ends the kernel ends everything in the namespace; it ends with the box, and the box with the caller.
Arguments: descriptors for reports, for the program's output and for its verdict. Orders come as lines on stdin.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys

_C = ctypes.CDLL(None, use_errno=True)
_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mounts, names, ipc, users, pids, network
_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER, _NO_NEW_PRIVS = 1, 4, 36, 38  # of prctl
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18  # of mount
_KEPT = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # statvfs flags of a mount that a remount must repeat
_DETACH = 2  # of umount2
_SEEN = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")
_RUN = "exec(compile(open({path!r}).read(), 'solution.py', 'exec'), {{'__name__': 'solution'}})"


def main(report: int, output: int, verdict: int) -> None:
    order = json.loads(sys.stdin.buffer.readline())
    _die_with(order["parent"])
    first = None
    strong = order["level"] == "strong"

    def stop(*_) -> None:
        if first is None:
            os._exit(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    try:
        if strong:
            if sys.platform != "linux":
                raise OSError("only Linux has user namespaces")
            _checked(_C.unshare(_NEW), "user namespaces are not to be had")
            _say(report, "unshared")
            sys.stdin.buffer.readline()
            _new_root(order)
        else:
            _write_program(os.path.join(order["folder"], "program.py"), order["program"])
        first = os.fork()
    except OSError as error:
        _say(report, f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        os._exit(1)
    if first == 0:
        status = 1
        try:
            status = _first_process(order, report, output, verdict)
        except BaseException as error:
            _say(report, f"the program could not be started: {error}")
        finally:
            os._exit(status)
    os.close(output)
    os.close(verdict)
    os.close(report)
    os.waitpid(first, 0)  # comes back when everything in the namespace has ended
    if not strong:
        _end_descendants()


def _first_process(order: dict, report: int, output: int, verdict: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    user = order["user"]
    if order["level"] == "strong" and user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _prctl(_PDEATHSIG, signal.SIGKILL)
    program = os.fork()
    if program == 0:
        _start_program(order, output, verdict)
    _prctl(_SET_DUMPABLE, 0)  # the program cannot trace this process
    _say(report, "started")
    while True:
        pid, status = os.wait()
        if pid == program:
            _say(report, str(os.waitstatus_to_exitcode(status)))
            return 0


def _start_program(order: dict, output: int, verdict: int) -> None:
    try:
        os.setsid()
        _prctl(_NO_NEW_PRIVS, 1)
        inside = order["level"] == "strong"
        nothing = os.open("/dev/null", os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        kept = os.dup2(verdict, 3)
        os.set_inheritable(kept, True)
        os.closerange(4, 4096)
        path = "/program.py" if inside else os.path.join(order["folder"], "program.py")
        os.chdir("/tmp" if inside else order["folder"])
        limits = {
            "CPU": order["cpu_seconds"],
            "AS": order["memory"],
            "NOFILE": order["files"],
            "FSIZE": order["file_size"],
            "CORE": 0,
        }
        if inside:  # it would count every process of the user otherwise
            limits["NPROC"] = order["processes"]
        for name, value in limits.items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (value, value))
        environment = {"PATH": "/usr/bin:/bin", "HOME": os.getcwd(), "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
        os.execve(order["python"], [order["python"], "-I", "-S", "-B", "-c", _RUN.format(path=path)], environment)
    except BaseException as error:
        os.write(2, f"not started: {error}\n".encode())
    os._exit(127)


def _new_root(order: dict) -> None:
    """A file system of its own: a little memory, and read-only views of what Python needs."""
    root = order["folder"]
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={order['disk']},mode=755")
    for source in dict.fromkeys((*_SEEN, order["prefix"])):
        if not os.path.lexists(source) or source.startswith(tuple(f"{seen}/" for seen in _SEEN[:2])):
            continue
        target = root + source
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
            continue
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _mount(source, target, None, _BIND | _REC)
        flags = os.statvfs(target).f_flag
        kept = sum(new for old, new in _KEPT.items() if flags & old)
        device = source.startswith("/dev/")
        _mount(None, target, None, _REMOUNT | _BIND | kept | _NOSUID | (0 if device else _RDONLY | _NODEV))
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    os.mkdir(f"{root}/old")
    _write_program(f"{root}/program.py", order["program"])
    _checked(_C.pivot_root(root.encode(), f"{root}/old".encode()), "the root cannot be changed")
    os.chdir("/")
    _checked(_C.umount2(b"/old", _DETACH), "the old root cannot be left")
    os.rmdir("/old")


def _write_program(path: str, program: str) -> None:
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(program)
    os.chmod(path, 0o444)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    parts = [None if part is None else os.fsencode(part) for part in (source, target, kind, options)]
    _checked(_C.mount(parts[0], parts[1], parts[2], ctypes.c_ulong(flags), parts[3]), f"{target} cannot be mounted")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what} ({os.strerror(number)})")


def _say(report: int, line: str) -> None:
    os.write(report, line.encode() + b"\n")


def _prctl(what: int, value: int) -> None:
    """Only Linux has it."""
    if hasattr(_C, "prctl"):
        _C.prctl(what, value, 0, 0, 0)


def _die_with(parent: int) -> None:
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _end_descendants() -> None:
    """Weak level: whatever the program left running has become a child of this process, or of a child."""
    while True:
        try:
            children = [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()]
        except OSError:  # not Linux
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
