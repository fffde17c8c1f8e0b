r"""GSM8K: the last \boxed{...}, or without any box the data set's own "#### 18"; never any other number."""

import re

from jaxgrpo.reward.boxed import after_thinking, last_boxed
from jaxgrpo.reward.maths import equivalent, reference

_MARKED = re.compile(r"####[ \t]*([^\n]+)")


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the final answer equals `ground_truth` (a number as text), else 0.0; ValueError when that is empty."""
    gold = reference(ground_truth).rpartition("####")[2]
    text = after_thinking(response)
    answer = last_boxed(text)
    if answer is None and "\\boxed" not in text:
        marked = _MARKED.findall(text)
        answer = marked[-1].strip() if marked else None
    return float(answer is not None and equivalent(gold, answer))
