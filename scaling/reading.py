"""Reading curves from run directories, metrics.jsonl files and CSV tables, and refusing what cannot be right.

Treatment of bad data, the same for every kind of file:
- no loss in a row: a step without an evaluation, skipped; step 0 (X = 0): dropped, as log X does not exist there;
- loss or X not a number, infinite, or outside its range: an error. Loss 1 is a valid point (log L = 0); loss 0 is an
  error, for its logarithm does not exist;
- one step twice in a metrics.jsonl (a run that was resumed): the later line counts, and a note says so; in a CSV: an
  error, because a CSV row has no time order and two runs may have been mixed;
- X that falls from one step to the next: an error in the log of a single run; a note in a CSV, where averaging runs of
  unequal length does this;
- an unfinished last line of a metrics.jsonl (a run that was killed): skipped with a note; anywhere else: an error;
- a line that was changed after training wrote it (its checksum tells): an error; steps without a line: a note;
- a run that never got to an evaluation after step 0 (no metrics.jsonl, or nothing of use in it): left out with a note, an error
  where no other is left, so that `runs/*` may hold a start that failed.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scaling import agreement, history
from scaling.integrity import check_line, lost_steps
from scaling.runs import Curve, DataError, Runs, size_label

# Column names of metrics.jsonl and of the published CSV, first name that is present counts.
NAMES = {
    "samples": ("samples",),
    "tokens": ("tokens",),
    "compute": ("compute_flops",),
    "compute_total": ("compute_flops_total",),
    "test_n": ("test_n",),
    "response_length": ("response_length_mean",),
}
SMALLEST_N = 1000  # fewer are no parameters of a language model, but billions of them
CUMULATIVE = ("samples", "tokens", "compute", "compute_total")


class NothingLogged(DataError):
    """A run without a point; an error only where no run has one."""


@dataclass(frozen=True)
class Row:
    place: str
    values: dict


def load(paths: str | Path | Sequence[str | Path], *, size: str = "n_nominal") -> Runs:
    """Read every path (a run directory, a metrics.jsonl or a CSV; a directory of runs is searched) into `Runs`.

    `size` names the key that N is taken from (`n_nominal`, `n_params`, `n_params_non_embedding`, `n_params_total`);
    `n_nominal` falls back to `n_params`. Raises DataError with file, line, value and remedy; see the module docstring
    for what is refused.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise DataError("no path given: name run directories, metrics.jsonl files or CSV files")
    curves: list[Curve] = []
    notes: list[str] = []
    empty: list[str] = []
    for entry in listed:
        try:
            found = _expand(Path(entry))
        except NothingLogged as reason:
            empty.append(str(reason))
            continue
        for path in found:
            rows, is_log = (_read_csv(path), False) if path.suffix == ".csv" else (_read_jsonl(path, notes), True)
            notes += history.notes(path.parent) if is_log else []
            try:
                curves += _curves(path, rows, is_log, size, notes)
            except NothingLogged as reason:
                empty.append(str(reason))
    if not curves:
        raise DataError("; ".join(empty))
    notes += [f"left out: {reason}" for reason in empty]
    curves = _named_apart(curves)
    return Runs(tuple(curves), (*notes, *agreement.assumed_families(curves)))


def _named_apart(curves: list[Curve]) -> list[Curve]:
    """Runs of one name in several places called by their place. DataError for a file that was given twice."""
    place = {id(curve): Path(curve.sources[0]).resolve() for curve in curves}
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.family, curve.n, curve.reuse_factor, curve.run), []).append(curve)
    found = []
    for curve in curves:
        alike = [one for one in groups[curve.family, curve.n, curve.reuse_factor, curve.run] if one is not curve]
        again = next((one for one in alike if place[id(one)] == place[id(curve)]), None)
        if again is not None:
            raise DataError(
                f"{curve.where()} is read twice, from {again.sources[0]} and {curve.sources[0]}: name each file once"
            )
        where = place[id(curve)].parent if curve.directory else place[id(curve)]
        found.append(replace(curve, run=str(where)) if alike else curve)
    return found


def _expand(path: Path) -> Iterable[Path]:
    if path.is_file():
        if path.suffix not in (".jsonl", ".csv"):
            raise NothingLogged(f"{path} is neither a .jsonl nor a .csv file: give a run directory, a metrics.jsonl or a CSV")
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist: give a run directory, a metrics.jsonl or a CSV")
    if (path / "metrics.jsonl").is_file():
        return [path / "metrics.jsonl"]
    found = sorted(file for file in path.glob("**/metrics.jsonl") if not history.is_aside(file, path))
    if not found:
        raise NothingLogged(f"{path} holds no metrics.jsonl: give a run directory that training has written to")
    return found


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as handle:
        reader = csv.DictReader(handle)
        missing = {"n_params", "test_loss", "step"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path}: column {', '.join(sorted(missing))} is missing; it has {reader.fieldnames}")
        rows = [Row(f"{path} line {reader.line_num}", {k: v for k, v in row.items() if v not in ("", None)}) for row in reader]
    return rows


def _read_jsonl(path: Path, notes: list[str]) -> list[Row]:
    lines = path.read_text(errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                notes.append(f"{path}: unfinished last line {number} skipped")
                continue
            raise DataError(f"{path} line {number} is not JSON ({error.msg}): mend or remove that line") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} line {number} is {line[:40]!r}, not an object: mend or remove that line")
        check_line(values, f"{path} line {number}")
        rows.append(Row(f"{path} line {number}", values))
    notes += lost_steps(path, [row.values["step"] for row in rows if _is_number(row.values.get("step"))])
    return rows


