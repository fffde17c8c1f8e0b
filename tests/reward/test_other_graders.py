import json

import pytest

from jaxgrpo.reward import known_data_sources, score
from jaxgrpo.reward.zebra import cell_accuracy
from tests.data.published import published as rows


@pytest.mark.parametrize(
    ("response", "digit", "reward"),
    [
        ("5678", "8", 1.0),
        (" 5678\n", "8", 1.0),
        ("8", "8", 1.0),
        ("5678", "7", 0.0),
        ("8765", "8", 0.0),
        ("56 78", "8", 0.0),
        ("5678.", "8", 0.0),
        ("answer 8", "8", 0.0),
        ("٨", "8", 0.0),
        ("²", "2", 0.0),
        ("", "8", 0.0),
        ("   ", "8", 0.0),
        ("-8", "8", 0.0),
        ("8\x00", "8", 0.0),
        ("5678", 8, 1.0),
    ],
)
def test_arithmetic_needs_digits_only_and_the_right_last_one(response, digit, reward):
    assert score("arithmetic", response, digit) == reward
    assert score("arithmetic__hard", response, digit) == reward


def test_arithmetic_refuses_a_ground_truth_that_is_not_a_digit():
    for bad in ("", "12", "x", None):
        with pytest.raises(ValueError, match="one digit"):
            score("arithmetic", "5", bad)


@pytest.mark.parametrize(
    ("response", "gold", "reward"),
    [
        (r"\boxed{18}", "18", 1.0),
        (r"\boxed{\$18}", "18", 1.0),
        (r"\boxed{18.00}", "18", 1.0),
        (r"\boxed{1,800}", "1800", 1.0),
        (r"\boxed{1800}", "1,800", 1.0),
        (r"\boxed{18 \text{ dollars}}", "18", 1.0),
        (r"\boxed{18 dollars}", "18", 1.0),
        (r"\boxed{9 \cdot 2}", "18", 1.0),
        ("She makes 18 a day.\n#### 18", "18", 1.0),
        ("#### 17\n#### 18", "18", 1.0),
        (r"\boxed{17} #### 18", "18", 0.0),
        (r"#### 18 \boxed{17", "18", 0.0),
        ("The answer is 18", "18", 0.0),
        (r"\boxed{1.8}", "18", 0.0),
        (r"\boxed{1800\%}", "18", 1.0),
        (r"\boxed{81}", "18", 0.0),
        ("#### eighteen", "18", 0.0),
        ("####", "18", 0.0),
        (r"\boxed{-18}", "18", 0.0),
    ],
)
def test_gsm8k_takes_the_box_or_the_marked_number_and_nothing_else(response, gold, reward):
    assert score("openai/gsm8k", response, gold) == reward


@pytest.mark.parametrize(
    ("box", "reward"),
    [
        ("C", 1.0),
        ("(C)", 1.0),
        ("c", 1.0),
        (r"\text{C}", 1.0),
        (r"\textbf{(C)}", 1.0),
        ("C.", 1.0),
        ("C. 0.33g", 1.0),
        ("C: 0.33g", 1.0),
        ("(C) because it fits", 1.0),
        ("(C) or (D)", 0.0),
        ("C) or D", 0.0),
        ("Answer: C", 1.0),
        ("The answer is C", 1.0),
        ("option C", 1.0),
        (" C ", 1.0),
        ("A", 0.0),
        ("C, D", 0.0),
        ("C or D", 0.0),
        ("A. B. C.", 0.0),
        ("CA", 0.0),
        ("K", 0.0),
        ("", 0.0),
        ("0.33g", 0.0),
        ("Cat", 0.0),
        ("All of them", 0.0),
        ("C" * 5000, 0.0),
    ],
)
def test_supergpqa_takes_one_letter_from_the_box(box, reward):
    assert score("stem__supergpqa", f"So \\boxed{{{box}}}", "C") == reward


def test_supergpqa_never_guesses():
    for text in ("", "C", "The answer is C", "no idea", "A B C D E F G H I J"):
        assert score("stem__supergpqa", text, "C") == 0.0
    with pytest.raises(ValueError, match="A-J"):
        score("stem__supergpqa", r"\boxed{C}", "K")


