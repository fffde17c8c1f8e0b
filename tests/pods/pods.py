"""Jobs of several processes on this machine, started by launch/local_pod.sh as a user would."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.run.commands import CONFIG, ROOT, SHORT, environment

TENSOR = "mesh.tensor=2"
KILLED_RUN = ROOT / "tests" / "run" / "killed_run.py"
DEVICES = 2  # of each process


def pod_environment(cache: Path) -> dict:
    """The test's environment with one compilation cache, and without settings of a real cluster."""
    env = environment(cache)
    return {key: value for key, value in env.items() if not key.startswith(("SLURM_", "TPU_", "MEGASCALE_"))}


class Pod:
    """A short job of `processes` processes under launch/local_pod.sh, in `folder`/run."""

    def __init__(self, processes: int, folder: Path, env: dict, overrides: tuple[str, ...] = ()):
        self.processes, self.folder, self.run_dir, self.logs = processes, folder, folder / "run", folder / "logs"
        self.overrides = [*SHORT, TENSOR, f"run_dir={self.run_dir}", *overrides]
        self.env = env | {"DEVICES": str(DEVICES), "LOGS": str(self.logs)}
        self.command(f'exec {shlex.quote(sys.executable)} -u -m jaxgrpo.cli "$@"')
        self.launcher: subprocess.Popen | None = None

    def command(self, script: str) -> None:
        """What local_pod.sh starts for every process, with the arguments of jaxgrpo."""
        path = self.folder / "jaxgrpo"
        path.write_text(f"#!/usr/bin/env bash\ncd {shlex.quote(str(ROOT))}\n{script}\n")
        path.chmod(0o755)
        self.env["JAXGRPO"] = str(path)

    def fail_once(self, victim: int, phase: str, step: int) -> None:
        """Let process `victim` die in that phase of that step, the first time that it is started; see killed_run.py."""
        python, marker = shlex.quote(sys.executable), shlex.quote(str(self.folder / "killed"))
        self.command(
            f"""case " $* " in
  *" hosts.index={victim} "*)
    if [ ! -e {marker} ]; then
      touch {marker}
      PYTHONPATH={shlex.quote(str(ROOT))} exec {python} -u {KILLED_RUN} {phase} {step} "$@"
    fi ;;
esac
exec {python} -u -m jaxgrpo.cli "$@" """
        )

    def start(self, **variables: str) -> None:
        self.launcher = subprocess.Popen(
            ["bash", str(ROOT / "launch" / "local_pod.sh"), str(self.processes), CONFIG, *self.overrides],
            env=self.env | variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def wait(self, timeout: float = 400) -> int:
        """The launcher's exit code; its output is then in `said`."""
        self.said = self.launcher.communicate(timeout=timeout)[0]
        return self.launcher.returncode

    def run(self, **variables: str) -> int:
        self.start(**variables)
        return self.wait()

    def output(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.logs.glob("*.log")))

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Until process 0 has said `text`."""
        log, deadline = self.logs / "host-0.log", time.monotonic() + timeout
        while not (log.exists() and text in log.read_text()):
            assert time.monotonic() < deadline and self.launcher.poll() is None, self.output()
            time.sleep(0.1)

    def terminate(self) -> None:
        os.kill(self.launcher.pid, signal.SIGTERM)
