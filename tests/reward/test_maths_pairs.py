"""No two ground truths that differ are taken for the same, in either direction."""

import ast
import cmath
import itertools
import math
import operator
import random
import re

import pytest

from jaxgrpo.reward import GraderPool, score
from tests.data.published import published

FILES = (
    "benchmarks/math__math_500.parquet",
    "benchmarks/aime2024.parquet",
    "benchmarks/amc2023.parquet",
    "guru_math/math__full_difficulty_ordered_test_500.parquet",
)
# different spellings of one thing, as a mathematician reads them: each line is one value
SAME = (
    ("(-2,1)", "-2,1"), ("-2,1", "1,-2"), ("0", "y=0"), ("0.375", r"\frac{3}{8}"), ("023", "23"), ("025", "25"),
    ("033", "33"), ("045", "45"), ("055", "55", r"55^\circ"), ("080", "80"), ("1", "1:1"), ("1.5", r"\frac{3}{2}"),
    ("1.6", r"\\frac{8}{5}"), ("1/2", r"\\frac{1}{2}", r"\frac{1}{2}"), (r"10,\!080", "10080"),
    ("1008016", "1{,}008{,}016"), ("120", r"120^\circ"), ("13", "n = 13"), ("15", r"15\mbox{ cm}^2"),
    (r"180^\circ", r"\pi"), ("2", "a = 2"), ("2", "k = 2"), (r"2 \sqrt{5}", r"2\sqrt{5}"), ("20", r"20^\circ"),
    ("27", r"27^\circ"), ("2:3", r"\dfrac{2}{3}", r"\frac{2}{3}"), ("3", "x = 3"),
    ("30", r"30^\circ"), ("36", r"36^\circ"), ("36", r"\$36"), ("4", r"4\%"), ("5", "x=5"),
    (r"6 \sqrt{2}", r"6\sqrt{2}"), ("7", "n = 7"), ("90", r"90^\circ"), ("C", r"\text{(C)}"),
    (r"\\frac{1}{3}", r"\frac{1}{3}"), (r"\\frac{1}{4}", r"\frac14", r"\frac{1}{4}"),
    (r"\\frac{2 \\sqrt{3}}{3}", r"\frac{2 \sqrt{3}}{3}"), (r"\\frac{2}{5}", r"\dfrac{2}{5}"),
    (r"\\frac{3}{4}", r"\frac 34", r"\frac{3}{4}"), (r"\\sqrt{5}", r"\sqrt{5}"),
    (r"\dfrac {18 \sqrt {2}}{5}", r"\dfrac{18\sqrt{2}}{5}"), (r"\frac43", r"\frac{4}{3}"),
)  # fmt: skip
BARE_DIGITS = (("204_5", "204"), ("40_9", "40"), ("52_8", "52"))  # right answers where the truth names the base
_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
_NUMBERS = {"pi": math.pi, "e": math.e, "i": 1j, "x": 0.7310, "n": 1.618, "k": 2.414, "r": 0.577, "a": 1.303, "b": 0.915}


def truths() -> list[str]:
    rows = [row for name in FILES for row in published(name)]
    return sorted({str(row["reward_model"]["ground_truth"]).strip() for row in rows})


def same_value(gold: str, answer: str) -> bool:
    return (gold, answer) in BARE_DIGITS or any(gold in group and answer in group for group in SAME)


def value(latex: str) -> complex | None:
    """A number for one expression, by Python's own arithmetic; None for what this does not read."""
    text = re.sub(r"\\+(?:left|right|!|,|mbox\{.*\}|text\{.*\}|circ|%|\$)|[\s$,]", "", latex.replace("\\\\", "\\")).strip("^")
    text = re.sub(r"\\[dt]?frac(\d)(\d)", r"(\1)/(\2)", text.removeprefix("x=").removeprefix("n=").removeprefix("k="))
    for _ in range(4):
        text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt(?:\{([^{}]*)\}|(\d))", r"((\1\2)**(1/2))", text)
    text = text.replace("\\pi", "(pi)").replace("\\cdot", "*").replace("^", "**").replace("{", "(").replace("}", ")")
    text = re.sub(r"(?<=[\d)])(?=[a-z(])|(?<=\))(?=\d)|(?<=(?<![a-z])[a-z])(?=\()", "*", text)
    try:
        return complex(_evaluated(ast.parse(text, mode="eval").body))
    except (SyntaxError, KeyError, OverflowError, ZeroDivisionError, TypeError, ValueError, AttributeError):
        return None


def _evaluated(node: ast.expr) -> complex:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _NUMBERS[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_evaluated(node.operand)
    left, right = _evaluated(node.left), _evaluated(node.right)
    if isinstance(node.op, ast.Pow) and abs(right) > 400:
        raise OverflowError
    return _OPERATIONS[type(node.op)](left, right)


def near(known: list[str]) -> set[tuple[str, str]]:
    """Pairs whose values agree to 3 %, and pairs that are made of the same digits and letters."""
    values = {text: value(text) for text in known}
    assert sum(number is not None for number in values.values()) > 0.8 * len(known)
    made_of = {text: "".join(sorted(re.sub(r"\\+[a-zA-Z]+|[^0-9a-zA-Z]", "", text))) for text in known}
    return {
        (first, second)
        for first, second in itertools.permutations(known, 2)
        if made_of[first] == made_of[second]
        or None not in (values[first], values[second])
        and cmath.isclose(values[first], values[second], rel_tol=0.03, abs_tol=1e-9)
    }


def wrong(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in pairs if score("math__p", f"\\boxed{{{pair[1]}}}", pair[0]) != same_value(*pair)]


def test_truths_that_are_near_each_other_and_a_sample_of_the_others_are_told_apart():
    known = truths()
    assert len(known) > 550
    close = sorted(near(known))
    assert len(close) > 300
    close = close if len(close) < 1500 else random.Random(0).sample(close, 1500)
    assert not wrong(close + [tuple(random.Random(n).sample(known, 2)) for n in range(1500)])


def test_spellings_of_one_value_are_found_equal_in_either_direction():
    known = set(truths())
    pairs = [pair for group in SAME for pair in itertools.permutations(group, 2)]
    assert len(pairs) > 20 and all(text in known for group in SAME for text in group)
    assert not wrong(pairs)


@pytest.mark.slow
def test_all_pairs_of_two_different_truths_are_told_apart():
    known = truths()
    with GraderPool(cpu_seconds=20.0) as pool:
        for gold in known:
            answers = [answer for answer in known if answer != gold]
            grades = pool.grade([("math__p", f"\\boxed{{{answer}}}", gold, None) for answer in answers])
            assert not any(grade.error for grade in grades), gold
            equal = [answer for answer, grade in zip(answers, grades, strict=True) if grade.score]
            assert equal == [answer for answer in answers if same_value(gold, answer)], gold
