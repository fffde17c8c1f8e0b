"""Answers to multiple-choice questions: a letter, alone or before its option's text."""

import re

_BLANK = re.compile(r"\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\\(?:left|right)(?![a-zA-Z])|\$|\s")
_WRAPPED = re.compile(r"\{?\\(?:text\w{0,6}|math\w\w|mbox|boldsymbol|bf|rm)\s*\{?\s*([^{}]*)\}?\}?(.*)", re.DOTALL)
_ASKED = r"(?i:(?:the +)?(?:correct +|final +|right +)?(?:answer|option|choice)(?: +is)? *[:-]? *){0,2}"
_LETTER = re.compile(rf"{_ASKED}(?:\(([A-J])\)|\[([A-J])\]|([A-J])\)?)[.:]?")
_LABELLED = re.compile(rf"{_ASKED}(?:\(([A-J])\) *[.:]? +|\[([A-J])\] +|([A-J]) *[.:)] *)(?=\S)(.*)", re.DOTALL)
_OTHER = re.compile(r"\([A-J]\)|(?<![A-Za-z\\])[A-J][.):]|(?:\bor\b|\band\b|[,/])\W*[A-J]\W*$|^\W*[A-J]\W*$")
_JUDGED = re.compile(r"(?:[{}]|\\text)*\s*(?i:(?:is|isn|was|are|can|cannot|does|should)\b|(?:wrong|incorrect|not correct)\W*$)")
_OPERATOR = re.compile(r"[-+*/^=_!<>'(|]|\\(?:cdot|times|pm|le|ge|frac\{d)")


def choice(text: str) -> tuple[str, str] | None:
    """(letter, text of the option or "") of an answer that chooses one of A to J; None for any other, or for two letters."""
    text = _BLANK.sub(" ", text.replace("**", "")).strip()
    wrapped = _WRAPPED.fullmatch(text)
    head, rest = (wrapped[1].strip(), wrapped[2].strip()) if wrapped else (text, "")
    alone, labelled = _LETTER.fullmatch(head), _LABELLED.fullmatch(head)
    if alone:
        letter, option = next(filter(None, alone.groups())), rest
    elif labelled:
        letter, option = next(filter(None, labelled.groups()[:3])), f"{labelled[4]} {rest}".strip()
    else:
        return None
    if option and (_JUDGED.match(option) or _OTHER.search(option) or (alone and _OPERATOR.match(option))):
        return None
    return letter, option.strip(" .:")