def test_supergpqa_references_are_right_and_every_other_letter_is_wrong():
    for row in rows("benchmarks/stem__supergpqa_200.parquet"):
        gold = row["reward_model"]["ground_truth"]
        rewards = [score(row["data_source"], f"\\boxed{{{letter}}}", gold) for letter in "ABCDEFGHIJ"]
        assert sum(rewards) == 1.0 and rewards["ABCDEFGHIJ".index(gold)] == 1.0


TABLE = {"header": ["Position", "Pet", "Drink"], "rows": [["1", "cat", "hot-chocolate"], ["2", "dog", "tea"]]}


def answered(table: object) -> str:
    return f"I conclude <answer>{table}</answer>."


@pytest.mark.parametrize(
    ("table", "accuracy"),
    [
        (TABLE, 1.0),
        (json.dumps(TABLE), 1.0),
        (json.dumps(TABLE, indent=2), 1.0),
        (f"```json\n{json.dumps(TABLE)}\n```", 1.0),
        ({"header": ["Position", "Pet", "Drink"], "rows": [[2, "Dog", "tea"], [1, "cat", "hot chocolate"]]}, 1.0),
        ({"header": ["Drink", "Position", "Pet"], "rows": [["tea", 2, "dog"], ["hot_chocolate", 1, "cat"]]}, 1.0),
        ({"header": ["Position", "Pet", "Drink"], "rows": [["1", "cat", "tea"], ["2", "dog", "hot-chocolate"]]}, 4 / 6),
        ({"header": ["Position", "Pet", "Drink"], "rows": [["1", "cat", "hot-chocolate"]]}, 3 / 6),
        ({"header": ["Position", "Pet"], "rows": [["1", "cat"], ["2", "dog"]]}, 0.0),
        ({"header": TABLE["header"], "rows": [*TABLE["rows"], ["3", "cow", "milk"]]}, 6 / 9),
        ({"header": TABLE["header"], "rows": [["1", "cat"], ["2", "dog"]]}, 0.0),
        ({"header": TABLE["header"], "rows": TABLE["rows"] + TABLE["rows"]}, 0.0),
        ({"header": TABLE["header"]}, 0.0),
        ("[1, 2]", 0.0),
        ("{'header': __import__('os')}", 0.0),
        ("not a table", 0.0),
        ("[" * 5000, 0.0),
        ("", 0.0),
    ],
)
def test_zebra_counts_right_cells_and_rewards_a_whole_table(table, accuracy):
    assert cell_accuracy(answered(table), TABLE) == pytest.approx(accuracy)
    assert score("logic__zebra_puzzle_dataset", answered(table), TABLE) == float(accuracy == 1.0)


def test_zebra_takes_the_last_answer_and_needs_the_tags():
    assert score("logic__zebra_puzzle_dataset", answered("{}") + answered(TABLE), TABLE) == 1.0
    assert score("logic__zebra_puzzle_dataset", answered(TABLE) + answered("{}"), TABLE) == 0.0
    assert score("logic__zebra_puzzle_dataset", str(TABLE), TABLE) == 0.0
    with pytest.raises(ValueError, match="header and rows"):
        score("logic__zebra_puzzle_dataset", answered(TABLE), {"rows": []})


def test_a_published_zebra_table_scores_1_and_a_changed_cell_0():
    for row in rows("benchmarks/logic__zebra_puzzle_dataset_200.parquet"):
        gold = row["reward_model"]["ground_truth"]
        assert score(row["data_source"], answered(gold), gold) == 1.0
        changed = {"header": gold["header"], "rows": [[*gold["rows"][0][:-1], "changed"], *gold["rows"][1:]]}
        assert score(row["data_source"], answered(changed), gold) == 0.0


def test_an_unknown_data_source_is_refused_with_the_known_ones():
    for unknown in ("codegen__mbpp", "", "Math__x", None):
        with pytest.raises(ValueError, match=r"no grader.*arithmetic.*math__"):
            score(unknown, "5", "5")
    assert "openai/gsm8k" in known_data_sources()


def test_a_response_that_is_not_text_is_refused():
    with pytest.raises(TypeError, match="text"):
        score("arithmetic", 5, "5")
