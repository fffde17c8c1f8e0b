"""A run directory: config.yaml, metrics.jsonl, eval/, checkpoints/, plots/; one process at a time may train in it."""

import fcntl
from pathlib import Path

from jaxgrpo import storage
from jaxgrpo.aside import move_aside
from jaxgrpo.config import Config, ConfigError, HostsConfig, differences, load_config, replace, to_yaml
from jaxgrpo.train.metrics import MetricsLog
from jaxgrpo.whole_file import write_whole


class RunDirectory:
    """Paths of a run, its lock, and what survives of a run that was killed."""

    LOCK = "lock"
    OF_STEPS = ("metrics.jsonl", "eval", "evaluations", "plots", "profile")  # what the steps of a run leave, checkpoints apart

    def __init__(self, path: str):
        self.path = storage.location(path)
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self._lock = None

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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / self.LOCK, "w")  # noqa: SIM115 (held open on purpose)
        except OSError as error:
            raise ConfigError(f"run_dir={self.path} cannot be used ({error.strerror}): choose another.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training in run_dir={self.path}: wait for it, or choose another.") from None

    def stored_config(self) -> Config | None:
        """The resolved config of the run here, if it got as far as leaving something that another config would spoil."""
        path = self.path / "config.yaml"
        with storage.reached(path):
            return load_config(str(path)) if path.exists() and self._begun() else None

    def _begun(self) -> bool:
        return bool(self.metrics.read() or self.warm_start.exists() or any(self.checkpoints.glob("[0-9]*")))

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return max((int(path.name) for path in self.checkpoints.glob("[0-9]*") if path.name.isdigit()), default=0)

    def check_same(self, config: Config, stored: Config) -> None:
        """ConfigError when this is the directory of another experiment."""
        changed = differences(config, stored)
        if changed:
            raise ConfigError(
                f"run_dir={self.path} holds a run of another config ({'; '.join(changed)}): choose another run_dir, or give "
                f"the old values to go on with that run."
            )

    def write_config(self, config: Config) -> None:
        """The config as another machine could go on with it: on which hosts it ran is left out."""
        write_whole(self.path / "config.yaml", to_yaml(replace(config, {"hosts": HostsConfig()})))

    def set_aside(self) -> Path | None:
        """Before a run begins at step 0: move what earlier steps left here out of the way, since no checkpoint tells of them.
        Returns the folder where it lies now, None where there was nothing."""
        return move_aside(self.path, self.OF_STEPS)

    def cut_after(self, step: int) -> None:
        """Drop what a killed run wrote after `step`, from whose checkpoint it goes on: metric lines and evaluation files."""
        self.metrics.cut_after(step)
        for file in (self.path / "eval").glob("*-*.jsonl"):
            written = file.stem.rpartition("-")[2]
            if written.isdigit() and int(written) > step:
                file.unlink()
