import json
from pathlib import Path

import pytest

from jaxgrpo.reward import score
from tests.data.published import path

LINES = Path(__file__).with_name("maths_kinds.txt").read_text(encoding="utf-8").splitlines()


def cases() -> dict[str, list[tuple[str, str, float]]]:
    found: dict[str, list] = {}
    for line in LINES:
        if line.startswith("## "):
            kind = found.setdefault(line[3:], [])
        elif line.startswith("= "):
            gold = line[2:]
        elif line[:2] in ("+ ", "- "):
            kind.append((gold, line[2:], float(line[0] == "+")))
    return found


CASES = cases()


@pytest.mark.parametrize("kind", CASES)
def test_every_answer_of_a_kind_is_graded_as_a_mathematician_does(kind):
    wrong = [case for case in CASES[kind] if score("math__kinds", f"so \\boxed{{{case[1]}}}", case[0]) != case[2]]
    assert not wrong
    assert {right for _, _, right in CASES[kind]} == {0.0, 1.0}


def test_the_maths_answers_that_outsiders_found_are_graded_as_expected():
    lines = path("../faults/grader_cases.jsonl").read_text(encoding="utf-8").splitlines()
    faults = [case for case in map(json.loads, lines) if case["data_source"].startswith("math")]
    assert len(faults) >= 38
    grades = [score(case["data_source"], case["response"], case["ground_truth"]) for case in faults]
    assert grades == [case["expected"] for case in faults]
