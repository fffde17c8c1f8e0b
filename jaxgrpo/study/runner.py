"""Training the runs of a study: each in a process of its own, some side by side, none twice.

The runs are ordinary ones: `jaxgrpo train OUT/configs/NAME-seedS.yaml` repeats or resumes each by hand. A study that was
stopped anywhere goes on with the same command; a run that failed is told at the end, after the others.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo import interruption
from jaxgrpo.config import INPUT_KEYS, Config, ConfigError, differences, flatten, load_config, replace, to_yaml
from jaxgrpo.data.files import DATA_SUFFIXES
from jaxgrpo.errors import UserError
from jaxgrpo.machine import bind_to, end_with, usable_cores
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import resolve_model
from jaxgrpo.study.design import PlannedRun
from jaxgrpo.train.metrics import read_metrics
from jaxgrpo.train.stored import read_stored
from jaxgrpo.whole_file import write_whole

POLL_S = 0.2
_WORDS = 45  # characters of a log's last line that are shown of a run before its first step
REPORT_S = 15.0  # between two lines about runs in progress


class StudyError(UserError):
    """Some of the runs failed."""


class StudyStopped(UserError):
    """The study was asked to end, and its runs have saved what they had."""

    exit_code = 75  # "try again later", as of a run that was stopped


@dataclass
class _Process:
    run: PlannedRun
    popen: subprocess.Popen
    cores: list[int]
    started: float


def config_file(run: PlannedRun) -> Path:
    return run.directory.parents[1] / "configs" / f"{run.directory.name}.yaml"


def log_file(run: PlannedRun) -> Path:
    return run.directory.parents[1] / "logs" / f"{run.directory.name}.log"


def write_configs(runs: list[PlannedRun]) -> None:
    """Write every run's configuration. ConfigError where the folder holds a run of another one under the same name."""
    for run in runs:
        path = config_file(run)
        if read_metrics(run.directory / "metrics.jsonl"):
            changed = differences(run.config, _trained(run, path))
            if changed:
                raise ConfigError(
                    f"{run.directory} holds a run of another config ({'; '.join(changed)}): choose another out, or delete it."
                )
    for run in runs:
        write_whole(config_file(run), to_yaml(run.config))


def missing_files(runs: list[PlannedRun]) -> str:
    """Which files of problems the runs that are not done name and that do not exist, what lies there instead, and how to name
    others; empty where all are there."""
    missing: dict[Path, str] = {}
    for run in runs:
        for key in ("train", "test"):
            file = Path(getattr(run.config.data, key))
            if file.suffix in DATA_SUFFIXES and ":" not in str(file) and not file.exists() and not is_done(run):
                missing.setdefault(file, f"runs.{run.name}.data.{key}=FILE")
    if not missing:
        return ""
    folders = {file.parent for file in missing}
    there = sorted(str(path) for folder in folders for path in folder.glob("*") if path.suffix in DATA_SUFFIXES)
    shown = _some([str(file) for file in missing])
    return f"no such files: {shown}; there is {_some(there) or 'none there'}. {next(iter(missing.values()))} names another"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _trained(run: PlannedRun, path: Path) -> Config:
    """What the run was trained with: as the study wrote it, or where that file is gone or empty as the run's checkpoint says,
    which names inputs in its own way."""
    if path.exists() and path.read_text().strip():
        return load_config(str(path))
    stored = read_stored(run.directory)
    return replace(stored.config, {key: flatten(run.config)[key] for key in INPUT_KEYS}) if stored else run.config


def progress(run: PlannedRun) -> tuple[int | None, int, float | None]:
    """(steps done or None where nothing is logged, steps of the run or 0 where it finds them itself, last held-out Pass@1)."""
    records = read_metrics(run.directory / "metrics.jsonl")
    tested = [record["test_loss"] for record in records if record.get("test_loss") is not None]
    steps = run.config.train.steps
    if not steps and (run.directory / "config.yaml").exists():
        steps = load_config(str(run.directory / "config.yaml")).train.steps
    return (records[-1]["step"] if records else None), steps, (1 - tested[-1] if tested else None)


def is_done(run: PlannedRun) -> bool:
    """Whether the run has trained to its end and saved its last step."""
    done, steps, _ = progress(run)
    return 0 < steps <= (done or 0) and (run.directory / "checkpoints" / str(done)).is_dir()


