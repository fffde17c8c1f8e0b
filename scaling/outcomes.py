"""Bootstraps that need more than a curve: over whole runs of a size, and over the questions of the held-out suite.

Per-question outcomes are read from run directories: `eval/<suite>-<step>.jsonl`, one line per question and sample with
`question` and `score`. All steps and all models answer the same questions, so the same questions are drawn for all of
them: the error of the question set then moves whole curves (E), not single points.

Shapes: R replicates, M models, T points, Q questions.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from scaling.design import Design
from scaling.integrity import check_outcomes
from scaling.runs import Curve, DataError, Runs

FILE_NAME = re.compile(r"(?P<suite>.+)-(?P<step>\d+)\.jsonl")
HELD_OUT = "heldout"  # the suite whose loss training logs as test_loss
LOSS_TOLERANCE = 5e-4  # a logged test_loss may have been rounded to three decimals


def suites(curve: Curve) -> dict[str, dict[int, Path]]:
    """The suites evaluated in the curve's run directory: {suite: {step: file}}; {} where it has no eval files."""
    found: dict[str, dict[int, Path]] = {}
    if curve.directory is not None:
        for path in sorted(Path(curve.directory, "eval").glob("*.jsonl")):
            match = FILE_NAME.fullmatch(path.name)
            if match:
                found.setdefault(match["suite"], {})[int(match["step"])] = path
    return found


def scores(path: Path) -> dict[str, float]:
    """Mean score over the samples of every question in one eval file. DataError names a line that cannot be read."""
    return _means(_records(path))


def _means(records: list[tuple[str, float]]) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for question, score in records:
        collected.setdefault(question, []).append(score)
    return {question: float(np.mean(values)) for question, values in collected.items()}


def _records(path: Path) -> list[tuple[str, float]]:
    """(question, score) of every line of one eval file."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            item = json.loads(line)
            found.append((str(item["question"]), float(item["score"])))
        except (KeyError, TypeError, ValueError) as error:  # ValueError: not JSON, or not even text
            raise DataError(f"{path} line {number}: no question with a score ({error}): evaluate that step again") from error
    if not found:
        raise DataError(f"{path} is empty: evaluate that step again")
    return found


def checked_scores(curve: Curve, suite: str, step: int) -> dict[str, float]:
    """`scores` of a suite at a step. DataError where its file does not hold what the run's log counted."""
    path, line = suites(curve)[suite][step], _log(curve.directory).get(step, {})
    records = _records(path)
    check_outcomes(path, records, line, "test_loss" if suite == HELD_OUT else f"suite_{suite}")
    return _means(records)


def _log(directory: str) -> dict[int, dict]:
    """The lines of a run's metrics.jsonl by step; `load` has read and checked them."""
    path = Path(directory, "metrics.jsonl")
    lines = []
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):  # a last line that a kill tore
            lines.append(json.loads(text))
    return {int(line["step"]): line for line in lines if isinstance(line, dict) and "step" in line}


def suite_curve(curve: Curve, suite: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and loss (1 - mean score) of one suite of a run, each of shape (S,), step 0 included."""
    files = suites(curve).get(suite)
    if not files:
        raise DataError(f"{curve.where()} has no eval files of suite {suite!r}; it has {', '.join(suites(curve)) or 'none'}")
    steps = np.array(sorted(files))
    return steps, np.array([1 - np.mean(list(checked_scores(curve, suite, int(step)).values())) for step in steps])


def held_out_suite(curve: Curve) -> str:
    """The suite whose mean score is 1 - test_loss at every step of the curve. DataError where none or several are."""
    if not suites(curve):
        raise DataError(
            f"{curve.where()} has no eval files: resample='question' needs run directories with them, or use resample='block'"
        )
    matching, complaints = [], []
    for suite, files in suites(curve).items():
        steps = [int(step) for step in curve.step]
        if all(step in files for step in steps):
            try:
                losses = [1 - np.mean(list(checked_scores(curve, suite, step).values())) for step in steps]
            except DataError as error:
                complaints.append(str(error))
                continue
            if np.abs(np.array(losses) - curve.loss).max() < LOSS_TOLERANCE:
                matching.append(suite)
    if len(matching) != 1:
        raise DataError(
            f"{curve.where()}: {len(matching)} suites of its eval folder agree with test_loss at every step "
            f"({', '.join(matching) or 'none'}): {'; '.join(complaints) or 'name the held-out suite with suite='}"
        )
    return matching[0]


def outcome_matrix(
    curve: Curve, questions: list[str] | None, suite: str | None, steps: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Scores of one run, shape (len(steps), Q), with the questions in the order given (or found at the first step)."""
    suite = suite or held_out_suite(curve)
    files = suites(curve).get(suite, {})
    rows = []
    for step in steps:
        if int(step) not in files:
            raise DataError(
                f"{curve.where()}: no eval file of step {step:g}: the question bootstrap needs one per evaluated step"
            )
        found = scores(files[int(step)])
        questions = sorted(found) if questions is None else questions
        if sorted(found) != sorted(questions):
            raise DataError(
                f"{files[int(step)]}: its {len(found)} questions are not the {len(questions)} of the other files: "
                "all models must be evaluated on the same questions"
            )
        found = checked_scores(curve, suite, int(step))
        rows.append([found[question] for question in questions])
    return np.array(rows), questions


def resampled_questions(
    runs: Runs, averaged: Runs, d: Design, replicates: int, rng: np.random.Generator, suite: str | None = None
) -> np.ndarray:
    """log10 L on `replicates` redrawn question sets, shape (R, M, T)."""
    y = np.zeros((replicates, *d.t_MT.shape))
    questions: list[str] | None = None
    drawn = None
    for i, mean_curve in enumerate(averaged):
        total = 0.0
        members = [c for c in runs if c.n == mean_curve.n]
        for curve in members:
            table, questions = outcome_matrix(curve, questions, suite, mean_curve.step)
            if drawn is None:
                drawn = rng.multinomial(len(questions), np.full(len(questions), 1 / len(questions)), size=replicates)
            total = total + drawn @ table.T / len(questions)
        loss = np.clip(1 - total / len(members), 0.5 / (len(questions) * len(members)), 1.0)
        y[:, i, : len(mean_curve)] = np.log10(loss)
    return y


def resampled_runs(runs: Runs, averaged: Runs, d: Design, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """log10 of the mean loss over runs drawn with replacement within each size, shape (R, M, T)."""
    y = np.zeros((replicates, *d.t_MT.shape))
    for i, mean_curve in enumerate(averaged):
        members = [c for c in runs if c.n == mean_curve.n]
        if len(members) < 2:
            raise DataError(
                f"{mean_curve.where()}: the run bootstrap needs at least two runs of every size: train another seed, "
                "or use resample='block'"
            )
        table = np.stack([c.loss[np.isin(c.step, mean_curve.step)] for c in members])
        drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=replicates)
        y[:, i, : len(mean_curve)] = np.log10(drawn @ table / len(members))
    return y
