import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.reward import score
from tests.data.published import published as rows

CORPUS = Path(__file__).with_name("maths_corpus.txt")
PUBLISHED = [
    "guru_math/math__full_difficulty_ordered_test_500.parquet",
    "guru_math/math__sampled_1_100_512.parquet",
    "benchmarks/math__math_500.parquet",
    "benchmarks/aime2024.parquet",
    "benchmarks/amc2023.parquet",
    "benchmarks/gsm8k.parquet",
]


def boxed(answer: str) -> str:
    return f"Thinking it through gives \\boxed{{{answer}}}."


def corpus() -> list[tuple[str, str, float]]:
    cases, gold = [], ""
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            gold = line[2:]
        elif line[:2] in ("+ ", "- "):
            cases.append((gold, line[2:], float(line[0] == "+")))
    return cases


def test_at_least_99_percent_of_the_hand_graded_corpus_is_graded_as_a_mathematician_does():
    cases = corpus()
    assert len(cases) >= 600 and sum(right for _, _, right in cases) >= 250
    wrong = [case for case in cases if score("math__corpus", boxed(case[1]), case[0]) != case[2]]
    assert len(wrong) <= len(cases) // 100, wrong


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_ground_truth_equals_itself_and_not_the_next_different_one(name):
    problems = [(row["data_source"], row["reward_model"]["ground_truth"]) for row in rows(name)]
    same_value = {("5", "x=5")}  # neighbours that differ in spelling only
    for (source, gold), (_, other) in zip(problems, problems[1:] + problems[:1], strict=True):
        assert score(source, boxed(gold), gold) == 1.0, gold
        if gold.strip() != other.strip() and (gold, other) not in same_value:
            assert score(source, boxed(other), gold) == 0.0, (gold, other)


@pytest.mark.slow
def test_every_ground_truth_of_the_12800_problem_subset_equals_itself():
    for row in rows("guru_math/math__sampled_1_4_12800.parquet"):
        gold = row["reward_model"]["ground_truth"]
        assert score(row["data_source"], boxed(gold), gold) == 1.0, gold


@pytest.mark.parametrize(
    ("response", "gold", "reward"),
    [
        ("The answer is 42.", "42", 0.0),
        ("The answer is $42$. #### 42", "42", 0.0),
        (r"\boxed{41} is wrong, \boxed{42} is right", "42", 1.0),
        (r"\boxed{42}, or rather \boxed{41}", "42", 0.0),
        (r"\boxed{42} is what I get. Checking: 6 times 7 is 42, as claimed.", "42", 1.0),
        (r"\boxed{42", "42", 0.0),
        (r"\boxed{42} and now I start again: \boxed{4", "42", 0.0),
        (r"<think>\boxed{42}</think> I am not sure.", "42", 0.0),
        (r"<think>maybe 41</think> \boxed{42}", "42", 1.0),
        (r"答案是 \boxed{42}。", "42", 1.0),
        (r"Ответ: \boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
        (r"$$\boxed{\boxed{42}}$$", "42", 1.0),
        (r"\boxed{x=\boxed{42}}", "42", 1.0),
        (r"\[\boxed{42}\] <|im_end|>", "42", 1.0),
        (r"\boxed{}", "42", 0.0),
        (r"\boxed{" + "4" * 500 + "}", "4", 0.0),
        ("x" * 1_000_000 + r"\boxed{42}", "42", 1.0),
        (r"\boxed{42}" + " and so on" * 1000, "42", 1.0),
        ("", "42", 0.0),
        ("\x00", "42", 0.0),
        ("\ud800 \\boxed{42}", "42", 1.0),
    ],
)
def test_only_the_last_complete_box_is_rewarded(response, gold, reward):
    assert score("math__x", response, gold) == reward


@pytest.mark.parametrize("gold", ["", "   ", "$$", None, True, ["5"], {"a": 1}])
def test_an_unusable_ground_truth_is_an_error_not_a_score(gold):
    with pytest.raises(ValueError, match="ground truth"):
        score("math__x", boxed("5"), gold)


def test_numbers_are_accepted_as_ground_truth():
    assert score("aimeamc2023", boxed("27"), "27.0") == 1.0
    assert score("aime2024", boxed("25"), "025") == 1.0
    assert score("math__x", boxed("5"), 5) == 1.0
    assert score("math__x", boxed("0.5"), 0.5) == 1.0


@settings(max_examples=150, deadline=None)
@given(st.fractions(max_denominator=500), st.fractions(max_denominator=500))
def test_two_rational_numbers_are_equal_exactly_when_fractions_says_so(first, second):
    gold = rf"\frac{{{first.numerator}}}{{{first.denominator}}}"
    for spelling in (
        rf"\dfrac{{{second.numerator}}}{{{second.denominator}}}",
        f"{second.numerator}/{second.denominator}",
    ):
        assert score("math__x", boxed(spelling), gold) == float(first == second)
    sign, whole = "-" if first < 0 else "", abs(first.numerator) // first.denominator
    rest = abs(first) - whole
    mixed = rf"{sign}{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}"
    assert score("math__x", boxed(mixed), gold) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_decimal_is_never_equal_to_itself_moved_by_a_point(digits, places):
    decimal = f"{'-' if digits < 0 else ''}{abs(digits) // 10**places}.{abs(digits) % 10**places:0{max(places, 1)}d}"
    gold = rf"\frac{{{digits}}}{{{10**places}}}"
    assert score("math__x", boxed(decimal), gold) == 1.0
    assert score("math__x", boxed(decimal), rf"\frac{{{digits}}}{{{10 ** (places + 2)}}}") == float(digits == 0)


@pytest.mark.parametrize(
    ("gold", "answer", "reward"),
    [
        (r"\frac{1}{2}", r"\cos\frac{\pi}{7}-\cos\frac{2\pi}{7}+\cos\frac{3\pi}{7}", 1.0),
        ("1", r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", 1.0),
        (r"\tan 10^\circ", r"\cot 80^\circ", 1.0),
        (r"e^{2010}-e^{2009}-1", r"e^{2009}(e-1)-1", 1.0),
        (r"e^{2010}-e^{2009}-1", r"e^{2010}-e^{2009}", 0.0),
        ("1", "1+2^{-1000}", 0.0),
        (r"\frac{355}{113}", r"\pi", 0.0),
        (r"10^{30}", r"\sqrt{10^{60}+1}", 0.0),
    ],
)
def test_close_values_are_told_apart_and_hidden_identities_are_found(gold, answer, reward):
    assert score("math__x", boxed(answer), gold) == reward


def test_a_verdict_does_not_depend_on_what_was_graded_before():
    cases = corpus()[::7]
    forward = [score("math__x", boxed(answer), gold) for gold, answer, _ in cases]
    backward = [score("math__x", boxed(answer), gold) for gold, answer, _ in reversed(cases)]
    assert forward == backward[::-1]
    assert not any(math.isnan(value) for value in forward)
