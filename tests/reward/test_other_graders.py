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
    ("answer", "gold"),
    [
        ("42 apples", "42"),
        ("42 and the reasoning above confirms it.", "42"),
        ("42 because 40 + 2 = 42", "42"),
        ("$1,200.50 per month", "1200.5"),
        ("$42/month", "42"),
        ("**42** apples", "42"),
        ("**42**", "42"),
        ("42, as shown", "42"),
        ("42 (in all)", "42"),
        ("-5 degrees outside", "-5"),
        ("1/2 of a cake", "0.5"),
        ("3 students' books", "3"),
        ("8 quarters", "8"),
        ("42% of them", "42"),
        ("42 cm^2", "42"),
        ("40 + 2", "42"),
    ],
)
def test_gsm8k_takes_words_and_units_behind_the_marked_number(answer, gold):
    assert score("openai/gsm8k", f"2 + 40 = 42\n#### {answer}", gold) == 1.0
    assert score("openai/gsm8k", f"2 + 40 = 42\n#### {answer}", f"{gold}1") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "42 million", "42 hundred apples", "42 dozen", "42 x 3", "42 x", "42x", "42k", "42 or 43", "42 or forty-three",
        "42 to 50", "42-43 apples", "42 and a half", "42 and one third", "42 hours and thirty minutes", "42 hours 30 minutes",
        "42,5", "42.5 h", "1,042 apples", "420 apples", "about 42", "42^2 apples", "42/7 apples", "42 squared", "-42 apples",
        "apples: 42", "42 times 2",
    ],
)  # fmt: skip
def test_gsm8k_takes_no_number_that_words_change_or_that_is_not_alone(answer):
    assert score("openai/gsm8k", f"#### {answer}", "42") == 0.0


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
        ("C. Vitamin D", 1.0),
        ("C) Hepatitis B.", 1.0),
        ("(C) Vitamin D", 1.0),
        ("C. Both A and B", 1.0),
        ("C. Neither A nor B", 1.0),
        ("C, since it fits", 1.0),
        ("C - Vitamin D", 1.0),
        ("C is the correct answer", 1.0),
        ("[C]", 1.0),
        ("（C）", 1.0),
        (r"\text{Final answer - C}", 1.0),
        (r"\textbf{(C)}\ 663", 1.0),
        (r"C.~\text{Vitamin D}", 1.0),
        ("The final answer is option C.", 1.0),
        ("C, A or B maybe", 0.0),
        ("C and D", 0.0),
        ("C/D", 0.0),
        ("C, not D", 0.0),
        ("C. D", 0.0),
        ("C. or D", 0.0),
        ("C. maybe D", 0.0),
        ("C. one D. two", 0.0),
        ("(C) one (D) two", 0.0),
        ("C. one or D", 0.0),
        ("C is wrong", 0.0),
        ("not C", 0.0),
        ("C.N.A.", 0.0),
        ("C-fibres", 0.0),
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


@pytest.mark.parametrize(
    "box", ["A, B or C maybe", "A and B", "A or B", "A & B", "B, A", "A; B", "(A) and (B)", "A) x, B) y", "Both A and B"]
)
def test_supergpqa_gives_nothing_for_two_letters(box):
    assert [score("stem__supergpqa", f"\\boxed{{{box}}}", letter) for letter in "ABC"] == [0.0] * 3


def test_supergpqa_takes_the_letter_before_a_text_that_holds_others():
    for letter, reward in (("D", 1.0), ("C", 0.0)):
        assert score("stem__supergpqa", r"\boxed{D. Vitamin C}", letter) == reward


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


ODD_TABLES = {
    "doubled braces": ("{" + json.dumps(TABLE) + "}", 1.0),
    "tuples": (str(TABLE).replace("[", "(").replace("]", ")"), 1.0),
    "doubled braces around nothing": ("{{}}", 0.0),
    "doubled braces around no table": ('{{"a": 1}}', 0.0),
    "a dictionary as a key": ("{{1: 2}: 3}", 0.0),
    "a list in a set": ("{[1], 2}", 0.0),
    "rows given twice": (json.dumps(TABLE)[:-1] + ', "rows": [["1", "x", "y"]]}', 0.0),
    "rows given twice, the right ones last": ('{"rows": [["1", "x", "y"]], ' + json.dumps(TABLE)[1:], 0.0),
    "rows given twice in Python": ("{'rows': [], " + str(TABLE)[1:], 0.0),
    "a list in a cell": (json.dumps(TABLE).replace('"cat"', '["cat"]'), 5 / 6),
    "an object in a cell": (json.dumps(TABLE).replace('"cat"', '{"cat": 1}'), 5 / 6),
    "no number in a cell": (json.dumps(TABLE).replace('"cat"', "NaN"), 5 / 6),
    "infinity in a cell": (json.dumps(TABLE).replace('"cat"', "1e999"), 5 / 6),
    "half a surrogate in a cell": (json.dumps(TABLE).replace("cat", r"\ud800"), 5 / 6),
    "a number of 15,000 digits": (json.dumps(TABLE).replace('"cat"', "9" * 15_000), 0.0),
    "one of 15,000 hexadecimal digits": (json.dumps(TABLE).replace('"cat"', "0x" + "f" * 15_000), 0.0),
    "a row that is a number": (json.dumps(TABLE)[:-2] + ", 5]}", 0.0),
    "a row that is an object": (json.dumps(TABLE)[:-2] + ', {"Position": 3}]}', 0.0),
    "rows without an order": ("{'header': ['Position', 'Pet', 'Drink'], 'rows': {('1', 'cat', 'tea')}}", 0.0),
    "an object as header": (json.dumps(TABLE | {"header": dict.fromkeys(TABLE["header"])}), 0.0),
    "null": ('{"header": null, "rows": null}', 0.0),
    "deep brackets behind a text of closing ones": ('["' + "]" * 6000 + '", ' + "[" * 6000, 0.0),
    "15,000 signs": ("-" * 15_000 + "1", 0.0),
    "7,000 summands": ("1+" * 7000 + "1j", 0.0),
    "9,000 attributes": ("a" + ".a" * 9000, 0.0),
    "a NUL byte": ("\x00", 0.0),
}


@pytest.mark.parametrize(("table", "accuracy"), ODD_TABLES.values(), ids=ODD_TABLES)
def test_no_odd_table_stops_the_zebra_grader(table, accuracy):
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
