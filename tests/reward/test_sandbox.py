"""Hostile programs at both levels. Each bounds itself too (200 processes, 4 GB), in case the sandbox under test does not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxgrpo.reward import Grade, GraderPool, sandbox
from jaxgrpo.reward.sandbox import Limits, SandboxError, run

LIMITS = Limits(cpu_seconds=1, wall_seconds=2.0, memory=256 << 20)

HOSTILE = {
    "infinite loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "loop that catches everything": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "loop that ignores signals": "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n"
    "  except (OSError, ValueError): pass\nwhile True: pass",
    "waiting for input": "input()\nimport time; time.sleep(60)",
    "fork bomb": "import os, signal\nfor _ in range(200):\n  if os.fork() == 0:\n    signal.alarm(20)\n    while True: pass",
    "chain of forks": "import os, signal\nfor _ in range(200):\n  try:\n    if os.fork(): break\n"
    "  except OSError: break\nsignal.alarm(20)\nwhile True: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)\n"
    "raise SystemExit(3)",
    "orphans": "import os, time\nfor _ in range(10):\n  if os.fork() == 0: time.sleep(60)\nos._exit(0)",
    "subprocesses": "import subprocess\nfor _ in range(200): subprocess.Popen(['/bin/sleep', '60'])\nraise SystemExit(1)",
    "threads": "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory bomb": "x = bytearray(4 << 30)",
    "slow memory bomb": "x = []\nwhile len(x) < 400: x.append(bytearray(10 << 20))",
    "memory of many": "import os, time\nfor _ in range(20):\n  if os.fork() == 0:\n    x = b'1' * (200 << 20)\n"
    "    time.sleep(60)\ntime.sleep(60)",
    "mapped memory": "import mmap\nm = mmap.mmap(-1, 4 << 30)\nm.write(b'1' * (1 << 30))",
    "big integers": "x = 9 ** (9 ** 9)",
    "big string": "x = 'x' * (4 << 30)",
    "regular expression": "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nf()",
    "output": "for _ in range(4096): print('x' * (1 << 20))",
    "errors": "import sys\nfor _ in range(4096): sys.stderr.write('x' * (1 << 20))",
    "large file": "with open('/tmp/x', 'wb') as f:\n  for _ in range(4096): f.write(b'x' * (1 << 20))",
    "many files": "for n in range(200): open(f'/tmp/{n}', 'wb').write(b'x' * (10 << 20))",
    "open files": "f = [open('/dev/null') for _ in range(100_000)]",
    "writing where the user may": f"open({str(Path(__file__).resolve())!r}, 'a').write('#')",
    "writing to the system": "open('/usr/bin/jaxgrpo-was-here', 'w').write('x')",
    "writing to the root": "import os\nos.remove('/program.py')",
    "reading secrets": "open('/etc/shadow').read()",
    "reading the home": f"import os\nassert os.listdir({str(Path.home())!r})\nopen({str(Path(__file__).resolve())!r}).read()",
    "reading the environment": "import os\nassert set(os.environ) - {'PATH', 'HOME', 'PYTHONHASHSEED', 'LANG', 'LC_CTYPE'}",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=60)",
    "listening to others": "import socket\ns = socket.socket()\ns.connect(('127.0.0.1', 22))",
    "name look-up": "import socket\nsocket.gethostbyname('localhost.localdomain.')",
    "killing the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(60)",
    "killing everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "stopping the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass",
    "tracing the parent": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "becoming root": "import os\nos.setuid(0)",
    "mounting": "import ctypes\nassert ctypes.CDLL(None).mount(b'tmpfs', b'/usr', b'tmpfs', 0, None) == 0",
    "leaving the root": "import os\nos.chroot('/tmp')",
    "new namespaces": "import ctypes, os\nc = ctypes.CDLL(None)\nassert c.unshare(0x10020000) == 0\n"
    "assert c.mount(None, b'/usr', None, ctypes.c_ulong(4096 | 32), None) == 0\nopen('/usr/jaxgrpo-was-here', 'w')",
    "raising its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (999, 999))",
    "leaving early": "import os\nos._exit(0)",
    "exit in good order": "raise SystemExit(0)",
    "success by exit": "import sys\nsys.exit()",
    "syntax error": "def",
    "NUL bytes": "x = '\x00'",
    "not text": "x = '\udcff'\nraise SystemExit(1)",
    "signal to itself": "import os\nos.abort()",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "stopping itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "closing everything": "import os\nos.closerange(0, 65536)",
}


def leftovers() -> list[str]:
    """Processes that run as a box user and folders that boxes left."""
    found = [str(folder) for folder in Path("/tmp").glob("jaxgrpo-box-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            user = process.stat().st_uid
        except OSError:
            continue
        if b"solution.py" in arguments or b"sandbox_box" in arguments or 60_000 <= user < 65_000:
            found.append(f"{process.name}: {arguments!r}")
    return found


@pytest.fixture(scope="module")
def strong():
    sandbox.require("strong")  # where this fails, so do the tests: code would not be graded either


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_fails_in_time_and_leaves_nothing(strong, name):
    start = time.monotonic()
    ended = run(HOSTILE[name], LIMITS, "strong")
    assert time.monotonic() - start < LIMITS.wall_seconds + 1
    assert not ended.passed and ended.reason
    assert len(ended.output) <= 4096
    assert leftovers() == []
    assert not Path("/usr/bin/jaxgrpo-was-here").exists() and not Path("/usr/jaxgrpo-was-here").exists()


def test_hostile_programs_and_answers_are_at_least_sixty():
    from tests.reward.test_hostile_answers import HOSTILE as ANSWERS

    assert len(HOSTILE) + len(ANSWERS) >= 60 and len(HOSTILE) >= 40


def test_a_good_program_sees_an_empty_machine(strong):
    program = (
        "import math, collections, json, heapq, itertools, functools, re, string, hashlib, typing, datetime\n"
        "import os, socket\n"
        "assert os.listdir('/tmp') == [] and os.getcwd() == '/tmp'\n"
        "assert [name for _, name in socket.if_nameindex()] == ['lo']\n"
        "assert os.getuid() != 0 and os.getpid() == 2\n"
        "open('/tmp/x', 'w').write('kept for now')\n"
        "print('π', __name__)"
    )
    ended = run(program, LIMITS, "strong")
    assert (ended.passed, ended.reason, ended.output) == (True, None, "π solution\n"), ended


def test_memory_of_all_processes_together_is_limited(strong):
    ended = run(HOSTILE["memory of many"], Limits(cpu_seconds=5, wall_seconds=10.0, memory=512 << 20), "strong")
    assert ended.reason == "memory limit of 512 MiB exceeded"


def test_the_sandbox_ends_with_whoever_started_it(strong):
    program = "import time; time.sleep(60)"
    caller = f"from jaxgrpo.reward.sandbox import run, Limits\nrun({program!r}, Limits(wall_seconds=60.0), 'strong')"
    process = subprocess.Popen([sys.executable, "-c", caller])
    deadline = time.monotonic() + 10
    while not any("solution.py" in entry for entry in leftovers()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while leftovers():
        assert time.monotonic() < deadline + 2
        time.sleep(0.02)


WEAK = ["infinite loop", "sleep", "daemon", "orphans", "memory bomb", "output", "leaving early", "loop that ignores signals"]


@pytest.mark.parametrize("name", WEAK)
def test_the_weak_level_ends_programs_too(name):
    start = time.monotonic()
    ended = run(HOSTILE[name], LIMITS, "weak")
    assert time.monotonic() - start < LIMITS.wall_seconds + 1
    assert not ended.passed and leftovers() == []


def test_the_weak_level_runs_good_programs():
    assert run("print(sum(range(10)))", LIMITS, "weak").output == "45\n"


def test_where_the_strong_level_cannot_be_had_code_is_refused_with_the_remedy(monkeypatch, tmp_path):
    broken = tmp_path / "box.py"
    source = Path(sandbox._BOX).read_text()
    broken.write_text(source.replace("_checked(_C.unshare(_NEW)", "_checked(_C.unshare(-1)"))  # as where the kernel forbids it
    monkeypatch.setattr(sandbox, "_BOX", str(broken))
    sandbox.require.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"user namespaces are not to be had.*reward\.sandbox=weak"):
            sandbox.require("strong")
        sandbox.require("weak")
    finally:
        sandbox.require.cache_clear()


def test_hostile_code_costs_no_other_item_its_score_and_memory_returns(strong):
    from tests.reward.humaneval_solutions import TESTS, response

    good = ("codegen__humaneval", response("def add(a, b):\n    return a + b"), TESTS, None)
    maths = ("math__x", r"\boxed{\frac{1}{2}}", "0.5", None)
    names = ("fork bomb", "memory of many", "output", "killing everyone", "daemon", "large file")
    hostile = [
        ("codegen__humaneval", response(f"{HOSTILE[name]}\ndef add(a, b):\n    return a + b"), TESTS, None) for name in names
    ]
    with GraderPool(workers=2) as pool:
        pool.grade([good, maths])
        before = sum(sandbox.resident_memory(pid) for pid in (os.getpid(),))
        grades = pool.grade([maths, good, *hostile, good, maths])
        assert grades[:2] == grades[-2:] == [Grade(1.0), Grade(1.0)]
        # a program that leaves daemons behind or kills everyone may still end well: what it did was in vain
        assert [g.error for g in grades] == [None] * len(grades)
        assert sum(g.score for g in grades[2:8]) <= 2
        time.sleep(0.5)
        assert sandbox.resident_memory(os.getpid()) < before + (64 << 20)
    assert leftovers() == []
