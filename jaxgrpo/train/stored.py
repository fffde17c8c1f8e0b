"""What a run directory says of itself: the config and the inputs' fingerprints in its newest checkpoint. Imports no jax.

The checkpoint is the authority; where there is none yet, the start in history.jsonl; of runs made before these held a config,
config.yaml, which anybody may have edited.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jaxgrpo import storage
from jaxgrpo.config import Config, ConfigError, differing_keys, read_mapping, stored_config
from jaxgrpo.train.history import NAME, read_history
from jaxgrpo.train.seals import read_json_entry


@dataclass(frozen=True)
class Stored:
    """The run of a directory. `inputs` is None where it was made before inputs were fingerprinted; `step` is that of the
    checkpoint, None where none says anything; `notes` are to be told."""

    config: Config
    inputs: dict[str, dict] | None
    where: str
    step: int | None = None
    origin: dict | None = None
    notes: tuple[str, ...] = ()


def as_message(stored: Stored | None) -> dict | None:
    """As plain data, for other hosts."""
    return None if stored is None else asdict(stored)


def from_message(message: dict | None) -> Stored | None:
    """What `as_message` was given."""
    if message is None:
        return None
    config, _ = stored_config(message["config"], message["where"])
    return Stored(**message | {"config": config})


def read_meta(step_folder: Path) -> dict | None:
    """The meta of a step of a run; None where it cannot be read or is damaged."""
    try:
        meta = read_json_entry(step_folder / "meta" / "metadata")
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta.get("config"), dict) else None


def read_stored(run: Path) -> Stored | None:
    """What the run here is, None where nothing was begun that another config or other inputs would spoil."""
    with storage.reached(run):
        if not run.is_dir():
            return None
        of_checkpoint = _of_checkpoints(run / "checkpoints")
        if of_checkpoint:
            return _with_config_file(of_checkpoint, run)
        if not ((run / "metrics.jsonl").exists() or (run / "warm_start").exists() or _steps(run / "checkpoints")):
            return None
        starts = [event for event in read_history(run) if event["event"] == "start" and isinstance(event.get("config"), dict)]
        if starts:
            config, lost = stored_config(starts[-1]["config"], str(run / NAME))
            found = Stored(config, starts[-1].get("inputs"), NAME, None, starts[-1].get("origin"), _lost(lost, NAME))
            return _with_config_file(found, run)
        values = _config_file(run)
        if isinstance(values, str):
            return None
        config, lost = stored_config(values, str(run / "config.yaml"))
        return Stored(config, None, "config.yaml", notes=_lost(lost, "config.yaml"))


def _steps(checkpoints: Path) -> list[Path]:
    """The step folders, the newest first."""
    steps = [child for child in checkpoints.iterdir() if child.name.isdigit()] if checkpoints.is_dir() else []
    return sorted(steps, key=lambda child: int(child.name), reverse=True)


def _of_checkpoints(checkpoints: Path) -> Stored | None:
    for folder in _steps(checkpoints):
        meta = read_meta(folder)
        if meta is None or meta.get("step") != int(folder.name):
            continue  # of no use to a restore either, which tells why
        return stored_in(meta)
    return None


def stored_in(meta: dict) -> Stored:
    """What the meta of a checkpoint says."""
    where = f"checkpoint {meta['step']}"
    config, lost = stored_config(meta["config"], where)
    notes = _lost(lost, where)
    if meta.get("inputs") is None:
        notes += (f"{where} was made before inputs were fingerprinted: that they are still the same is assumed",)
    return Stored(config, meta.get("inputs"), where, meta["step"], meta.get("origin"), notes)


def config_of_step(step: Path) -> Config | None:
    """The config that a step of a run was made with, by its checkpoint, else by the run's config.yaml; None without either."""
    meta = read_meta(step)
    if meta:
        return stored_config(meta["config"], str(step))[0]
    values = _config_file(step.parents[1])
    return None if isinstance(values, str) else stored_config(values, str(step.parents[1] / "config.yaml"))[0]


def _lost(keys: list[str], where: str) -> tuple[str, ...]:
    return (f"{where} was made with keys that this version does not know, and are left out: {', '.join(keys)}",) if keys else ()


def _config_file(run: Path) -> dict | str:
    """The values of config.yaml, or what is wrong with it."""
    path = run / "config.yaml"
    if not path.exists():
        return "is missing"
    try:
        return read_mapping(str(path), "config file") or "is empty"
    except ConfigError:
        return "cannot be read"


def _with_config_file(stored: Stored, run: Path) -> Stored:
    """`stored` with a note where config.yaml says something else."""
    values = _config_file(run)
    if not isinstance(values, str):
        try:
            other, _ = stored_config(values, "config.yaml")
            keys = differing_keys(other, stored.config)
            values = f"says otherwise ({', '.join(keys)})" if keys else ""
        except ConfigError:
            values = "cannot be read"
    if not values:
        return stored
    note = f"config.yaml of the run {values}: {stored.where} says how it was configured"
    return replace(stored, notes=(*stored.notes, note))
