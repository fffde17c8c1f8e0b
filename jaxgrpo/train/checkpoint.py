"""Checkpoints with Orbax: parameters, optimiser, step, data cursor, seed, counters and config, saved asynchronously.

A step directory counts only once Orbax has committed it, so a kill in the middle of a save leaves the one before. Restoring
places every array by the shardings of the mesh at hand, which need not be the mesh that saved it, and verifies the checksums of
all that it reads (see checksums.py).
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jaxgrpo import storage
from jaxgrpo.config import CheckpointConfig
from jaxgrpo.errors import UserError
from jaxgrpo.train.checksums import RestoreArrays, SaveArrays, array_handler, raised
from jaxgrpo.train.seals import intact, read_json_entry, sealed
from jaxgrpo.train.state import TrainState

for library in ("absl", "asyncio"):  # Orbax's: what fails is raised here, they would print it many times as well
    logging.getLogger(library).setLevel(logging.CRITICAL)

ARRAYS = ("params", "opt_state")  # the items of a checkpoint that hold arrays; `meta` and `metrics` are JSON
_HOUR = 3600
KEPT_BY = ("test_loss", "reward_mean")  # and suite_NAME: metrics that a checkpoint may be kept by


class CheckpointError(UserError):
    """A checkpoint that could not be written or read; the message gives path, cause and remedy."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which reads the metrics of all steps at its start and would die of a damaged one."""

    def __init__(self, *arguments, **options):
        self.complaints: list[str] = []
        super().__init__(*arguments, **options)

    def metrics(self, step: int) -> dict | None:
        try:
            return intact(super().metrics(step) or {})
        except Exception as error:  # of any kind: not JSON, not text, not an object, not as it was sealed
            self.complaints.append(
                f"the metrics of checkpoint {step} in {self.directory} are damaged ({_brief(error)}): it can be read, but "
                "does not count among the best."
            )
            return {}


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, directory: Path, config: CheckpointConfig):
        self.directory, self._metric = storage.absolute(directory), config.metric
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=self._score, reverse=False, n=config.best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
            best_fn=self._score,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=_timeout_s()),
        )
        handlers = {item: array_handler() for item in ARRAYS} | {"meta": ocp.JsonCheckpointHandler()}
        with _readable(self.directory, "move the damaged step out of it, then run the same command again"):
            self._manager = _Manager(self.directory, options=options, item_handlers=handlers)

    @property
    def complaints(self) -> list[str]:
        """What was found damaged in the folder without a step being read."""
        return sorted(set(self._manager.complaints))

    def steps(self) -> list[int]:
        """The committed steps, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def reload(self) -> None:
        """See again which steps there are, after some were moved away."""
        self._manager.reload()

    def _score(self, metrics: dict) -> float:
        """Higher is better; a checkpoint without the metric, of a run that went by another one before, is the worst."""
        value = metrics.get(self._metric)
        return -math.inf if value is None else -value if self._metric.endswith("loss") else value

    def best(self) -> tuple[int, float] | None:
        """(step, metric) of the best checkpoint there is by `checkpoint.metric`; None where none comes with it."""
        step = self._manager.best_step()
        value = None if step is None else (self._manager.metrics(step) or {}).get(self._metric)
        return None if value is None else (step, value)

    def preempted(self, step: int) -> bool:
        """Whether JAX's preemption service asks all hosts to save after this step. Every host must ask, after every step."""
        return self._manager.reached_preemption(step)

    def save(self, step: int, state: TrainState, meta: dict, measured: dict) -> None:
        """Copy the state and return; writing goes on in the background. `meta` is plain JSON; `measured` are the step's
        metrics, by one of which it may be kept."""
        args = ocp.args.Composite(
            params=SaveArrays(state.params),
            opt_state=SaveArrays(state.opt_state),
            meta=ocp.args.JsonSave(sealed(meta)),
        )
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = math.inf if storage.is_remote(self.directory) else shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"checkpoint of step {step} in {self.directory} needs {needed / 2**20:,.1f} MiB, the disk has "
                f"{free / 2**20:,.1f} MiB left: make room, then run the same command again; it goes on from the last "
                f"complete checkpoint."
            )
        with _explained(f"checkpoint of step {step} in {self.directory}"):
            if step in self._manager.all_steps():  # one that could not be read
                self._manager.delete(step)
            metrics = {key: value for key, value in measured.items() if key in KEPT_BY or key.startswith("suite_")}
            self._manager.save(step, args=args, metrics=sealed(metrics))

    def wait(self) -> None:
        """Return once every save is committed; CheckpointError if one failed."""
        with _explained(f"checkpoint in {self.directory}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict]:
        """The state (laid out as `target`, a tree of ShapeDtypeStructs with shardings) and the meta of a step."""
        args = ocp.args.Composite(
            params=_restored_as(target.params), opt_state=_restored_as(target.opt_state), meta=ocp.args.JsonRestore()
        )
        with _readable(self.directory / str(step), "the one before it will do"):
            restored = self._manager.restore(step, args=args)
            meta = _of_step(intact(restored.meta), step)
            return TrainState(raised(restored.params), raised(restored.opt_state)), meta

    def close(self) -> None:
        """Finish what is pending and stop the background threads; CheckpointError if a save failed."""
        with _explained(f"checkpoint in {self.directory}"):
            self._manager.close()


def _timeout_s() -> int:
    """Longest wait for a save. Orbax takes it by the clock on the wall, which jumps where a laptop slept or the clock is set;
    only with several hosts is there anything to wait for that may never come."""
    return 2 * _HOUR if jax.process_count() > 1 else 100 * 365 * 24 * _HOUR


def save_params(directory: Path, params: dict) -> None:
    """Write parameters once, atomically (Orbax renames the finished folder into place)."""
    with _explained(f"parameters in {directory}"), ocp.Checkpointer(array_handler()) as checkpointer:
        checkpointer.save(storage.absolute(directory), args=SaveArrays(params))


def load_params(directory: Path, target: dict, remedy: str) -> dict:
    """Read what `save_params` wrote, laid out as `target` (ShapeDtypeStructs with shardings)."""
    with _readable(directory, remedy), ocp.Checkpointer(array_handler()) as checkpointer:
        return raised(checkpointer.restore(storage.absolute(directory), args=_restored_as(target)))


def load_params_anywhere(directory: Path, remedy: str = "give another checkpoint") -> dict[str, jax.Array]:
    """What `save_params` wrote, on the default device, whatever mesh it was saved from."""
    with _readable(directory, remedy), ocp.Checkpointer(array_handler()) as checkpointer:
        place = storage.absolute(directory)
        return raised(checkpointer.restore(place, args=_restored_as(_on_default_device(checkpointer.metadata(place)))))


def has_checkpoints(run: Path) -> bool:
    """Whether the run directory holds at least one step."""
    return any((run / "checkpoints").glob("[0-9]*/params"))


def step_directories(path: Path) -> list[Path]:
    """The complete steps of a run or checkpoints directory, the newest first; a step directory alone. CheckpointError if there
    is none."""
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
        complete = [step for step in steps if is_complete(step)]
        if complete:
            return sorted(complete, key=lambda step: int(step.name), reverse=True)
    if not is_complete(path):
        raise CheckpointError(f"{path} holds no checkpoint: give a run directory, its checkpoints/ folder, or one step of it.")
    return [path]


def is_complete(step: Path) -> bool:
    """Whether a step has its parameters; on an object store, where nothing can be renamed, Orbax marks what is committed."""
    return (step / "params").is_dir() and (not storage.is_remote(step) or (step / "commit_success.txt").exists())


def newest_readable(path: Path, read: Callable[[Path, str], object], say: Callable[[str], None]) -> tuple[Path, object]:
    """(step directory, what `read` makes of it) of the newest step in `path` that can be read; a step that was named itself, or
    nothing. `read` takes the directory and the remedy that its error should name. CheckpointError where none can be read."""
    steps = step_directories(path)
    for step, older in zip(steps, steps[1:], strict=False):
        try:
            return step, read(step, f"checkpoint {older.name} is used instead")
        except CheckpointError as error:
            say(f"WARNING   {error}")
    remedy = "none of the checkpoints there can; bring one back" if len(steps) > 1 else "give another step"
    return steps[-1], read(steps[-1], remedy)


def read_checkpoint(path: Path, say: Callable[[str], None] = print) -> tuple[dict[str, jax.Array], dict]:
    """(params, meta) of a step directory, or of the newest step of a run or checkpoints directory that can be read, on the
    default device. `say` is told of those that cannot, and of one without checksums."""

    def read(step: Path, remedy: str) -> tuple[dict, dict]:
        return load_params_anywhere(step / "params", remedy), read_meta(step, remedy)

    step, (params, meta) = newest_readable(path, read, say)
    if note := without_checksums(step / "params"):
        say(note)
    return params, meta


def read_meta(step: Path, remedy: str) -> dict:
    """The meta of a step directory, nothing where only parameters lie there. CheckpointError where it is damaged or another
    step's."""
    if not (step / "meta").is_dir():
        return {}
    with _readable(step, remedy):
        meta = read_json_entry(step / "meta" / "metadata")
        return _of_step(meta, int(step.name)) if step.name.isdigit() else meta


def without_checksums(params: Path) -> str | None:
    """A line to show where stored parameters come from before there were checksums."""
    try:
        old = json.loads((params / "_METADATA").read_text()).get("use_zarr3") is False
    except (ValueError, AttributeError):
        old = False
    return f"note      {params} was saved without checksums: damage to its numbers would not be seen." if old else None


def _of_step(meta: dict, step: int) -> dict:
    if meta["step"] != step:
        raise ValueError(f"it says that it is of step {meta['step']}, its folder that it is of step {step}")
    return meta


def _restored_as(target) -> RestoreArrays:
    return RestoreArrays(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


def _on_default_device(metadata) -> dict[str, jax.ShapeDtypeStruct]:
    tree = getattr(metadata, "item_metadata", metadata)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for name, leaf in dict(tree).items()}


@contextmanager
def _explained(what: str):
    """Turns whatever a save dies of into one message with the remedy: Orbax and TensorStore raise many kinds."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "make room or mend permissions, then run" if _SYSTEM_ERRORS.search(str(error)) else "run"
        raise CheckpointError(
            f"{what} could not be saved ({_brief(error)}): {remedy} the same command again; it goes on from the last complete "
            "checkpoint."
        ) from error


@contextmanager
def _readable(path: Path, remedy: str):
    """Turns whatever a damaged checkpoint raises into one message with the remedy."""
    try:
        yield
    except Exception as error:  # Orbax itself raises the bare class, with what happened as its cause
        cause = error.__cause__ or error
        raise CheckpointError(f"{path} cannot be read, it may be damaged ({_brief(cause)}): {remedy}.") from error


_SYSTEM_ERRORS = re.compile(
    "No space left on device|Disk quota exceeded|File too large|Permission denied|Read-only file system|Input/output error"
)


def _brief(error: BaseException) -> str:
    """The operating system's words where the error holds them, else its first line."""
    text = str(error)
    known = _SYSTEM_ERRORS.search(text)
    return known[0] if known else text.partition("\n")[0][:200] or type(error).__name__
