"""metrics.jsonl: one JSON object per step, flushed to disk before the step is checkpointed; and a count of compilations."""

import json
import math
import os
import zlib
from pathlib import Path

import jax

from jaxgrpo.storage import is_remote, naming
from jaxgrpo.whole_file import write_whole

# Where the seconds between two lines go; other_s is what is left of step_s. A line is written before its own checkpoint, so its
# save_s is what the save after the line before took of the loop's time, and 0 where there was none.
PHASES = ("rollout_s", "grade_s", "score_s", "update_s", "sync_s", "eval_s", "save_s")
# The only keys that may differ between two runs of the same seed.
TIMING_SUFFIXES = ("_s", "_per_s")
TIMING_KEYS = ("mfu", "mfu_full_attention", "compilations")
CHECKSUM = "crc32"  # of a line's other keys but the timing keys


def is_timing_key(key: str) -> bool:
    return key.endswith(TIMING_SUFFIXES) or key in (*TIMING_KEYS, CHECKSUM)


def with_checksum(record: dict) -> dict:
    """A record of a step as it is written, with what shows later that it was not changed."""
    written = {key: _json_number(value) for key, value in record.items()}
    return written | {CHECKSUM: _checksum(written)}


def _checksum(record: dict) -> str:
    kept = {key: value for key, value in record.items() if not is_timing_key(key)}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


class MetricsLog:
    """Append-only writer of a JSON-lines file."""

    def __init__(self, path: Path):
        self.path = path

    def cut_after(self, step: int) -> int:
        """Drop the lines of later steps and a line torn by a kill; returns how many went. The file is replaced atomically.
        Lines that cannot be read between those that stay are damage, which stays to be seen."""
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        steps = [_step_of(line) for line in lines]
        last = max((place for place, of in enumerate(steps) if of is not None and of <= step), default=-1)
        kept = [line for line, of in zip(lines[: last + 1], steps, strict=False) if of is None or of <= step]
        if kept and not kept[-1].endswith(b"\n"):  # torn before its newline only: whole, but the next line must not join it
            kept[-1] += b"\n"
        if kept != lines:
            write_whole(self.path, b"".join(kept).decode(errors="replace"))
        return len(lines) - len(kept)

    def append(self, record: dict) -> None:
        """Write one line and force it to disk: what a checkpoint claims to include must be there."""
        line = json.dumps({key: _json_number(value) for key, value in record.items()}, allow_nan=False) + "\n"
        if is_remote(self.path):
            write_whole(self.path, (self.path.read_text() if self.path.exists() else "") + line)
            return
        with naming(self.path), open(self.path, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict]:
        return read_metrics(self.path)


def _json_number(value):
    """JSON has no NaN or infinity: they become null, which no reader takes for a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict]:
    """All whole lines of a metrics file; an absent file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines() if _step_of(line) is not None]


def damage(path: Path, done: int) -> list[str]:
    """What is wrong with a metrics file that holds the lines of the steps 0 to `done`, each with its place: lines that cannot
    be read or were changed, and steps without a line. A last line that a kill tore is none of these."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found, seen = [], set()
    for number, line in enumerate(lines, 1):
        step = _step_of(line)
        if step is None:
            if number < len(lines) or line.endswith(b"\n"):
                found.append(f"line {number} is no record of a step")
            continue
        record = json.loads(line)
        if CHECKSUM in record and record[CHECKSUM] != _checksum(record):
            found.append(f"line {number} (step {step}) was changed after it was written")
        seen.add(step)
    if missing := [step for step in range(done + 1) if step not in seen]:
        found.append(f"no line of step {spans(missing)}")
    return found


def spans(numbers: list[int]) -> str:
    """Ascending numbers in words: [1, 2, 3, 7] are "1 to 3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _step_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError):  # ValueError: not JSON, or not even text
        return None


def phase_seconds(records: list[dict], last_save_s: float) -> tuple[dict[str, float], int]:
    """Seconds of every phase over all lines and the save after the last of them, and how many lines are of the old kind.

    Those carried the seconds of all saves of their process so far, in save_s but not in step_s: they are told by that, and the
    difference to the line before is taken for the save."""
    seconds = dict.fromkeys((*PHASES, "other_s"), 0.0)
    seconds["save_s"] = last_save_s
    old, saved = 0, 0.0
    for record in records:
        spent = {phase: record.get(phase) or 0.0 for phase in seconds}
        if spent["save_s"] and sum(spent.values()) - (record.get("step_s") or 0.0) > spent["save_s"] / 2:
            old += 1
            carried, saved = saved, spent["save_s"]
            spent["save_s"] -= carried if carried <= saved else 0.0  # less than before: of another process
        for phase, value in spent.items():
            seconds[phase] += value
    return seconds, old


class CompilationCounter:
    """Counts the programs XLA builds (or fetches from the compilation cache) in this process from its creation on."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
