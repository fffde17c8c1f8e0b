r"""One expression against another: spelling, units, exact numbers, words, bases, ratios, and then algebra."""

import re
from fractions import Fraction

from jaxgrpo.reward.number import rational
from jaxgrpo.reward.units import as_symbol, counts, differ

_UNIT = re.compile(r"(?:\\text\{([^{}]*)\}(?:\^\{(\d)\})?)+$")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_DEGREE = r"^{\circ}"
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\^\{\\circ\}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_BASED = re.compile(r"([0-9A-Za-z]+)_\{(?:\\text\{)?(\d+|two|three|four|five|six|seven|eight|nine|ten|sixteen)\}?\}")
_RATIO = re.compile(r"\d+(?::\d+)+")
_CLOCK = re.compile(r"(?:[01]?\d|2[0-3]):[0-5]\d")
_INTRODUCTION = re.compile(r"\\text\{[^{}]*(?:is|are|:|=)\}(?=.)")
_WORD = re.compile(r"[A-Za-z]{4,}|[A-Z]{2,}|(?i:yes|no|odd|all|any|one|two|six|ten|red)")
_RELATION = re.compile(r"(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|[<>]) ?")
_BASE_NAMES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}


def same_scalar(gold: str, answer: str) -> bool:
    """Whether two canonical expressions have the same value; `gold` is the reference."""
    if gold == answer:
        return True
    gold, answer = _angles(gold), _angles(answer)
    gold_body, gold_unit = _unit(gold)
    body, unit = _unit(answer)
    if differ(gold_unit, unit):
        return False
    if bool(gold_unit) != bool(unit):
        gold_body += as_symbol(gold_unit, body)
        body += as_symbol(unit, gold_body)
    if gold_unit != unit and "%" in (gold_unit, unit):
        return _same_percent((gold_body, gold_unit), (body, unit))
    if gold_unit != unit and "°" in (gold_unit, unit) and r"\pi" in gold_body + body:
        gold_body, body = (_radians(*side) for side in ((gold_body, gold_unit), (body, unit)))
    return _same_value(_TEXT.sub(r"\1", gold_body), _TEXT.sub(r"\1", body))


def _unit(text: str) -> tuple[str, str]:
    r"""(expression, unit): the percent or degree sign, or \text{...} that follows a value. The unit may be ""."""
    text = _INTRODUCTION.sub("", text, count=1) if text.startswith(r"\text") else text
    if text.endswith(r"\%"):
        return text[:-2], "%"
    if text.endswith(_DEGREE):
        return text[: -len(_DEGREE)], "°"
    match = _UNIT.search(text)
    if match and match.start() and text[match.start() - 1] not in "+-*/=(,^_ ":
        words = _TEXT.findall(match.group())
        if all(counts(word) for word in words if word):
            known = [word for word in words if word.startswith("@")]
            return text[: match.start()], known[0] if known else words[-1].casefold() + (match[2] or "")
    return text, ""


def _angles(text: str) -> str:
    """Degrees inside a trigonometric function as radians."""
    if not _TRIGONOMETRIC.search(text):
        return text
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)


def _same_percent(gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    """50% is 50 with its unit, or 1/2; 50 alone is never 1/2."""
    values = [rational(body) for body, _ in (gold, answer)]
    if None in values:
        return _same_value(gold[0], answer[0])
    hundredths = [value / 100 if unit == "%" else value for value, (_, unit) in zip(values, (gold, answer), strict=True)]
    return values[0] == values[1] or hundredths[0] == hundredths[1]


def _radians(body: str, unit: str) -> str:
    return rf"\frac{{({body})\cdot\pi}}{{180}}" if unit == "°" else body


def _same_value(gold: str, answer: str) -> bool:
    if gold == answer or (gold.casefold() == answer.casefold() and _WORD.fullmatch(gold)):
        return True
    if not answer or _WORD.fullmatch(gold) or re.search(r"\\ldots", gold + answer):
        return False
    exact, value = rational(gold), rational(answer)
    if exact is not None and value is not None:
        return exact == value
    chains = _chain(gold), _chain(answer)
    if chains != (None, None):
        return None not in chains and _same_chain(*chains)
    gold, answer = _decimal_base(gold, answer), _decimal_base(answer, gold)
    for form in (_based, _ratio):
        sides = form(gold), form(answer)
        if sides != (None, None):
            return _same_form(gold, answer, *sides)
    from jaxgrpo.reward.algebra import equal  # sympy takes seconds to import; most answers never need it

    return equal(gold, answer)


def _chain(text: str) -> list[tuple[str, str, str]] | None:
    r"""[(smaller, "<", greater), ...] for a chain of inequalities, whichever way it is written; None for anything else."""
    terms = _RELATION.split(text)
    if len(terms) == 1 or not all(terms) or "=" in text:
        return None
    return [
        (terms[n + 1], {">": "<", r"\ge": r"\le"}[terms[n]], terms[n - 1])
        if terms[n] in (">", r"\ge")
        else (terms[n - 1], terms[n], terms[n + 1])
        for n in range(1, len(terms), 2)
    ]


def _same_chain(gold: list[tuple[str, str, str]], answer: list[tuple[str, str, str]]) -> bool:
    rest = list(answer)
    for wanted in gold:
        found = next((given for given in rest if _same_inequality(wanted, given)), None)
        if found is None:
            return False
        rest.remove(found)
    return not rest


def _same_inequality(gold: tuple[str, str, str], answer: tuple[str, str, str]) -> bool:
    if gold[1] != answer[1]:
        return False
    from jaxgrpo.reward.algebra import same_sign

    differences = [f"({high})-({low})" for low, _, high in (gold, answer)]
    return gold == answer or same_sign(*differences, positive=gold[1] != r"\ne")


def _decimal_base(text: str, other: str) -> str:
    """61 for 61_{10}, beside a number that has no base."""
    form = _based(text)
    return form[0] if form and form[1] == 10 and not _based(other) and form[0].isdigit() else text


def _based(text: str) -> tuple[str, int] | None:
    """("4210", 5) for 4210_{5}."""
    match = _BASED.fullmatch(text)
    if not match or not text[0].isdigit():
        return None
    return match[1].upper(), _BASE_NAMES.get(match[2]) or int(match[2])


def _ratio(text: str) -> tuple[Fraction, ...] | None:
    """A ratio divided by its last term; None for one that may be a time of day, which only its spelling equals."""
    if not _RATIO.fullmatch(text) or _CLOCK.fullmatch(text):
        return None
    terms = [int(term) for term in text.split(":")]
    return tuple(Fraction(term, terms[-1]) for term in terms) if terms[-1] else None


def _same_form(gold: str, answer: str, gold_form: tuple | None, form: tuple | None) -> bool:
    """Two based numbers or ratios; one of them alone equals the bare digits, or the quotient."""
    if gold_form is not None and form is not None:
        return gold_form == form
    present, bare = (gold_form, answer) if gold_form is not None else (form, gold)
    if isinstance(present[0], str):
        return gold_form is not None and bare.upper() == present[0]
    return len(present) == 2 and rational(bare) == present[0]
