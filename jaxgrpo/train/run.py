"""A run directory: config.yaml, metrics.jsonl, eval/, checkpoints/, plots/; one process at a time may train in it."""

import contextlib
import fcntl
import os
from pathlib import Path

import yaml

from jaxgrpo import storage
from jaxgrpo.aside import move_aside
from jaxgrpo.config import Config, ConfigError, HostsConfig, replace, to_yaml
from jaxgrpo.train.metrics import MetricsLog
from jaxgrpo.train.stored import Stored, read_stored
from jaxgrpo.whole_file import write_whole


class RunDirectory:
    """Paths of a run, its lock, and what survives of a run that was killed."""

    LOCK = "lock"
    OF_STEPS = ("metrics.jsonl", "eval", "evaluations", "plots", "profile")  # what the steps of a run leave, checkpoints apart
    OF_START = ("warm_start",)
    OF_RUN = ("config.yaml", "history.jsonl", "model")

    def __init__(self, path: str):
        self.path = storage.location(path)
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self._lock = None
        self._made = False

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def warm_start(self) -> Path:
        return self.path / "warm_start"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def outlook(self) -> str:
        """What the same command would do if this process ended now."""
        if storage.is_remote(self.path):
            return "the same command goes on from the last complete checkpoint, where there is one"
        steps = [int(child.name) for child in self.checkpoints.glob("[0-9]*") if child.name.isdigit()]
        if steps:
            return f"the same command goes on after step {max(steps)}"
        kept = " from the warm start, which is kept" if self.warm_start.exists() else ""
        return f"no step is saved yet, there is nothing to save: the same command begins again{kept}"

    def eval_file(self, suite: str, step: int) -> Path:
        return self.path / "eval" / f"{suite}-{step}.jsonl"

    def lock(self) -> None:
        """Create the directory and hold it until the process ends, however it ends. ConfigError if another process does.

        An object store has no locks: there nobody is kept out, and the file only shows that the place can be written to."""
        if storage.is_remote(self.path):
            write_whole(self.path / self.LOCK, "")
            return
        file, self._made = self.path / self.LOCK, not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(file, "w")  # noqa: SIM115 (held open on purpose)
        except OSError as error:
            raise ConfigError(f"run_dir={self.path} cannot be used ({error.strerror}): choose another.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training in run_dir={self.path}: wait for it, or choose another.") from None
        if not file.exists() or not os.path.samestat(os.fstat(self._lock.fileno()), file.stat()):
            self.lock()  # another process gave up and took this file away in between

    def leave(self) -> None:
        """Take the directory away again where `lock` made it and nothing but the lock came to lie in it."""
        if self._made and not storage.is_remote(self.path) and [child.name for child in self.path.glob("*")] == [self.LOCK]:
            with contextlib.suppress(OSError):
                (self.path / self.LOCK).unlink()
                self.path.rmdir()

    def stored(self) -> Stored | None:
        """What was begun here, None where nothing was."""
        return read_stored(self.path)

    def write_config(self, config: Config) -> Path | None:
        """The config as another machine could go on with it: on which hosts it ran is left out. A config.yaml that somebody has
        written or edited by hand is moved aside first; returns the folder where it lies then."""
        path = self.path / "config.yaml"
        with storage.reached(path):
            text = path.read_bytes() if path.exists() else b""
        moved = move_aside(self.path, [path.name]) if text.strip() and not _written_here(text) else None
        write_whole(path, to_yaml(replace(config, {"hosts": HostsConfig()})))
        return moved

    def recorded_family(self) -> str:
        """The family that the lines of metrics carry; "" where there is none."""
        return next((line["model_family"] for line in reversed(self.metrics.read()) if line.get("model_family")), "")

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return max((int(path.name) for path in self.checkpoints.glob("[0-9]*") if path.name.isdigit()), default=0)

    def set_aside(self, start_too: bool = False, all_of_it: bool = False) -> Path | None:
        """Before a run begins at step 0: move what earlier steps left here out of the way, since no checkpoint tells of them.
        start_too: and the start that they had; all_of_it: all of another run. Returns the folder where it lies now, None where
        there was nothing."""
        return move_aside(self.path, (*self.OF_STEPS, *self.OF_START * start_too, *self.OF_RUN * all_of_it))

    def set_aside_checkpoints(self, steps: list[int]) -> Path | None:
        """Move steps that nothing can be made of out of the way of those to come."""
        return move_aside(self.path, [f"checkpoints/{step}" for step in steps])

    def cut_after(self, step: int) -> None:
        """Drop what a killed run wrote after `step`, from whose checkpoint it goes on: metric lines and evaluation files."""
        self.metrics.cut_after(step)
        for file in (self.path / "eval").glob("*-*.jsonl"):
            written = file.stem.rpartition("-")[2]
            if written.isdigit() and int(written) > step:
                file.unlink()


def _written_here(text: bytes) -> bool:
    """Whether a config.yaml has the form that `write_config` gives it; a person's own has comments, or another form."""
    try:
        values = yaml.safe_load(text)
        return yaml.safe_dump(values, sort_keys=False).encode() == text
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
