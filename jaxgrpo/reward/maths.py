r"""Mathematics with a final answer in \boxed{...}: guru maths, MATH-500, AIME and AMC.

Only the content of the last box counts; without one the reward is 0. Deviations from the paper's grader, each on
purpose: nothing outside the box is ever rewarded, answers with \pi are graded like all others, a number is not equal
to 100 times itself, and no rounding: 0.333 is not 1/3.
"""

from functools import lru_cache

from jaxgrpo.reward.boxed import after_thinking, last_boxed
from jaxgrpo.reward.choice import choice
from jaxgrpo.reward.latex import canonical
from jaxgrpo.reward.scalar import same_scalar
from jaxgrpo.reward.structure import Shape, same, shape, split

MAX_ANSWER = 400  # characters; no reference answer of the paper's data has more than 90


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the boxed answer equals `ground_truth` (LaTeX or a number), else 0.0.

    Raises ValueError when the ground truth is empty, or neither text nor a number.
    """
    gold = reference(ground_truth)
    answer = last_boxed(after_thinking(response))
    return float(answer is not None and equivalent(gold, answer))


def decisive(response: str, ground_truth: object, extra_info: object = None) -> list:
    """The answer and the truth: all that a grade depends on."""
    return [last_boxed(after_thinking(response)), ground_truth]


def reference(ground_truth: object) -> str:
    """The ground truth as text; one that is itself boxed is unboxed."""
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | int | float):
        raise ValueError(f"the ground truth must be text or a number, got {ground_truth!r}")
    text = str(ground_truth).strip()
    text = last_boxed(text) or text
    if not canonical(text):
        raise ValueError(f"the ground truth is empty: {ground_truth!r}")
    return text


def equivalent(gold: str, answer: str) -> bool:
    """Whether two LaTeX answers are the same; an answer far longer than the reference never is."""
    if len(answer) > max(MAX_ANSWER, 2 * len(gold)):
        return False
    return _verdict(gold, answer)


@lru_cache(maxsize=16384)
def _verdict(gold: str, answer: str) -> bool:
    chosen = choice(gold), choice(answer)
    if None not in chosen:
        (letter, option), (given, text) = chosen
        return letter == given and (not (option and text) or _verdict(option, text))
    wanted, given = _shape(gold), _shape(answer)
    if not given.text:
        return False
    if wanted.text == given.text:
        return True
    sides = split(given.text, "=")
    if len(sides) > 1 and len(set(sides)) == 1:
        return False  # 1=1 and x=x say nothing
    return same(wanted, given, same_scalar)


@lru_cache(maxsize=16384)
def _shape(text: str) -> Shape:
    return shape(canonical(text))
