r"""SuperGPQA: one option letter A-J in the last \boxed{...}. No letter is ever guessed or picked out of a sentence.

The letter may have an introduction ("Final answer - C"), brackets, and its option's text behind a sign: in "D. Vitamin C" the
answer is D. Two options, such as "C) or D", "A, B or C maybe" or "A. one B. two", are no answer.
"""

import re
import unicodedata

from jaxgrpo.reward.boxed import after_thinking, last_boxed

_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|hbox|bf|rm|left|right|quad|qquad)(?![a-zA-Z])|[{}$*~`]"
)
_SPACE = re.compile(r"\\[,;:! ]|\s+")
_LETTER = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:(?:the|my) )?(?:(?:final|correct|best|right) )*"
    r"(?:(?:answer|option|choice|letter)\s*(?:is|[:=-])*\s*(?:(?:the )?(?:option|choice|letter) )?)?"
    r"(?:[(\[]([A-J])[)\]]|([A-J])(?=$|[.:,)\]]| - | is ))(.*)",
    re.IGNORECASE,
)
_PRAISE = re.compile(r"(?:is )?(?:the )?(?:(?:final|correct|best|right) ?)*(?:answer|option|choice)?\.?", re.IGNORECASE)
_SIGNS = re.compile(r"[.:,)\]]+|- ")
_NEXT = re.compile(
    r"(?:(?i:or|and|nor|maybe|perhaps|possibly|option|choice)\b|[&/,;|+ -])+[(\[]?[A-J](?![A-Za-z'])"
    r"|[(\[]?[A-J](?:[).:\],;/&]|$| (?i:or|and)\b)"
)
_MARKER = re.compile(r"(?<![\w'-])(?:[(\[][A-J][)\]]|[A-J][).:]) \S")
_OR = re.compile(r"\b(?i:or (?:maybe |perhaps |possibly |option |choice )*)[(\[]?[A-J](?![A-Za-z'])")
_LONE = re.compile(r"(?<![\w'-])[A-J](?![\w'-])")


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the box holds the reference letter, alone or as in "(C)", "C. 0.33g" or "Answer: C", else 0.0.

    Two letters in the box are no answer. Raises ValueError when the ground truth is not one letter A-J.
    """
    gold = str(ground_truth).strip().upper()
    if not re.fullmatch("[A-J]", gold):
        raise ValueError(f"supergpqa: the ground truth must be one letter A-J, got {ground_truth!r}")
    box = last_boxed(after_thinking(response))
    return float(box is not None and len(box) <= 400 and _letter(box) == gold)


def _letter(box: str) -> str | None:
    """The one letter that is chosen in a box, or None."""
    text = unicodedata.normalize("NFKC", _SPACE.sub(" ", box))
    text = re.sub("[‐-―−]", "-", _MARKUP.sub("", text))
    match = _LETTER.fullmatch(_SPACE.sub(" ", text).strip())
    if not match:
        return None
    bracketed, bare, rest = match.groups()
    letter, rest = (bracketed or bare).upper(), rest.strip()
    if _PRAISE.fullmatch(rest):
        return letter
    sign = _SIGNS.match(rest)
    words = rest[sign.end() :].strip() if sign else rest
    words = words if letter in match.groups() else words.upper()
    if sign is None and not bracketed or re.match(r"\.[A-Za-z]\.", rest):
        return None  # a sentence, or an abbreviation such as "B.C."
    listed = sign is not None and "," in sign.group() and _LONE.search(words)
    either = words.casefold().startswith(("either ", "neither "))
    if listed or _NEXT.match(words) or _MARKER.search(words) or _OR.search(words) and not either:
        return None
    return letter
