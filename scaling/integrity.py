"""What shows that the files of a run are as training wrote them: checksums of lines, steps without a line, and evaluation files
that say what the log says.

Training writes a line for every step and, from some version on, a `crc32` of all its keys but the timing keys. Files without
one are only checked for gaps.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scaling.runs import DataError

CHECKSUM = "crc32"
TIMING_KEYS = ("mfu", "mfu_full_attention", "compilations")


def check_line(values: dict, place: str) -> None:
    """DataError for a line whose checksum is not that of its content."""
    kept = {key: value for key, value in values.items() if key not in (*TIMING_KEYS, CHECKSUM) and not key.endswith("_s")}
    expected = f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"
    if values.get(CHECKSUM, expected) != expected:
        raise DataError(
            f"{place} was changed after training wrote it: bring the file back from a copy, or take the line's {CHECKSUM} out "
            "if the change was meant"
        )


def lost_steps(path: Path, steps: Sequence[float]) -> list[str]:
    """Notes on the steps that a log has no line of, and on evaluations and checkpoints of steps after its last line.

    A log of every n-th step only is taken for one whose steps are n apart: the distance that occurs most."""
    present = sorted({int(step) for step in steps})
    if len(present) < 3:
        return []
    apart = Counter(int(gap) for gap in np.diff(present)).most_common(1)[0][0]
    notes = [
        f"{path}: no line of step {_span(before + apart, after - apart)}, it was lost"
        for before, after in zip(present, present[1:], strict=False)
        if after - before > apart and (after - before) % apart == 0
    ]
    if present[0] > apart:
        notes.insert(0, f"{path}: no line before step {present[0]}, the first ones were lost")
    newest = max((int(step.name) for step in path.parent.glob("checkpoints/*") if step.name.isdigit()), default=0)
    if newest > present[-1]:
        notes.append(f"{path}: no line after step {present[-1]}, but a checkpoint of step {newest}: the last ones were lost")
    return notes


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def check_outcomes(path: Path, records: list[tuple[str, float]], logged: dict, loss_key: str) -> None:
    """DataError for an evaluation file whose outcomes, (question, score), are not those that the line of its step counted.

    loss_key: the key of that line, `test_loss` or `suite_NAME`. What the line does not say is not checked."""
    counts = Counter(question for question, _ in records)
    if len(set(counts.values())) > 1:
        least = min(counts, key=counts.get)
        raise DataError(
            f"{path} holds {counts[least]} samples of question {least} and {max(counts.values())} of others: evaluate that "
            "step again"
        )
    value = logged.get(loss_key)
    if value is None:
        return
    score = float(np.mean([score for _, score in records]))
    told = 1 - value if loss_key == "test_loss" else value
    rounded = value == round(value, 3)  # a log may have been rounded to three decimals
    if abs(score - told) > (5e-4 if rounded else 1e-6):
        of = f" of {logged['test_n']:g}" if loss_key == "test_loss" and "test_n" in logged else ""
        raise DataError(
            f"{path} has a mean score of {score:.4f} over {len(counts)} questions, metrics.jsonl one of {told:.4f}{of}: "
            "evaluate that step again"
        )
