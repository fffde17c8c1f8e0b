import pytest

from jaxgrpo.data.repair import Repairs, halve_backslashes, read_message_list, repair, repair_prompt_text


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"70\\sqrt{3}", r"70\sqrt{3}"),
        (r"5.88\\%", r"5.88\%"),
        (r"2 \\text{ km}", r"2 \text{ km}"),
        (r"\\{1, 2\\}", r"\{1, 2\}"),
        (r"(1,-1,1) \\text{ or } \\ (2,0,0)", r"(1,-1,1) \text{ or } \ (2,0,0)"),
        (r"4\\piR", r"4\piR"),
        (r"\\begin{pmatrix} 1 \\\\ \\frac{1}{2} \\end{pmatrix}", r"\begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}"),
        (r"\\begin{pmatrix} 1 \\ -2 \\end{pmatrix}", r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}"),
    ],
)
def test_doubled_backslashes_are_halved_where_they_cannot_be_meant(found, meant):
    assert halve_backslashes(found) == meant
    assert halve_backslashes(meant) == meant


@pytest.mark.parametrize(
    "text",
    [
        "42",
        r"\frac{1}{2}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix}a\\b\end{pmatrix}",
        r"\begin{cases} x \\\frac{1}{2} \end{cases}",
        r"x + y = 1 \\ x - y = 2",
        '{"functional": "def check(f):\\n    assert f(\\"a\\\\nb\\") == 1"}',
        r"C:\\users\\name",
    ],
)
def test_texts_that_make_sense_as_they_stand_are_left_alone(text):
    assert halve_backslashes(text) == text
    assert repair_prompt_text(text) == text


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        (r"Let \\(f(x)=\frac{1}{2}\\). Use \boxed{}.", r"Let \(f(x)=\frac{1}{2}\). Use \boxed{}."),
        (r"sequence $\\{a_n\\}$ with $n \in N$", r"sequence $\{a_n\}$ with $n \in N$"),
        (r"Find \\frac{1}{2}. Use \boxed{}.", r"Find \frac{1}{2}. Use \boxed{}."),
    ],
)
def test_doubled_delimiters_in_prompts_become_single(found, meant):
    assert repair_prompt_text(found) == meant


@pytest.mark.parametrize(
    "text",
    [
        r"\[ xy = -9, \\ yz = -9, \\ (z = 1) \] Use \boxed{}.",
        r"$\begin{array}{l} 1 \\(2)\\) \end{array}$",
        r"$1 \\ 2 \\(3)$",
        r"$\substack{a \\{b} \\}$",
    ],
)
def test_row_breaks_in_prompts_are_left_alone(text):
    assert repair_prompt_text(text) == text


def test_the_text_of_a_message_list_is_read_back():
    messages = [{"content": 'Say "it\'s"\n\\n twice', "role": "user"}, {"content": "é", "role": "assistant"}]
    assert read_message_list(str(messages)) == messages


@pytest.mark.parametrize("text", ["What is [{'content': 1}]?", "[{'content': 'cut", "[{'content': 3, 'role': 'user'}]", ""])
def test_other_text_is_no_message_list(text):
    assert read_message_list(text) is None


def test_repairs_are_counted_by_kind():
    repairs = Repairs()
    assert not repairs
    repair([{"role": "user", "content": "1 + 1"}], r"\\pi", repairs)
    repair([{"role": "user", "content": r"\\(x\\)"}], "1", repairs)
    repair([{"role": "user", "content": str([{"content": "x", "role": "user"}])}], {"a": 1}, repairs)
    repair([{"role": "user", "content": "plain"}], "1", repairs)
    assert repairs == Repairs(ground_truths=1, prompts=1, message_lists=1)
    assert "1 ground truths" in str(repairs)
