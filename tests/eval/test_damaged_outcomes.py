"""Files of outcomes that lost lines or were changed: what is lost is asked again, what was changed is refused."""

import json

import pytest

from eval.report import write_report
from eval.run import EvaluationError, EvaluationFolder
from eval.sampling import read_records

SETTINGS = {"model": "m", "samples": 2, "max_prompt_tokens": 9} | {
    f"suite {name}": {"title": name, "questions": 18, "overlong": 0, "digest": "d"} for name in ("own", "old")
}


@pytest.fixture
def folder(tmp_path):
    """Two suites of 18 questions with 2 samples each, of which one question is answered right; `old` is of before checksums."""
    made = EvaluationFolder(tmp_path)
    made.open(SETTINGS)
    for suite in ("own", "old"):
        score = lambda q: float(q == 3)  # noqa: E731
        records = [
            {"question": q, "sample": s, "score": score(q), "tokens": 5, "truncated": False} for q in range(18) for s in (0, 1)
        ]
        made.complete(suite, [record | {"response": "r"} for record in records])
    (tmp_path / "checksums.json").write_text(json.dumps({"own": json.loads((tmp_path / "checksums.json").read_text())["own"]}))
    return made


def test_a_whole_evaluation_is_reported(folder):
    for result in write_report(folder, ["own", "old"]):
        assert result.avg.value == pytest.approx(1 / 18) and result.questions == 18


@pytest.mark.parametrize("suite", ["own", "old"])
def test_a_file_without_some_outcomes_is_not_complete(suite, folder):
    file = folder.path / f"{suite}.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"score": 1.0' in line or '"question": 0,' in line))  # 0.50 for 0.055
    assert folder.outcomes(suite) is None
    assert folder.lost(suite) == f"{file} holds 4 of 36 outcomes"
    file.write_text("".join([*lines[:3], lines[3][5:], *lines[4:]]))
    assert folder.lost(suite) == f"{file} holds 35 of 36 outcomes"
    other = EvaluationFolder(folder.path / "other")  # the same evaluation of another model
    other.open(SETTINGS)
    other.complete(suite, [json.loads(line) for line in lines])
    with pytest.raises(EvaluationError, match="holds 35 of 36 outcomes: run that evaluation again"):
        write_report(other, [suite], folder)


def test_a_changed_score_is_refused(folder):
    file = folder.path / "own.jsonl"
    file.write_text(file.read_text().replace('"score": 1.0', '"score": 0.0'))
    with pytest.raises(EvaluationError, match=r"own\.jsonl was changed after it was written: delete it"):
        folder.outcomes("own")
    assert len(folder.outcomes("old")) == len(read_records(folder.path / "old.jsonl")) == 36


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b""])
def test_damaged_settings_are_one_message(content, folder):
    (folder.path / "settings.json").write_bytes(content)
    for call in (lambda: folder.settings, lambda: folder.outcomes("own")):
        with pytest.raises(EvaluationError, match="evaluat"):
            call()
