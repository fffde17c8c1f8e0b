r"""Exact rational numbers written in LaTeX: integers, decimals, repeating decimals, fractions, mixed numbers."""

import re
from fractions import Fraction

_PLAIN = r"\d+(?:\.\d*)?|\.\d+"
_SIGNED = rf"[+-]?(?:{_PLAIN})"
_FRACTION = re.compile(rf"([+-]*)\\frac\{{({_SIGNED})\}}\{{({_SIGNED})\}}")
_SLASHED = re.compile(rf"([+-]*)\(?({_SIGNED})\)?/\(?({_SIGNED})\)?")
_MIXED = re.compile(r"([+-]*)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_DECIMAL = re.compile(rf"([+-]*)({_PLAIN})")
_REPEATING = re.compile(r"([+-]*)(\d*)\.(\d*)\\(?:overline|bar|dot)\{(\d+)\}")
_SCIENTIFIC = re.compile(rf"([+-]*)({_PLAIN})(?:\\cdot ?10\^\{{([+-]?\d{{1,3}})\}}|[eE]([+-]?\d{{1,3}}))")


def _sign(signs: str) -> int:
    return -1 if signs.count("-") % 2 else 1


def _mixed(match: re.Match) -> Fraction:
    signs, whole, top, bottom = match.groups()
    return _sign(signs) * (int(whole) + Fraction(int(top), int(bottom)))


def _quotient(match: re.Match) -> Fraction:
    signs, top, bottom = match.groups()
    return _sign(signs) * Fraction(top) / Fraction(bottom)


def _decimal(match: re.Match) -> Fraction:
    return _sign(match[1]) * Fraction(match[2])


def _repeating(match: re.Match) -> Fraction:
    signs, whole, fixed, period = match.groups()
    head = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return _sign(signs) * (head + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed)))


def _scientific(match: re.Match) -> Fraction:
    signs, mantissa, power, short = match.groups()
    return _sign(signs) * Fraction(mantissa) * Fraction(10) ** int(power or short)


_FORMS = (
    (_DECIMAL, _decimal),
    (_FRACTION, _quotient),
    (_MIXED, _mixed),
    (_SLASHED, _quotient),
    (_REPEATING, _repeating),
    (_SCIENTIFIC, _scientific),
)


def rational(text: str) -> Fraction | None:
    """The exact value of canonical LaTeX `text`; None when it has none of the forms above or divides by 0."""
    for pattern, value in _FORMS:
        match = pattern.fullmatch(text)
        if match:
            try:
                return value(match)
            except ZeroDivisionError:
                return None
    return None


def decimals_as_fractions(text: str) -> str:
    r"""`text` with every decimal as a \frac, so that no binary floating point enters the algebra."""

    def fraction(match: re.Match) -> str:
        value = Fraction(match.group())
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    return re.sub(r"\d+\.\d*|\.\d+", fraction, text)
