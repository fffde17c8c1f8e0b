"""Whether two expressions with symbols are the same function: their values at points, to 110 digits.

Points lie in the domain of the truth. A symbol is positive only where the truth holds an even root, a logarithm or a
non-integer power of it (or of a product with it), and an integer where it is the exponent of something that may be
negative. Where a value could hide a difference (terms or functions too far from 1) a point refuses but does not accept.
"""

import random
from collections.abc import Iterator

import sympy
from mpmath import MPContext

MAX_SYMBOLS = 8
_DIGITS = 110
_POINTS = 48  # tried at most
_AGREEING = 5  # points that settle an identity of analytic functions
_AGREEING_PIECES = 24  # the same where absolute values cut the domain into pieces
_TRUSTED = 10.0**20  # largest ratio of terms, and largest size of a value, at which a point may accept
_SMALL_ARGUMENT = 30  # of functions that level off, such as tanh

_mp = MPContext()
_mp.dps = _DIGITS
_DIFFERENT, _SAME, _ZERO = _mp.mpf(10) ** -30, _mp.mpf(10) ** -85, _mp.mpf(10) ** -60
_LARGEST_LOG, _LARGEST_FACTORIAL = 20_000, 5_000
_HUGE = _mp.exp(_LARGEST_LOG)
_CONSTANTS = {sympy.pi: _mp.pi, sympy.E: _mp.e, sympy.I: _mp.mpc(0, 1)}
_FUNCTIONS = {
    sympy.sin: _mp.sin, sympy.cos: _mp.cos, sympy.tan: _mp.tan, sympy.cot: _mp.cot, sympy.sec: _mp.sec, sympy.csc: _mp.csc,
    sympy.asin: _mp.asin, sympy.acos: _mp.acos, sympy.atan: _mp.atan, sympy.acot: _mp.acot,
    sympy.sinh: _mp.sinh, sympy.cosh: _mp.cosh, sympy.tanh: _mp.tanh, sympy.coth: _mp.coth,
    sympy.asinh: _mp.asinh, sympy.acosh: _mp.acosh, sympy.atanh: _mp.atanh,
}  # fmt: skip
_STEPS = {sympy.floor: _mp.floor, sympy.ceiling: _mp.ceil, sympy.sign: _mp.sign}


class _Outside(Exception):
    """The point is outside the domain."""


class _Unclear(Exception):
    """The value cannot be computed, or not here."""


_NO_VALUE = (_Outside, _Unclear, ValueError, OverflowError, ZeroDivisionError)


def identical(gold: sympy.Expr, answer: sympy.Expr) -> bool | None:
    """Whether `answer` equals the truth `gold` wherever that is defined; None when values do not settle it."""
    return _compare(gold, answer, _equal)


def same_constant(gold: sympy.Expr, answer: sympy.Expr) -> bool | None:
    """Whether two expressions without symbols have the same value; None when 110 digits do not settle it."""
    left, right = _Value({}, strict=False), _Value({}, strict=False)
    try:
        verdict = _equal(left.of(gold), right.of(answer))
    except _NO_VALUE:
        return None
    return verdict if verdict is False or (left.trusted and right.trusted) else None


def proportional(gold: sympy.Expr, answer: sympy.Expr, positive: bool = False) -> bool | None:
    """Whether `answer` is `gold` times a constant, not 0 (`positive`: above 0); None when values do not settle it."""
    ratios: list = []

    def keeps_ratio(wanted, given) -> bool | None:
        if abs(wanted) < _ZERO or abs(given) < _ZERO:
            return None if abs(wanted) < _ZERO and abs(given) < _ZERO else False
        ratios.append(given / wanted)
        if positive and not _mp.re(ratios[0]) > 0:
            return False
        return _equal(ratios[0], ratios[-1])

    return _compare(gold, answer, keeps_ratio)