def train_all(runs: list[PlannedRun], jobs: int, say: Callable[[str], None]) -> dict[str, float]:
    """Train what is not done yet, `jobs` runs at a time; returns the seconds that each of those took.

    Where several run side by side each gets its own share of the cores. StudyError when some failed, after all the others.
    """
    waiting = deque(sorted((run for run in runs if not is_done(run)), key=_size, reverse=True))  # the long ones first
    finished = len(runs) - len(waiting)
    if finished:
        say(f"done before: {finished} of {len(runs)} runs")
    free = _shares(jobs)
    active: list[_Process] = []
    failed: list[str] = []
    seconds: dict[str, float] = {}
    told = time.monotonic()
    asked: list[int] = []  # requests to end

    def stop(number: int) -> None:
        if asked and number != signal.SIGHUP:
            interruption.end(number)
        if not asked:
            say(f"{interruption.name_of(number)}: the runs save the step they are at and end; another one ends them at once")
        asked.append(number)

    def kill() -> None:
        for process in active:
            process.popen.kill()
            process.popen.wait()

    told_to_stop = False
    with interruption.taken_by(stop), interruption.undone(kill):
        while active or (waiting and not asked):
            if asked and not told_to_stop:
                told_to_stop = True
                for process in active:
                    process.popen.terminate()
            while waiting and free and not asked:
                active.append(_start(waiting.popleft(), free.pop()))
                say(f"started   {active[-1].run.directory.name}")
            time.sleep(POLL_S)
            for process in [p for p in active if p.popen.poll() is not None]:
                active.remove(process)
                free.append(process.cores)
                name, taken = process.run.directory.name, time.monotonic() - process.started
                if process.popen.returncode == 0 and is_done(process.run):
                    finished += 1
                    seconds[name] = taken
                    say(f"finished  {name} in {taken:.0f} s, {_pass1(process.run)} ({finished} of {len(runs)})")
                elif told_to_stop:
                    say(f"stopped   {_state(process.run)}")
                else:
                    failed.append(f"{name} (exit code {process.popen.returncode}: {_last_line(log_file(process.run))})")
                    say(f"FAILED    {failed[-1]}")
            if time.monotonic() - told > REPORT_S and active:
                told = time.monotonic()
                say("running   " + ", ".join(_state(process.run) for process in active) + f"; {len(waiting)} waiting")
    if asked:
        raise StudyStopped(
            f"asked to stop ({interruption.name_of(asked[0])}): {finished} of {len(runs)} runs are finished; the same command "
            "goes on with the others, each from its last checkpoint or, where it has none, anew."
        )
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. Their logs lie in "
            f"{log_file(runs[0]).parent}; the same command goes on with them."
        )
    return seconds


def _size(run: PlannedRun) -> int:
    return count_parameters(resolve_model(run.config.model, need_weights=False).config)["total"]


def _shares(jobs: int) -> list[list[int]]:
    """The cores of this process dealt out to `jobs` runs; all of them to every run where there are fewer cores than runs."""
    cores = usable_cores()
    per = len(cores) // jobs
    return [cores[i * per : (i + 1) * per] if per else cores for i in range(jobs)]


def _start(run: PlannedRun, cores: list[int]) -> _Process:
    log = log_file(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()

    def in_child() -> None:
        bind_to(cores)
        end_with(parent)  # a study that is killed leaves no run behind

    with open(log, "a") as output:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxgrpo.cli", "train", str(config_file(run))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=in_child,
            start_new_session=True,  # Ctrl-C is the study's to handle
        )
    return _Process(run, popen, cores, time.monotonic())


def _state(run: PlannedRun) -> str:
    done, steps, _ = progress(run)
    if done is not None:
        return f"{run.directory.name} step {done}/{steps}"
    said = _last_line(log_file(run)) if log_file(run).exists() else ""
    return f"{run.directory.name} starting ({said.partition(':')[0][:_WORDS]})" if said else f"{run.directory.name} starting"


def _pass1(run: PlannedRun) -> str:
    score = progress(run)[2]
    return "no evaluation" if score is None else f"Pass@1 {score:.3f}"


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
