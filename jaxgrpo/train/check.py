"""`jaxgrpo check RUN`: whether everything that a run left behind can be read and is as it was written.

RUN is a run directory, its checkpoints/ folder, one step of it, or a directory that `convert` wrote, local or on gs://. Every
chunk of every array is read, and its checksum verified, in the host's memory and one array after the other. Nothing is changed.
"""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import orbax.checkpoint as ocp
import tensorstore as ts
from rich.console import Console

from eval.run import EvaluationError, EvaluationFolder
from jaxgrpo import storage
from jaxgrpo.config import load_config
from jaxgrpo.errors import UserError
from jaxgrpo.model.config import read_json
from jaxgrpo.train.checkpoint import ARRAYS, CheckpointError, is_complete, read_meta, without_checksums
from jaxgrpo.train.conversion import CHECKSUMS
from jaxgrpo.train.metrics import damage, read_metrics
from jaxgrpo.train.seals import read_json_entry
from jaxgrpo.whole_file import file_checksum
from scaling.integrity import check_outcomes
from scaling.runs import DataError

AT_ONCE = 8  # chunks in flight
SPOKEN_S = 30.0  # between two lines of progress where there is no terminal


class CheckError(UserError):
    """There is nothing to check."""

    exit_code = 2


class DamageError(UserError):
    """Something is damaged: all of it was said."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    what: str
    sound: bool
    said: str  # what it holds, or what is wrong with it
    remedy: str = ""


Tell = Callable[..., None]  # of what is being read and, optionally, the bytes of it so far


def check(path: str, *, as_json: bool = False) -> None:
    """Check a run and print what was found. DamageError if anything is damaged, CheckError where there is nothing."""
    console = Console(highlight=False, soft_wrap=True)
    with _Progress(Console(stderr=True, highlight=False)) as progress, storage.reached(path):
        found = []
        for finding in findings(storage.location(path), progress.tell):
            found.append(finding)
            if not as_json:
                remedy = f": {finding.remedy}" if finding.remedy else ""
                console.print(
                    f"{'sound  ' if finding.sound else 'DAMAGED'}   {finding.what}: {finding.said}{remedy}", markup=False
                )
    damaged = sum(not finding.sound for finding in found)
    if as_json:
        print(json.dumps({"path": path, "sound": not damaged, "findings": [asdict(finding) for finding in found]}, indent=2))
    if damaged:
        raise DamageError(f"{damaged} of {len(found)} parts of {path} are damaged.")
    if not as_json:
        console.print(f"all {len(found)} parts of {path} are sound", markup=False)


def findings(path: Path, tell: Tell = lambda text, done=0: None) -> Iterator[Finding]:
    """What is there and how it is, one part after the other. tell: called with what is being read."""
    if is_complete(path):  # one step, or what `convert` wrote
        converted = (path / "config.json").exists()
        yield from (_converted(path, tell) if converted else _step(path, path, tell))
        return
    steps = _steps(path) or _steps(path / "checkpoints")
    if not steps and not (path / "metrics.jsonl").exists():
        raise CheckError(f"{path} holds no run and no checkpoint: give a run directory, its checkpoints/, or one step of it.")
    if not (path / "checkpoints").is_dir() and not (path / "metrics.jsonl").exists():  # a checkpoints/ folder
        for step in steps:
            yield from _step(step, path, tell)
        return
    yield _config(path)
    for step in steps:
        yield from _step(step, path, tell)
    if (path / "warm_start").is_dir():
        yield _arrays(path / "warm_start", path, tell, "delete it to warm up again")
    yield _metrics(path, max((int(step.name) for step in steps), default=0))
    yield from _evaluations(path)
    yield from _companions(path / "model", path)
    for folder in sorted((path / "evaluations").glob("*/settings.json")):
        yield from _evaluation_folder(folder.parent, path)


def _steps(folder: Path) -> list[Path]:
    steps = [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
    return sorted(steps, key=lambda step: int(step.name))


def _name(part: Path, top: Path) -> str:
    return str(part) if part == top else str(part)[len(str(top)) :].strip("/")


def _config(path: Path) -> Finding:
    file = path / "config.yaml"
    remedy = "checkpoints hold it too: `jaxgrpo train` with the config that the run was started with writes it again"
    if not file.exists():
        return Finding("config.yaml", False, "is missing", remedy)
    try:
        load_config(str(file))
    except (UserError, ValueError, OSError) as error:
        return Finding("config.yaml", False, _first_line(error), remedy)
    return Finding("config.yaml", True, "can be read")


def _step(step: Path, top: Path, tell: Tell) -> Iterator[Finding]:
    """All parts of one checkpoint."""
    remedy = "delete this step if there is another, or bring it back from a copy"
    if not is_complete(step):
        if storage.is_remote(step):
            yield Finding(_name(step, top), True, "an unfinished save, which nothing reads")
        else:
            yield Finding(_name(step, top), False, "has no params", remedy)
        return
    for item in ARRAYS:
        if (step / item).is_dir():
            yield _arrays(step / item, top, tell, remedy)
        elif (step / "meta").is_dir():
            yield Finding(_name(step / item, top), False, "is missing", remedy)
    for item, read in (
        ("meta", lambda: read_meta(step, remedy)),
        ("metrics", lambda: read_json_entry(step / "metrics" / "metrics")),
    ):
        if (step / item).is_dir():
            yield _tried(_name(step / item, top), read, remedy)


def _tried(what: str, read: Callable, remedy: str) -> Finding:
    try:
        read()
    except CheckpointError as error:
        return Finding(what, False, _first_line(error.__cause__ or error), remedy)
    except (OSError, ValueError, AttributeError) as error:
        return Finding(what, False, _first_line(error), remedy)
    return Finding(what, True, "can be read")


def _arrays(folder: Path, top: Path, tell: Tell, remedy: str) -> Finding:
    """Every chunk of every array of a folder."""
    what = _name(folder, top)
    try:
        stored = json.loads((folder / "_METADATA").read_text())
        names = [
            ".".join(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in stored["tree_metadata"].values()
            if leaf["value_metadata"]["value_type"] == "jax.Array"
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return Finding(what, False, f"_METADATA: {_first_line(error)}", remedy)
    context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
    damaged, total = [], 0
    for number, name in enumerate(names, 1):
        info = ocp.type_handlers.ParamInfo(
            name=name,
            parent_dir=storage.absolute(folder),
            is_ocdbt_checkpoint=True,
            use_zarr3=stored.get("use_zarr3") is not False,
            ts_context=context,
        )
        spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
        say = partial(tell, f"{what}: array {number} of {len(names)}, {name}")
        try:
            total += asyncio.run(_read_through(spec, context, say))
        except (ValueError, OSError) as error:
            damaged.append(f"{name} ({_first_line(error)})")
    if damaged:
        return Finding(what, False, f"{len(damaged)} of {len(names)} arrays cannot be read: {', '.join(damaged)}", remedy)
    kind = "read without checksums, from before there were any" if without_checksums(folder) else "with their checksums"
    return Finding(what, True, f"{len(names)} arrays, {total / 2**20:,.1f} MiB, {kind}")


async def _read_through(spec: dict, context, say: Callable[[int], None]) -> int:
    """Read an array chunk by chunk; returns its bytes. ValueError where a chunk is missing or not as it was written."""
    array = await ts.open(spec, open=True, context=context)
    chunk = array.chunk_layout.read_chunk.shape or ()  # None of a scalar
    starts = itertools.product(*(range(0, size, step) for size, step in zip(array.shape, chunk, strict=True)))
    done, itemsize = 0, array.dtype.numpy_dtype.itemsize
    while batch := list(itertools.islice(starts, AT_ONCE)):
        parts = [
            array[tuple(slice(at, min(at + step, size)) for at, step, size in zip(start, chunk, array.shape, strict=True))]
            for start in batch
        ]
        ends = await asyncio.gather(*(part.read() for part in parts), return_exceptions=True)
        if failures := [end for end in ends if isinstance(end, BaseException)]:
            raise failures[0]  # after all have ended: a read that outlives the event loop complains of it
        done += sum(math.prod(part.shape) for part in parts) * itemsize
        say(done)
    return done


def _converted(path: Path, tell: Tell) -> Iterator[Finding]:
    yield _arrays(path / "params", path, tell, "convert the model again")
    yield from _companions(path, path)


def _metrics(path: Path, newest: int) -> Finding:
    file = path / "metrics.jsonl"
    if not file.exists():
        return Finding("metrics.jsonl", False, "is missing", "bring it back from a copy")
    done = max((record["step"] for record in read_metrics(file)), default=0)
    if found := damage(file, max(done, newest)):
        return Finding("metrics.jsonl", False, "; ".join(found), "bring it back from a copy, or leave these steps out of a fit")
    return Finding("metrics.jsonl", True, f"a line for every step up to {done}")


def _evaluations(path: Path) -> Iterator[Finding]:
    """The evaluations that the lines of metrics.jsonl count."""
    for record in read_metrics(path / "metrics.jsonl"):
        due = {"heldout": "test_loss"} if record.get("test_loss") is not None else {}
        due |= {
            key.removeprefix("suite_"): key for key, value in record.items() if key.startswith("suite_") and value is not None
        }
        for suite, key in due.items():
            file = path / "eval" / f"{suite}-{record['step']}.jsonl"
            yield _outcomes(file, _name(file, path), record, key)


def _outcomes(file: Path, what: str, record: dict, key: str) -> Finding:
    remedy = "bring it back from a copy; a fit that needs it refuses it"
    if not file.exists():
        return Finding(what, False, "is missing", remedy)
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            item = json.loads(line)
            found.append((str(item["question"]), float(item["score"])))
        except (KeyError, TypeError, ValueError):
            return Finding(what, False, f"line {number} is no question with a score", remedy)
    questions, expected = len({question for question, _ in found}), record.get("test_n") if key == "test_loss" else None
    if not found or expected not in (None, questions):
        return Finding(what, False, f"holds {questions} questions, metrics.jsonl counted {expected or 'some'}", remedy)
    try:
        check_outcomes(file, found, record, key)
    except DataError as error:
        return Finding(what, False, _first_line(error).partition(": evaluate that step")[0].replace(f"{file} ", ""), remedy)
    return Finding(what, True, f"{questions} questions, {len(found)} answers")


def _companions(folder: Path, top: Path) -> Iterator[Finding]:
    """What lies beside the weights: those that checksums.json lists, or before there was one config.json and every other JSON
    file."""
    remedy = "copy it from the original model directory; the same `jaxgrpo train` writes it again"
    known = {}
    if (folder / CHECKSUMS).exists():
        finding = _tried(_name(folder / CHECKSUMS, top), lambda: known.update(read_json(folder / CHECKSUMS)), remedy)
        if not finding.sound:
            yield finding
    for file in sorted({*(folder / name for name in known), *folder.glob("*.json"), folder / "config.json"}):
        if file.name != CHECKSUMS:
            yield _tried(_name(file, top), partial(_read_companion, file, known.get(file.name)), remedy)


def _read_companion(file: Path, checksum: str | None) -> None:
    if not file.exists():
        raise OSError("is missing")
    if file.suffix == ".json":
        read_json(file)
    if checksum is not None and checksum != file_checksum(file):
        raise OSError("was changed after it was written")


def _evaluation_folder(folder: Path, top: Path) -> Iterator[Finding]:
    """The complete suites of a `jaxgrpo eval`."""
    remedy = "delete it, and the same `jaxgrpo eval` asks again"
    evaluation = EvaluationFolder(folder)
    try:
        suites = [key.removeprefix("suite ") for key in evaluation.settings if key.startswith("suite ")]
    except EvaluationError as error:
        yield Finding(_name(folder / "settings.json", top), False, _first_line(error), remedy)
        return
    for suite in suites:
        what = _name(folder / f"{suite}.jsonl", top)
        try:
            lost, records = evaluation.lost(suite), evaluation.outcomes(suite)
        except EvaluationError as error:
            yield Finding(what, False, _first_line(error), remedy)
            continue
        if lost:
            yield Finding(what, False, lost, "the same `jaxgrpo eval` asks the others again")
        elif records is not None:
            yield Finding(what, True, f"{len(records)} answers")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(" [source locations")[0][:300] or type(error).__name__


class _Progress:
    """What is being read: a line kept up to date on a terminal, one every SPOKEN_S seconds elsewhere; on standard error."""

    def __init__(self, console: Console):
        self.console, self.spoken = console, time.monotonic()
        self.status = console.status("") if console.is_terminal else None

    def __enter__(self) -> "_Progress":
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.status:
            self.status.stop()

    def tell(self, text: str, done: int = 0) -> None:
        text += f", {done / 2**30:,.2f} GiB of it" if done > 2**27 else ""
        if self.status:
            self.status.update(text)
        elif time.monotonic() - self.spoken > SPOKEN_S:
            self.spoken = time.monotonic()
            self.console.print(text, markup=False)
