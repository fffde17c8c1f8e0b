"""history.jsonl beside a run's metrics: what of the run was changed on the way, by those who trained it."""

from __future__ import annotations

import json
from pathlib import Path

ASIDE = "before-"  # folders in a run directory with what earlier starts left


def changes(run: Path) -> list[tuple[int, list[str]]]:
    """(step, what was changed after it), of the changes that the metrics hold: a resume from a step undoes those at or after
    it, a new start all."""
    path = run / "history.jsonl"
    found: list[tuple[int, list[str]]] = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
            kind, step = event["event"], int(event["step"])
            what = [*event.get("changes", ()), *event.get("accepted", ())]
        except (ValueError, TypeError, KeyError):  # torn by a kill
            continue
        if kind == "start":
            found = []
        elif kind == "resume":
            found = [change for change in found if change[0] < step] + ([(step, what)] if what else [])
    return found


def notes(run: Path) -> list[str]:
    """A line for every change, for whoever fits or draws the run."""
    return [
        f"{run}: changed after step {step} ({'; '.join(what)}): not one run's curve throughout" for step, what in changes(run)
    ]


def is_aside(path: Path, below: Path) -> bool:
    """Whether a file below a folder belongs to an earlier start that a run has moved aside."""
    return any(part.startswith(ASIDE) for part in path.relative_to(below).parts[:-1])
