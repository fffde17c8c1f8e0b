"""RUN/history.jsonl: how a run came about, one JSON object a line, only ever added to.

    {"event": "start", "time": ..., "step": 0, "config": {...}, "inputs": {...}, "origin": {...} or null}
    {"event": "resume", "time": ..., "step": S, "changes": ["optim.lr: 1e-06 -> 2e-06"], "accepted": [...]}

A resume goes on after step S, whose later lines of metrics are gone by then: changes at S or later that came before it are
undone by it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from jaxgrpo import storage

NAME = "history.jsonl"


def read_history(run: Path) -> list[dict]:
    """The events of a run directory; lines that are torn or are none are left out."""
    path = run / NAME
    with storage.reached(path):
        lines = path.read_bytes().splitlines() if path.exists() else []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def add_event(run: Path, event: str, step: int, **about) -> None:
    line = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step} | about
    storage.append_line(run / NAME, json.dumps(line, default=str))


def changed_after(run: Path) -> list[int]:
    """The steps after which the run went on with something changed."""
    if not any(event["event"] == "resume" for event in read_history(run)):
        return []
    from scaling.history import changes  # with what a fit needs, a second of imports

    return [step for step, _ in changes(run)]