def _equal(wanted, given) -> bool | None:
    size, difference = max(abs(wanted), abs(given)), abs(wanted - given)
    if size < _ZERO:
        return True if difference == 0 else None
    return True if difference < size * _SAME else False if difference > size * _DIFFERENT else None


def _compare(gold: sympy.Expr, answer: sympy.Expr, agree) -> bool | None:
    names = sorted(gold.free_symbols | answer.free_symbols, key=lambda symbol: symbol.name)
    if len(names) > MAX_SYMBOLS:
        return None
    positive, (whole, must) = _positive(gold), _whole(gold, answer)
    strict = not gold.has(sympy.I) and not answer.has(sympy.I)
    pieces = gold.has(sympy.Abs) or answer.has(sympy.Abs)
    rounds = [(positive, whole | must)] + ([(set(names) - must, must)] if whole - must else [])
    for above, integers in rounds:
        needed = _AGREEING_PIECES if pieces else _AGREEING
        for point in _points(names, above, integers, _reach(gold, answer) if pieces else None):
            try:
                left, right = _Value(point, strict), _Value(point, strict=False)
                verdict = agree(left.of(gold), right.of(answer))
            except _NO_VALUE:
                continue
            if verdict is False:
                return False
            needed -= verdict is True and left.trusted and right.trusted
            if not needed:
                break
        if needed:
            return None
    return True


def _points(names: list, positive: set, integers: set, reach: float | None) -> Iterator[dict]:
    """Rational points of both signs, the same for every call; at many scales, up to ten times `reach`, if that is given."""
    generator = random.Random(0)
    for turn in range(_POINTS):
        scale = 1.0 if reach is None else (1.0, 0.1, reach, 10.0 * reach)[turn % 4]
        point = {}
        for name in names:
            sign = 1 if name in positive or generator.random() < 0.5 else -1
            if name in integers:
                point[name] = _mp.mpf(sign * generator.randint(1, 12))
            else:
                point[name] = sign * _mp.mpf(generator.randint(3 * 10**8, 29 * 10**8)) / 999_999_937 * scale
        yield point


def _reach(*trees: sympy.Expr) -> float:
    numbers = [abs(float(number)) for tree in trees for number in tree.atoms(sympy.Rational) if abs(number) < 10**12]
    return max([1.0, *numbers])


def _positive(gold: sympy.Expr) -> set:
    """Symbols of which the truth holds an even root, a non-integer power or a logarithm."""
    found: set = set()
    for node in sympy.preorder_traversal(gold):
        power = isinstance(node, sympy.Pow) and not node.exp.free_symbols and not node.exp.is_integer
        if (power and not (node.exp.is_Rational and node.exp.q % 2)) or isinstance(node, sympy.log):
            degrees = _degrees(node.args[0])
            found |= {symbol for symbol, degree in degrees.items() if degree % 2}
    return found


def _degrees(tree: sympy.Expr) -> dict:
    """The degree of each symbol in a product of symbols and positive numbers; nothing for any other expression."""
    if tree.is_Symbol:
        return {tree: 1}
    if isinstance(tree, sympy.Pow) and tree.exp.is_Integer:
        return {symbol: degree * int(tree.exp) for symbol, degree in _degrees(tree.base).items()}
    total: dict = {}
    for factor in tree.args if isinstance(tree, sympy.Mul) else ():
        if not factor.free_symbols and factor.is_positive:
            continue
        degrees = _degrees(factor)
        if not degrees:
            return {}
        for symbol, degree in degrees.items():
            total[symbol] = total.get(symbol, 0) + degree
    return total


def _whole(*trees: sympy.Expr) -> tuple[set, set]:
    """(symbols in exponents of bases with symbols, symbols in exponents of bases that are never positive)."""
    whole: set = set()
    must: set = set()
    for node in (node for tree in trees for node in sympy.preorder_traversal(tree)):
        if isinstance(node, sympy.Pow) and node.exp.free_symbols:
            if node.base.free_symbols:
                whole |= node.exp.free_symbols
            elif not node.base.is_positive:
                must |= node.exp.free_symbols
    return whole, must


