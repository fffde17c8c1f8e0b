"""Truths that always hold, and answers that do: such an equation says nothing but itself."""

import pytest

from jaxgrpo.reward import score

TRUTHS = {
    r"\sin^2 x+\cos^2 x=1": [r"1=\cos^2 x+\sin^2 x"],
    "(a+b)^2=a^2+2ab+b^2": ["a^2+2ab+b^2=(b+a)^2", "(a+b)^2=b^2+2ba+a^2"],
    "a(b+c)=ab+ac": ["ab+ac=a(b+c)", "ca+ba=(c+b)a"],
    "x+y=y+x": ["y+x=x+y"],
    "1+1=2": ["2=1+1"],
    r"e^{i\pi}+1=0": [r"0=1+e^{i\pi}"],
}
EMPTY = ["1=1", "0=0", "x=x", "a=a", "5=5", "2=2", "x+1=x+1", "2x=x+x", r"\pi=\pi", "(a+b)^2=(a+b)^2", "1", "0", "0=1"]


@pytest.mark.parametrize("truth", TRUTHS)
def test_an_identity_is_right_only_where_it_is_the_truths_own_equation(truth):
    assert [score("math__t", f"\\boxed{{{answer}}}", truth) for answer in (truth, *TRUTHS[truth])] == [1.0] * (
        1 + len(TRUTHS[truth])
    )
    assert [answer for answer in EMPTY if score("math__t", f"\\boxed{{{answer}}}", truth)] == []


def test_an_identity_is_no_other_truth():
    for truth in ("x=5", "y=2x", "x^2+y^2=1", "0", "1", "5", "x", "True", r"\text{Yes}", "(0,0)", r"\{1\}"):
        assert [answer for answer in EMPTY[:-3] if score("math__t", f"\\boxed{{{answer}}}", truth)] == [], truth
