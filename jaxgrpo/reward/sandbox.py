"""Running a Python program that nobody has read: in namespaces of its own, under limits, for a bounded time.

Level "strong" (Linux): the program sees no network, no other process, a file system that holds a read-only Python and an empty
/tmp in memory; where the caller is root it runs under a user id of its own, because limits on processes do not bind root.
Nothing outlives the call: every process of the program ends with the first process of its namespace, and with the caller.
Level "weak": limits only. The program can read and change whatever the user can, and reach the network.

What no level hides from a program is itself: one that looks for the secret by which it reports success can find it.
"""

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from jaxgrpo.errors import UserError

Level = Literal["strong", "weak"]
LEVEL_VARIABLE = "JAXGRPO_SANDBOX"  # the level of graders that are not told: strong unless this says weak

_BOX = str(Path(__file__).with_name("sandbox_box.py"))
_FIRST_USER, _USERS = 60_000, 5_000  # ids that programs of a root caller run under; nobody is logged in with them
_WATCH = 0.05  # seconds between looks at the memory of all processes together
_FOLDER = "jaxgrpo-box-"  # of a program at the weak level
_GRACE = 0.5  # seconds for an orderly end before the box itself is killed


class SandboxError(UserError):
    """No program could be started in the sandbox; this says nothing about the program."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. Sizes in bytes; memory and cpu per process, memory also of all its processes together."""

    cpu_seconds: int = 10
    wall_seconds: float = 20.0
    memory: int = 1 << 30
    processes: int = 32
    files: int = 64  # open at once
    file_size: int = 16 << 20
    disk: int = 64 << 20  # of /tmp, which is memory
    output: int = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a program ended. passed: it ran to its end. reason: what ended it otherwise. output: the last of what it printed."""

    passed: bool
    reason: str | None
    output: str


def level_in_use() -> Level:
    """The level that graders use in this process; SandboxError for one that does not exist."""
    level = os.environ.get(LEVEL_VARIABLE, "strong")
    if level not in ("strong", "weak"):
        raise SandboxError(f"{LEVEL_VARIABLE}={level}: choose strong or weak.")
    return level


@lru_cache(maxsize=2)
def require(level: Level) -> None:
    """SandboxError, with the remedy, when programs cannot be run at this level on this machine."""
    try:
        ended = run("pass", Limits(wall_seconds=30.0), level)
    except SandboxError as error:
        weaker = " or set reward.sandbox=weak if you trust what the model writes" if level == "strong" else ""
        raise SandboxError(
            f"code cannot be run in the {level} sandbox here ({error}): allow unprivileged user namespaces "
            f"(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0),{weaker}."
        ) from None
    if not ended.passed:
        raise SandboxError(f"an empty program fails in the {level} sandbox: {ended.reason}; {ended.output[-300:]}")


def run(program: str, limits: Limits = Limits(), level: Level | None = None) -> Ended:
    """Run a Python program (standard library only) to its end, or until a limit ends it. SandboxError if it cannot start.

    Returns within limits.wall_seconds and a moment; no process or file of the program is left then.
    """
    level = level or level_in_use()
    secret, prefix = secrets.token_hex(16), os.path.realpath(sys.base_prefix)
    place = contextlib.nullcontext(_mount_point(prefix)) if level == "strong" else tempfile.TemporaryDirectory(prefix=_FOLDER)
    with place as folder, _Box(folder) as box:
        order = asdict(limits) | {
            "level": level,
            "folder": folder,
            "program": f"{program}\n__import__('os').write(3, b'{secret}')\n",
            "prefix": prefix,
            "python": os.path.realpath(sys.executable),
            "user": _FIRST_USER + box.process.pid % _USERS if os.getuid() == 0 else None,
            "parent": os.getpid(),
        }
        return box.run(order, limits, secret)


def _mount_point(prefix: str) -> str:
    """A directory over which the box lays its file system, in its own view alone; nothing is written to it."""
    for path in ("/mnt", "/srv", "/tmp"):
        if os.path.isdir(path) and not prefix.startswith(f"{path}/"):
            return path
    raise SandboxError("there is none of the directories /mnt, /srv and /tmp to lay a file system over")


class _Box:
    """One call's process tree, seen from outside. The box process prepares the namespaces; the program is its grandchild."""

    def __init__(self, folder: str) -> None:
        self._report, report = os.pipe()
        self._output, output = os.pipe()
        self._verdict, verdict = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", _BOX, str(report), str(output), str(verdict)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(report, output, verdict),
            cwd=folder,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        for theirs in (report, output, verdict):
            os.close(theirs)

    def __enter__(self) -> "_Box":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        self.process.stdin.close()
        for ours in (self._report, self._output, self._verdict):
            os.close(ours)

    def run(self, order: dict, limits: Limits, secret: str) -> Ended:
        deadline = time.monotonic() + limits.wall_seconds
        self._say(json.dumps(order).encode())
        if order["level"] == "strong":
            self._expect("unshared")
            self._map_users(order["user"])
            self._say(b"mapped")
        self._expect("started")
        deadline = min(deadline + 1.0, time.monotonic() + limits.wall_seconds)  # starting takes its time on a busy machine
        reason, output = self._watch(deadline, limits)
        self._end()
        verdict = os.read(self._verdict, 256)
        passed = reason is None and verdict == secret.encode()
        return Ended(passed, None if passed else reason or "it ended before its last line", output)

    def _watch(self, deadline: float, limits: Limits) -> tuple[str | None, str]:
        """(what ended the program or None, the end of its output)."""
        output, seen, status = b"", 0, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(max(0.0, min(_WATCH, deadline - time.monotonic()))):
                    data = os.read(key.fd, 1 << 16)
                    if key.fd == self._report:
                        status += data
                        if not data or status.endswith(b"\n"):
                            return self._ending(status), output.decode(errors="replace")
                        continue
                    seen += len(data)
                    output = (output + data)[-4096:]
                    if not data:
                        selector.unregister(self._output)
                if seen > limits.output:
                    return f"it printed more than {limits.output >> 10} KiB", output.decode(errors="replace")
                if time.monotonic() >= deadline:
                    return f"wall limit of {limits.wall_seconds:g} s exceeded", output.decode(errors="replace")
                if resident_memory(self.process.pid) > limits.memory:
                    return f"memory limit of {limits.memory >> 20} MiB exceeded", output.decode(errors="replace")

    @staticmethod
    def _ending(status: bytes) -> str | None:
        if not status:
            return "the sandbox was killed"
        code = int(status)
        if code == -signal.SIGXCPU or code == -signal.SIGKILL:
            return "killed, most likely at its limit of processor time"
        return None if code == 0 else f"exit code {code}; negative: by that signal"

    def _say(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # what the box wrote before it went is read next
            self.process.stdin.write(message + b"\n")
            self.process.stdin.flush()

    def _expect(self, word: str) -> None:
        line = b""
        while not line.endswith(b"\n"):
            data = os.read(self._report, 1)
            if not data:
                raise SandboxError(f"the sandbox ended before it {word}: {line.decode(errors='replace').strip()}")
            line += data
        if line.decode().strip() != word:
            raise SandboxError(line.decode(errors="replace").strip())

    def _map_users(self, user: int | None) -> None:
        """The ids that exist in the box: those of the caller and, for root, the one that the program runs under."""
        uid, gid, proc = os.geteuid(), os.getegid(), Path("/proc") / str(self.process.pid)
        extra = f"{user} {user} 1\n" if user is not None else ""
        try:
            if user is None:
                (proc / "setgroups").write_text("deny")
            (proc / "uid_map").write_text(f"{uid} {uid} 1\n{extra}")
            (proc / "gid_map").write_text(f"{gid} {gid} 1\n{extra}")
        except OSError as error:
            raise SandboxError(f"user ids cannot be mapped: {error}") from error

    def _end(self) -> None:
        """End every process of the box and wait for it."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def resident_memory(root: int) -> int:
    """Bytes that the descendants of process `root` hold; pages they share count for each."""
    parents, pages = {}, {}
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])
    total, members = 0, {root}
    grew = True
    while grew:
        found = {pid for pid, parent in parents.items() if parent in members and pid not in members}
        total += sum(pages[pid] for pid in found)
        members |= found
        grew = bool(found)
    return total * os.sysconf("SC_PAGE_SIZE")