class _Value:
    """Values of expressions at one point. strict: real roots and logarithms only. trusted: a difference would show."""

    def __init__(self, point: dict, strict: bool) -> None:
        self.point = point
        self.strict = strict
        self.trusted = True

    def of(self, node: sympy.Basic):
        """The value of `node`; _Outside or _Unclear when it has none."""
        value = self._of(node)
        size = abs(value)
        if not size < _HUGE:
            raise _Unclear
        self.trusted &= bool(size == 0 or 1 / _TRUSTED < size < _TRUSTED)
        return value

    def _of(self, node: sympy.Basic):
        if node.is_Symbol:
            return self.point[node]
        if node.is_Rational:
            return _mp.mpf(node.p) / node.q
        if node in _CONSTANTS:
            return +_CONSTANTS[node]
        if isinstance(node, sympy.Pow):
            return self._power(self.of(node.base), node.exp)
        values = [self.of(argument) for argument in node.args]
        if isinstance(node, sympy.Add):
            return self._sum(values)
        if isinstance(node, sympy.Mul):
            return _mp.fprod(values)
        if isinstance(node, sympy.exp):
            return self._bounded_exp(values[0])
        if isinstance(node, sympy.log):
            return _mp.fdiv(*(map(self._log, values))) if len(values) == 2 else self._log(values[0])
        return self._function(type(node), values)

    def _sum(self, terms: list):
        total, largest = _mp.fsum(terms), max(map(abs, terms))
        if any(term != 0 and abs(term) * _TRUSTED < largest for term in terms):
            self.trusted = False
        if abs(total) > largest * _ZERO:
            return total
        if abs(total) > largest * _SAME:
            raise _Unclear
        return _mp.mpf(0)

    def _power(self, base, exponent: sympy.Expr):
        power = self.of(exponent)
        if base == 0:
            if not (_mp.im(power) == 0 and power > 0):
                raise _Outside
            return _mp.mpf(0)
        if abs(power * _mp.log(base)) > _LARGEST_LOG:
            raise _Unclear
        if _mp.im(power) == 0 and _mp.isint(power):
            return base ** int(power)
        if _mp.im(base) == 0 and base < 0:
            if exponent.is_Rational and exponent.q % 2:
                return (-1) ** (exponent.p % 2) * (-base) ** power  # the real odd root
            if self.strict:
                raise _Outside
        return base**power

    def _bounded_exp(self, value):
        if abs(value) > _LARGEST_LOG:
            raise _Unclear
        return _mp.exp(value)

    def _log(self, value):
        if value == 0 or (self.strict and _mp.im(value) == 0 and value < 0):
            raise _Outside
        return _mp.log(value)

    def _function(self, kind: type, values: list):
        if kind is sympy.Abs:
            return abs(values[0])
        if kind in _STEPS:
            self.trusted = False
            return _STEPS[kind](values[0])
        if kind is sympy.UnevaluatedExpr:
            return values[0]
        if any(abs(value) > _SMALL_ARGUMENT for value in values):
            self.trusted = False
            if any(abs(value) > 10**4 for value in values):
                raise _Unclear
        if kind in _FUNCTIONS:
            value = _FUNCTIONS[kind](values[0])
            if self.strict and _mp.im(value) != 0 and all(_mp.im(argument) == 0 for argument in values):
                raise _Outside
            return value
        if kind in (sympy.factorial, sympy.gamma, sympy.binomial) and max(map(abs, values)) > _LARGEST_FACTORIAL:
            raise _Unclear
        if kind is sympy.factorial or kind is sympy.gamma:
            return _mp.gamma(values[0] + (kind is sympy.factorial))
        if kind is sympy.binomial:
            return _mp.binomial(*values)
        raise _Unclear
