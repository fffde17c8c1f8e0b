r"""GSM8K: the last \boxed{...}, or without any box the data set's own "#### 18"; never any other number.

Behind the number of "#### 42 apples" may stand words and units, as long as they leave one number and do not change its value.
"""

import re

from jaxgrpo.reward.boxed import after_thinking, last_boxed
from jaxgrpo.reward.maths import equivalent, reference

_MARKED = re.compile(r"####[ \t]*([^\n#]+)")
_NUMBER = re.compile(r"[-+−]?\s*[$€£]?\s*[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?(?:[ \t]*%)?")
_WORDS_ONLY = re.compile(r"[*_`]*(?:[.,;:!?]*(?=\s|$)|/(?=[a-zA-Z])|-(?=[a-zA-Z]{2}))[^\d=+^\\<>]*")
_REASON = re.compile(r"(?<=\w)[ \t]*,?[ \t](?:because|since|as|which|where)[ \t]")
# right after the number these make another value of it; a letter alone may be a factor
_OPERATORS = frozenset(
    "to through till until plus minus times over divided multiplied by squared cubed point pi sqrt factorial mod".split()
)
# and these anywhere, or they are further numbers
_NUMERALS = frozenset(
    """or zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion dozen lakh crore
    mn bn half halve third fourth fifth sixth eighth tenth hundredth thousandth quarter""".split()
)


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the final answer equals `ground_truth` (a number as text), else 0.0; ValueError when that is empty."""
    gold = reference(ground_truth).rpartition("####")[2]
    text = after_thinking(response)
    answer = last_boxed(text)
    if answer is not None or "\\boxed" in text:
        return float(answer is not None and equivalent(gold, answer))
    marked = _MARKED.findall(text)
    if not marked:
        return 0.0
    answer = marked[-1].strip().strip("*_`").strip()
    number = _number(answer)
    return float(equivalent(gold, answer) or number is not None and equivalent(gold, number))


def _number(text: str) -> str | None:
    """The number that `text` begins with, when only words follow that leave it the only one."""
    text = _REASON.split(text, maxsplit=1)[0]
    number = _NUMBER.match(text)
    rest = text[number.end() :] if number else ""
    if not number or not _WORDS_ONLY.fullmatch(rest):
        return None
    words = re.findall(r"[^\W\d_]+", rest.casefold())
    factor = words and (words[0] in _OPERATORS or len(words[0]) == 1 and words[0] != "a")
    coins = words[:1] in (["quarter"], ["quarters"])
    if factor or any(word.removesuffix("s") in _NUMERALS for word in words[coins:]):
        return None
    return number.group()
