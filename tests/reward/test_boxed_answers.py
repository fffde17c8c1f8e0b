import pytest

from jaxgrpo.reward.boxed import after_thinking, last_boxed


@pytest.mark.parametrize(
    ("response", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{7}, which is what was asked. " + "More words. " * 500, "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{x = \boxed{3}}", "x = 3"),
        (r"\boxed{\boxed{\frac{1}{2}}}", r"\frac{1}{2}"),
        (r"write it in \boxed{ form: \boxed{9}", "9"),
        (r"\boxed{}", ""),
        (r"} } \boxed{3} }", "3"),
        ("no box, the answer is 42", None),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        (r"\boxed{5", None),
        (r"\boxed{5} no, wait: \boxed{6", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_the_answer(response, content):
    assert last_boxed(response) == content


def test_only_the_part_after_thinking_counts():
    assert after_thinking(r"<think>\boxed{1}</think> so 2") == " so 2"
    assert last_boxed(after_thinking(r"<think>\boxed{1}</think> so 2")) is None


def test_a_megabyte_of_unclosed_boxes_takes_one_pass():
    assert last_boxed("\\boxed{" * 150_000) is None
    assert last_boxed("\\boxed{" * 50_000 + "}" * 50_000) == ""
