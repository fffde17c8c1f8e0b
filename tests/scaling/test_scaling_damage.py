"""Damaged logs and evaluation files: each is refused or told, with the place."""

import json

import numpy as np
import pytest

import scaling
from jaxgrpo.train.metrics import with_checksum
from scaling import outcomes

STEPS = 8
QUESTIONS = 18


@pytest.fixture
def run(tmp_path):
    """A run of 8 steps whose Pass@1 at step 8 is 1 of 18 = 0.055..."""
    (tmp_path / "run" / "eval").mkdir(parents=True)
    with open(tmp_path / "run" / "metrics.jsonl", "w") as file:
        for step in range(STEPS + 1):
            line = {"model_family": "m", "n_nominal": 1e6, "step": step, "samples": 16 * step, "tokens": 99 * step}
            line |= {"compute_flops": 1e9 * step, "test_loss": 1 - 1 / QUESTIONS, "test_n": QUESTIONS, "suite_own": 0.25}
            file.write(json.dumps(with_checksum(line | {"step_s": 1.5})) + "\n")
    for step in range(STEPS + 1):
        heldout = [{"question": q, "sample": 0, "score": float(q == 3)} for q in range(QUESTIONS)]
        own = [{"question": q, "sample": s, "score": float(s == 0)} for q in range(3) for s in range(4)]
        for suite, records in (("heldout", heldout), ("own", own)):
            (tmp_path / "run" / "eval" / f"{suite}-{step}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path / "run"


def rewritten(path, change) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_a_whole_run_is_read_without_a_note(run):
    runs = scaling.load(run)
    assert runs.notes == ()
    assert outcomes.held_out_suite(runs.curves[0]) == "heldout"
    for suite, score in (("heldout", 1 / QUESTIONS), ("own", 0.25)):
        steps, loss = outcomes.suite_curve(runs.curves[0], suite)
        assert steps.tolist() == list(range(STEPS + 1))
        np.testing.assert_allclose(1 - loss, score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:4], lines[4].replace(b"64", b"65"), *lines[5:]], "line 5 was changed after training wrote it"),
        (lambda lines: [*lines[:4], lines[4].replace(b"0.94", b"0.84"), *lines[5:]], "line 5 was changed"),
        (lambda lines: [*lines[:4], lines[4].replace(b"test_loss", b"test_lost"), *lines[5:]], "line 5 was changed"),
        (lambda lines: [*lines[:4], lines[4][3:], *lines[5:]], "line 5 is not JSON"),
        (lambda lines: [*lines[:4], b"\xff\xfe\x00" + lines[4], *lines[5:]], "line 5 is not JSON"),
    ],
)
def test_a_garbled_line_is_refused_with_its_place(change, message, run):
    rewritten(run / "metrics.jsonl", change)
    with pytest.raises(scaling.DataError, match=rf"metrics\.jsonl {message}"):
        scaling.load(run)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda lines: lines[:4] + lines[6:], "no line of step 4 to 5, it was lost"),
        (lambda lines: lines[:7] + lines[8:], "no line of step 7, it was lost"),
        (lambda lines: lines[3:], "no line before step 3, the first ones were lost"),
        (lambda lines: lines[:6], "no line after step 5, but a checkpoint of step 8: the last ones were lost"),
        (lambda lines: [*lines[:8], lines[8][:50]], "unfinished last line 9 skipped"),
    ],
)
def test_lost_lines_are_told(change, note, run):
    (run / "checkpoints" / "8").mkdir(parents=True)
    rewritten(run / "metrics.jsonl", change)
    assert any(note in said for said in scaling.load(run).notes)


def test_a_log_of_every_second_step_has_lost_nothing(run):
    rewritten(run / "metrics.jsonl", lambda lines: lines[::2])
    assert scaling.load(run).notes == ()
    rewritten(run / "metrics.jsonl", lambda lines: lines[:2] + lines[3:])
    assert "no line of step 4, it was lost" in scaling.load(run).notes[0]


def test_seconds_may_differ_and_lines_of_before_have_no_checksum(run):
    rewritten(run / "metrics.jsonl", lambda lines: [line.replace(b'"step_s": 1.5', b'"step_s": 9.5') for line in lines])
    scaling.load(run)
    rewritten(run / "metrics.jsonl", lambda lines: [line.partition(b', "crc32"')[0] + b"}\n" for line in lines])
    assert scaling.load(run).notes == ()


@pytest.mark.parametrize(
    ("suite", "kept", "message"),
    [
        (
            "heldout",
            lambda record: record["score"] or record["question"] == 0,
            "mean score of 0.5000 over 2 questions.*0.0556 of 18",
        ),
        ("heldout", lambda record: record["question"] != 5, "mean score of 0.0588 over 17 questions"),
        ("heldout", lambda record: record["question"] != 3, "mean score of 0.0000 over 17"),
        ("own", lambda record: record["sample"] < 2, "mean score of 0.5000 over 3 questions, metrics.jsonl one of 0.2500"),
        ("own", lambda record: record["question"] or record["sample"], "3 samples of question 0 and 4 of others"),
    ],
)
def test_an_evaluation_file_without_some_of_its_answers_is_refused(suite, kept, message, run):
    lines = (run / "eval" / f"{suite}-8.jsonl").read_text().splitlines(keepends=True)
    (run / "eval" / f"{suite}-8.jsonl").write_text("".join(line for line in lines if kept(json.loads(line))))
    curve = scaling.load(run).curves[0]
    with pytest.raises(scaling.DataError, match=rf"{suite}-8\.jsonl .*{message}.*evaluate that step again"):
        outcomes.suite_curve(curve, suite)
    with pytest.raises(scaling.DataError, match=f"{message}|questions are not the 18 of the other files"):
        outcomes.outcome_matrix(curve, None, suite, curve.step)


def test_a_garbled_evaluation_line_is_named(run):
    rewritten(run / "eval" / "heldout-8.jsonl", lambda lines: [*lines[:2], b"\xff" + lines[2], *lines[3:]])
    with pytest.raises(scaling.DataError, match=r"heldout-8\.jsonl line 3"):
        outcomes.suite_curve(scaling.load(run).curves[0], "heldout")
