r"""The outer shape of an answer: a list, tuple, interval, set, union, matrix or one expression.

Shapes are compared here, element by element, because a tuple, an interval and a set are told apart by their brackets,
which an expression tree no longer has. What is left, single expressions, goes to `scalar.same_scalar`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxgrpo.reward.latex import closing

MAX_ELEMENTS = 64

_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}")
_RELATION = re.compile(r"\\le(?![a-zA-Z]) ?|\\ge(?![a-zA-Z]) ?|<|>")
_NAME = re.compile(r"[^\d+\-*/^<>=][^+\-*/^<>=]*|\|[A-Za-z]+\|")
_VARIABLE = re.compile(r"(?!e$|i$|\\pi$|\\infty$)(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{\w+\})?")
_INFINITY = r"\infty"
_TUPLE_OF_NAMES = re.compile(r"\([a-zA-Z\\][^()+*/^=\d-]*(?:_\{\d\})?(?:,[a-zA-Z\\][^()+*/^=]*)+\)")
_BUILT_SET = re.compile(r"\\\{([a-zA-Z])(?:\\in(?![a-zA-Z]) ?\\mathbb\{R\})?(?:\||\\mid(?![a-zA-Z]) ?|:)(.+)\\\}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_KNOWN_ORDERS = (("r", "theta"), ("rho", "theta", "phi"), ("h", "k"))


@dataclass(frozen=True)
class Shape:
    """kind: "one", "list", "(", "[", "(]", "[)", "{", "union" or "matrix". text: its canonical spelling.

    label: the name it was assigned to ("x" of "x=5"), or "". items: the elements; for a matrix its rows, as lists.
    """

    kind: str
    text: str
    items: tuple["Shape", ...] = ()
    label: str = ""


def split(text: str, separator: str) -> list[str]:
    """`text` cut at every `separator` that stands outside all brackets."""
    parts, level, start, index = [], 0, 0, 0
    while index < len(text):
        if level == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            index = start = index + len(separator)
            continue
        level += (text[index] in "([{") - (text[index] in ")]}")
        index += 1
    return [*parts, text[start:]]


def shape(text: str) -> Shape:
    """The shape of canonical LaTeX `text`."""
    commas = [part for part in split(text.replace(";", ","), ",") if part]
    if len(commas) > 1:
        items = tuple(item for part in commas for item in _signs(part))
        named = {item.label for item in items}
        if len(named) == 1 and all(item.kind in _INTERVALS and _RELATION.search(item.text) for item in items):
            return Shape("union", text, tuple(replace(item, label="") for item in items), items[0].label)
        return Shape("list", text, items)
    built = _BUILT_SET.fullmatch(text)
    if built and (described := shape(built[2])).label == built[1]:
        return described
    label, body = _assignment(text)
    if label:
        value = shape(body)
        names = split(label[1:-1], ",") if _TUPLE_OF_NAMES.fullmatch(label) else []
        if value.kind == "(" and len(names) == len(value.items):  # (x,y)=(1,2) is x=1, y=2
            named = tuple(replace(item, label=name) for item, name in zip(value.items, names, strict=True))
            return replace(value, text=text, items=named)
        return replace(value, text=text, label=label)
    return _interval(text) or _bracketed(text)


_INTERVALS = ("(", "[", "(]", "[)")


def _signs(text: str) -> tuple[Shape, ...]:
    r"""The one or two values of `text`: a \pm b is two."""
    if r"\pm" not in text:
        return (shape(text),)
    label, body = _assignment(text)
    plus, minus = re.sub(r"\\pm ?", "+", body), re.sub(r"\\pm ?", "-", body)
    mirrored = (re.sub(r"\\mp ?", "-", plus), re.sub(r"\\mp ?", "+", minus))
    return tuple(replace(_bracketed(value.removeprefix("+")), label=label) for value in mirrored)


def _assignment(text: str) -> tuple[str, str]:
    r"""("x", "5") for "x=5", "x\in 5" or "x=10/2=5"; ("", text) for anything that gives no name a value."""
    parts = split(text, "=")
    if len(parts) == 1:
        parts = re.split(r"\\in(?![a-zA-Z]) ?", text, maxsplit=1)
    if len(parts) == 2 and not _NAME.fullmatch(parts[0]) and _VARIABLE.fullmatch(parts[1]):
        parts.reverse()
    named = len(parts) > 1 and _NAME.fullmatch(parts[0]) and "," not in _outside(parts[0])
    if not all(parts) or _RELATION.search(_outside(text)) or not (named or len(parts) > 2):
        return "", text
    return (parts[0] if named else ""), parts[-1]


def _outside(text: str) -> str:
    """`text` without what its brackets hold."""
    kept, index = [], 0
    while index < len(text):
        if text[index] in "([{":
            index = closing(text, index) + 1
            continue
        kept.append(text[index])
        index += 1
    return "".join(kept)


def _interval(text: str) -> Shape | None:
    """An inequality in one variable as the interval it describes."""
    signs = [sign.group().strip() for sign in _RELATION.finditer(text)]
    terms = _RELATION.split(text)
    if not signs or not all(terms):
        return None
    rising = [sign in ("<", r"\le") for sign in signs]
    closed = [sign in (r"\le", r"\ge") for sign in signs]
    if len(signs) == 2 and _VARIABLE.fullmatch(terms[1]) and rising[0] == rising[1]:
        low, name, high = terms if rising[0] else reversed(terms)
        low_closed, high_closed = closed if rising[0] else reversed(closed)
    elif len(signs) == 1 and bool(_VARIABLE.fullmatch(terms[0])) != bool(_VARIABLE.fullmatch(terms[1])):
        first = bool(_VARIABLE.fullmatch(terms[0]))
        name, bound = terms if first else reversed(terms)
        low, high = ("-" + _INFINITY, bound) if rising[0] == first else (bound, _INFINITY)
        low_closed, high_closed = closed[0] and high == _INFINITY, closed[0] and high != _INFINITY
    else:
        return None
    kind = {(True, True): "[", (False, False): "(", (True, False): "[)", (False, True): "(]"}[low_closed, high_closed]
    return Shape(kind, text, (Shape("one", low), Shape("one", high)), name)


def _bracketed(text: str) -> Shape:
    if text == r"\mathbb{R}":
        return Shape("(", text, (Shape("one", "-" + _INFINITY), Shape("one", _INFINITY)))
    unions = re.split(r"\\cup(?![a-zA-Z]) ?", text)
    if len(unions) > 1 and all(unions):
        return Shape("union", text, tuple(_bracketed(part) for part in unions))
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row for row in re.split(r"\\cr ?", matrix[2]) if row]
        return Shape("matrix", text, tuple(Shape("list", row, tuple(map(shape, row.split("&")))) for row in rows))
    if text.startswith(r"\{") and text.endswith(r"\}") and closing(text, 1) == len(text) - 1:
        inside = text[2:-2]
        return Shape("{", text, tuple(item for part in split(inside, ",") if part for item in _signs(part)))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closing(text, 0) == len(text) - 1:
        parts = split(text[1:-1], ",")
        if len(parts) > 1 and all(parts):
            kind = text[0] if text[0] + text[-1] in ("()", "[]") else text[0] + text[-1]
            return Shape(kind, text, tuple(map(shape, parts)))
        if text[0] + text[-1] == "()" and parts[0]:
            return replace(shape(parts[0]), text=text)
    if r"\pm" in text and _outside(text) != _outside(text).replace(r"\pm", ""):
        return Shape("list", text, _signs(text))
    return Shape("one", text)


Same = Callable[[str, str], bool]


def same(gold: Shape, answer: Shape, same_scalar: Same) -> bool:
    """Whether `answer` is the object that `gold` is; `same_scalar(gold, answer)` decides single expressions."""
    if gold.label and answer.label and not _same_label(gold.label, answer.label):
        return gold.kind == answer.kind == "one" and same_scalar(gold.text, answer.text)
    if gold.kind == answer.kind == "one":
        if bool(gold.label) != bool(answer.label) and all("=" in _outside(side.text) for side in (gold, answer)):
            return same_scalar(gold.text, answer.text)  # y=2x+3 and 2x-y+3=0: the equations, not the values
        return same_scalar(_value(gold), _value(answer))
    if max(len(gold.items), len(answer.items)) > MAX_ELEMENTS:
        return False  # beyond this only the same spelling counts, and that was compared before
    kinds = {gold.kind, answer.kind}
    if kinds in ({"{"}, {"{", "list"}, {"list"}, {"union"}):
        return _unordered(gold.items, answer.items, same_scalar)
    if len(kinds) == 1 or kinds == {"(", "list"}:  # a list may lack the parentheses of a tuple, never its order
        return _same_tuple(gold, answer, same_scalar)
    if kinds == {"matrix", "("}:
        rows, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        column = tuple(row.items[0] for row in rows.items if len(row.items) == 1)
        pair = (column, other.items) if gold.kind == "matrix" else (other.items, column)
        return len(column) == len(rows.items) and _ordered(*pair, same_scalar)
    if kinds == {"{", "one"}:
        items = (gold.items, (answer,)) if gold.kind == "{" else ((gold,), answer.items)
        return _unordered(*items, same_scalar)
    return False


def _same_tuple(gold: Shape, answer: Shape, same_scalar: Same) -> bool:
    """Element by element; values with names stand in the order of the names, which has to be known."""
    named = [side for side in (gold, answer) if all(item.label for item in side.items)]
    if len(named) == 2:
        return _unordered(gold.items, answer.items, same_scalar)
    sides = [side.items for side in (gold, answer)]
    if named:
        explicit = named[0].kind == "("  # (m,b)=(2,3) says its order itself, x=1, y=2 does not
        items = _in_order(named[0].items) or (named[0].items if explicit else None)
        if items is None:
            return False
        sides[1 if named[0] is answer else 0] = tuple(replace(item, text=_value(item), label="") for item in items)
    return _ordered(*sides, same_scalar)


def _in_order(items: tuple[Shape, ...]) -> tuple[Shape, ...] | None:
    """`items` in the order that their names have as coordinates: x, y, z or x_1, x_2; None for other names."""
    names = [re.sub(r"[\\{} ]", "", item.label) for item in items]
    if len(set(names)) < len(names):
        return None  # x=1, x=2 are two answers, not one pair
    for order in _KNOWN_ORDERS:
        if set(names) == set(order):
            return tuple(items[names.index(name)] for name in order)
    numbered = [re.fullmatch(r"([a-zA-Z])_(\d+)", name) for name in names]
    if all(len(name) == 1 for name in names):
        places = [_ALPHABET.find(name.casefold()) for name in names]
    elif all(numbered) and len({match[1] for match in numbered}) == 1:
        places = [int(match[2]) for match in numbered]
    else:
        return None
    first = min(places)
    if first < 0 or sorted(places) != list(range(first, first + len(places))):
        return None
    return tuple(items[places.index(place)] for place in sorted(places))


def _value(item: Shape) -> str:
    """The expression itself, without the name it was given."""
    return _assignment(item.text)[1] if item.label else item.text


def _same_label(first: str, second: str) -> bool:
    return re.sub(r"[{}]", "", first).casefold() == re.sub(r"[{}]", "", second).casefold()


def _ordered(gold: tuple[Shape, ...], answer: tuple[Shape, ...], same_scalar: Same) -> bool:
    return len(gold) == len(answer) and all(same(g, a, same_scalar) for g, a in zip(gold, answer, strict=True))


def _unordered(gold: tuple[Shape, ...], answer: tuple[Shape, ...], same_scalar: Same) -> bool:
    if len(gold) != len(answer):
        return False
    rest = list(answer)
    for wanted in gold:
        # equal spellings first, so that ordinary lists need no algebra
        rest.sort(key=lambda item: item.text != wanted.text)
        found = next((index for index, item in enumerate(rest) if same(wanted, item, same_scalar)), None)
        if found is None:
            return False
        del rest[found]
    return True
