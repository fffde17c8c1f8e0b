r"""SuperGPQA: one option letter A-J in the last \boxed{...}. No letter is ever guessed or picked out of a sentence."""

import re

from jaxgrpo.reward.boxed import after_thinking, last_boxed

_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|bf|rm)(?![a-zA-Z])|[{}$*~]|\\[,;:! ]")
_LETTER = re.compile(
    r"(?:(?:the )?(?:final |correct )?(?:answer|option|choice)(?: is)?\s*:?\s*)?\(?([A-J])\)?(?:\s*[.:,)]\s*(.*))?",
    re.IGNORECASE | re.DOTALL,
)
_SECOND = re.compile(r"(?<![A-Za-z])[A-J](?:[).:]|\s*$)")


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the box holds the reference letter, alone or as in "(C)", "C. 0.33g" or "Answer: C", else 0.0.

    Two letters in the box are no answer. Raises ValueError when the ground truth is not one letter A-J.
    """
    gold = str(ground_truth).strip().upper()
    if not re.fullmatch("[A-J]", gold):
        raise ValueError(f"supergpqa: the ground truth must be one letter A-J, got {ground_truth!r}")
    box = last_boxed(after_thinking(response))
    if box is None or len(box) > 400:
        return 0.0
    match = _LETTER.fullmatch(_MARKUP.sub("", box).strip())
    if not match or _SECOND.search(match[2] or ""):
        return 0.0
    return float(match[1].upper() == gold)