def _is_number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(row: Row, key: str) -> float:
    raw = row.values[key]
    try:
        value = float(raw)
    except (TypeError, ValueError):
        raise DataError(f"{row.place}: {key} is {raw!r}, not a number: mend or remove that line") from None
    if not math.isfinite(value):
        raise DataError(f"{row.place}: {key} is {raw!r}: mend or remove that line")
    return value


def _curves(path: Path, rows: list[Row], is_log: bool, size: str, notes: list[str]) -> list[Curve]:
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.values.get("test_loss") is None:
            continue
        key = (
            str(row.values.get("model_family", "model")),
            _size(row, size),
            _number(row, "reuse_factor") if row.values.get("reuse_factor") is not None else None,
            str(row.values.get("run", row.values.get("seed", ""))),
        )
        grouped.setdefault(key, []).append(row)
    if not grouped:
        raise NothingLogged(f"{path} has no line with a test_loss: train with evaluation on, or give another file")
    return [_curve(path, key, group, is_log, notes) for key, group in grouped.items()]


def _size(row: Row, size: str) -> float:
    names = ("n_nominal", "n_params") if size == "n_nominal" else (size,)
    present = [name for name in names if row.values.get(name) is not None]
    if not present:
        raise DataError(f"{row.place}: no {' or '.join(names)}: the size of the model must be logged in every line")
    n = _number(row, present[0])
    if n < SMALLEST_N:
        raise DataError(f"{row.place}: {present[0]} is {n:g}: N counts parameters, not billions of them (7B is 7e9)")
    return n


def _curve(path: Path, key: tuple, rows: list[Row], is_log: bool, notes: list[str]) -> Curve:
    family, n, reuse_factor, run = key
    label = str(rows[0].values.get("model_size") or size_label(n))
    by_step: dict[float, Row] = {}
    for row in rows:
        if "step" not in row.values:
            raise DataError(f"{row.place}: no step: every line needs one")
        step = _number(row, "step")
        if step in by_step:
            if not is_log:
                raise DataError(
                    f"{row.place}: step {step:g} of {family} {label} occurs before, at "
                    f"{by_step[step].place}: give runs of their own a `run` column"
                )
            notes.append(f"{row.place}: step {step:g} logged again (resumed run), the later line counts")
        by_step[step] = row
    kept = [by_step[step] for step in sorted(by_step) if step > 0]
    if not kept:
        raise NothingLogged(f"{path}: {family} {label} has no evaluation after step 0: train further")
    columns = {name: _column(kept, keys) for name, keys in NAMES.items()}
    loss = np.array([_loss(row) for row in kept])
    curve = Curve(
        family=family,
        n=n,
        size=label,
        run=run or (_run_name(path) if is_log else path.name),
        reuse_factor=reuse_factor,
        step=np.array([_number(row, "step") for row in kept]),
        loss=loss,
        repeats=np.ones(len(kept)),
        sources=(str(path),),
        directory=str(path.parent) if is_log else None,
        about=agreement.settings_of(path.parent) if is_log else {},
        **columns,
    )
    _check_cumulative(curve, kept, is_log, notes)
    agreement.check_size(curve)
    return curve


def _column(rows: list[Row], keys: tuple[str, ...]) -> np.ndarray:
    found = next((key for key in keys if any(row.values.get(key) is not None for row in rows)), None)
    if found is None:
        return np.full(len(rows), np.nan)
    return np.array([_number(row, found) if row.values.get(found) is not None else np.nan for row in rows])


def _loss(row: Row) -> float:
    loss = _number(row, "test_loss")
    if not 0 <= loss <= 1:
        raise DataError(f"{row.place}: test_loss is {loss:g}; 1 - Pass@1 lies in [0, 1]")
    if loss == 0:
        raise DataError(
            f"{row.place}: test_loss is 0, its logarithm does not exist: evaluate on more questions, or end the "
            "curve before this step"
        )
    return loss


def _check_cumulative(curve: Curve, rows: list[Row], is_log: bool, notes: list[str]) -> None:
    for name in CUMULATIVE:
        values = getattr(curve, name)
        if not np.isfinite(values).all():
            continue
        key = NAMES[name][0]
        parts = np.flatnonzero(values % 1) if is_log and name in ("samples", "tokens") else []
        if len(parts):
            raise DataError(
                f"{rows[parts[0]].place}: {key} is {values[parts[0]]:g}, not a whole number: it counts single {key}"
            )
        if (values <= 0).any():
            bad = int(np.argmax(values <= 0))
            raise DataError(f"{rows[bad].place}: {key} is {values[bad]:g} after step 0, must be positive")
        falls = np.flatnonzero(np.diff(values) < 0)
        if len(falls) and is_log:
            at = int(falls[0]) + 1
            raise DataError(
                f"{rows[at].place}: {key} falls from {values[at - 1]:g} to {values[at]:g}; a cumulative count "
                "cannot: this file mixes two runs, split it"
            )
        if len(falls):
            steps = ", ".join(f"{curve.step[i + 1]:g}" for i in falls)
            notes.append(f"{curve.where()}: {key} falls at step {steps} (mean over runs of unequal length); points kept")


def _run_name(path: Path) -> str:
    """The run directory's name, with the seed of its config.yaml where one is written at the top level."""
    config = path.parent / "config.yaml"
    found = re.search(r"^seed:\s*(\d+)", config.read_text(), re.MULTILINE) if config.is_file() else None
    return f"{path.parent.name or path.name} seed {found.group(1)}" if found else str(path.parent)
