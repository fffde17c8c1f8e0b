r"""Equality of two LaTeX expressions by math-verify (sympy), with nothing in it that an answer can make explode.

The expressions are parsed without evaluation; those whose evaluation would be too large, and those that are not
finished (sums, integrals, limits), are unequal to everything but their own spelling. Decimals become fractions first,
so that nothing is compared by rounding. Values that differ in the leading digits are unequal without any algebra, and
what holds symbols is compared by its values at points (`identity`); simplification is left for what these do not settle.
"""

import logging
import math
import random
import re
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify
from sympy.core import random as sympy_random
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction

from jaxgrpo.reward.identity import identical, proportional, same_constant
from jaxgrpo.reward.latex import depth
from jaxgrpo.reward.number import decimals_as_fractions

MAX_DEPTH = 24
MAX_BITS = 250_000.0  # of an evaluated integer: 10,000! fits
MAX_FACTORIAL_BITS = 14.0  # of a factorial's argument
MAX_NODES = 400
_LARGE_BINOMIAL = re.compile(r"\\[dt]?binom\{\d{5,}\}")  # the one function that the parser evaluates by itself
_DECORATED = re.compile(r"\d(?:_\{|')")  # a subscript or prime of a number, which the parser drops
_PRIME = re.compile(r"(?<![A-Za-z\\])([A-Za-z])('+)")
_PRODUCT = re.compile(r"(\\frac\{[^{}]*\}\{[^{}]*\})(?=\\frac)")  # which the parser takes for a mixed number
_TRACE = re.compile(r"(\\[A-Za-z]+)|tr")  # which the parser takes for a function's name
_LETTERS, _COMMAND = re.compile(r"[A-Za-z]{3,}"), re.compile(r"\\[A-Za-z]+")
_FUNCTIONS = frozenset("arccos arcsin arctan cos cosh cot csc det exp gcd lcm lim log max min mod sec sin sinh tan".split())
_UNFINISHED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative, sympy.Subs)
_CASE_MATTERS = ConversionConfig(lowercase_symbols=False)

# both libraries warn once about the absent timeouts: here the worker process is the limit
logging.getLogger("math_verify").setLevel(logging.ERROR)


def equal(gold: str, answer: str) -> bool:
    """Whether two canonical LaTeX expressions are the same mathematical object. Text that is no mathematics is not."""
    if _words(answer) and not _words(gold):
        return False  # the parser would take the letters of a word for factors, slowly
    gold_tree, answer_tree = _parsed(gold), _parsed(answer)
    if gold_tree is None or answer_tree is None:
        return False
    return _same_tree(gold_tree, answer_tree)


def _same_tree(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    if isinstance(gold, Relational | BooleanFunction) or isinstance(answer, Relational | BooleanFunction):
        return _same_relation(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        verdict = (identical if gold.free_symbols or answer.free_symbols else same_constant)(gold, answer)
        if verdict is not None:
            return verdict
        if not gold.free_symbols and not answer.free_symbols and _differ(gold, answer):
            return False
        gold, answer = gold.doit(), answer.doit()  # both are small: exact integers, not estimates
        if answer.has(sympy.nan, sympy.zoo) or gold.has(sympy.nan, sympy.zoo):
            return False
    # sympy tests zeros at random points; a seed of their own makes each verdict independent of what came before
    sympy_random.seed(0)
    random.seed(0)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return gold == answer or sympy.simplify(gold - answer) == 0  # verify would call 1 and 1+10^{-90} equal
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True))


def same_sign(gold: str, answer: str, positive: bool) -> bool:
    """Whether two LaTeX expressions are the same but for a constant factor, which is not 0; `positive`: it is above 0."""
    trees = _parsed(gold), _parsed(answer)
    return all(isinstance(tree, sympy.Expr) for tree in trees) and bool(proportional(*trees, positive=positive))


def _same_relation(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    """Two equations are the same when their differences are proportional, denominators cleared. One that always holds, such as
    1=1, has no difference and says nothing: it equals an equation with the same two sides, written in any order.

    Beside an expression an equation counts only as a true statement about numbers, 2+3=5, or as a name with its value.
    """
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        verdict = proportional(_cleared(gold), _cleared(answer))
        return bool(verdict) or _sides(gold) == _sides(answer)
    if isinstance(answer, sympy.Eq) and isinstance(gold, sympy.Expr):
        sides = [answer.lhs, answer.rhs]
        if sides[0].is_Symbol or isinstance(sides[0], AppliedUndef) or (not answer.free_symbols and _same_tree(*sides)):
            return _same_tree(gold, sides[1])
    return gold == answer


def _sides(equation: sympy.Eq) -> list[str]:
    return sorted(map(_spelling, equation.args))


def _spelling(tree: sympy.Basic) -> str:
    """What is written, but for the order of terms and factors; nothing is worked out."""
    if not isinstance(tree, sympy.Add | sympy.Mul):
        return f"{tree.func.__name__}({','.join(map(_spelling, tree.args))})" if tree.args else sympy.srepr(tree)
    args, rest = [], list(tree.args)
    while rest:
        part = rest.pop()
        if part.func is tree.func:
            rest += part.args
        else:
            args.append(_spelling(part))
    return f"{tree.func.__name__}({','.join(sorted(args))})"


def _cleared(equation: sympy.Eq) -> sympy.Expr:
    difference = equation.lhs - equation.rhs
    has_denominator = any(node.exp.is_negative and node.base.free_symbols for node in difference.atoms(sympy.Pow))
    return sympy.fraction(sympy.together(difference))[0] if has_denominator else difference


def _words(text: str) -> bool:
    """Whether letters stand together that are neither a command nor a function's name."""
    return any(run not in _FUNCTIONS for run in _LETTERS.findall(_COMMAND.sub(" ", text)))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> sympy.Basic | None:
    """The unevaluated expression, i as the imaginary unit; None when `text` does not parse or must not be evaluated."""
    if depth(text) > MAX_DEPTH or "|" in text or _DECORATED.search(text) or _LARGE_BINOMIAL.search(text):
        return None
    text = _PRIME.sub(lambda match: f"{match[1]}_{{{len(match[2]) * 'p'}}}", text)  # the parser drops primes
    text = _PRODUCT.sub(r"\1\\cdot ", decimals_as_fractions(text))
    try:
        tree = latex2sympy(
            _TRACE.sub(lambda match: match[1] or "t r", text).replace(r"\cdot", r"\cdot "),
            is_real=True,
            normalization_config=None,
            conversion_config=_CASE_MATTERS,
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the parser raises plain Exception for text that is not mathematics
        return None
    if not isinstance(tree, sympy.Basic) or not _is_small(tree):
        return None
    imaginary = {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i"}
    return tree.subs(imaginary) if imaginary else tree.replace(_is_odd_root, _real_root)


def _is_odd_root(node: sympy.Basic) -> bool:
    return isinstance(node, sympy.Pow) and node.exp.is_Rational and node.exp.q % 2 == 1 < node.exp.q and _negative(node)


def _negative(power: sympy.Pow) -> bool:
    value = _number(power.base) if not power.base.free_symbols else None
    return value is not None and value.is_real and bool(value < 0)


def _real_root(power: sympy.Pow) -> sympy.Expr:
    """The real odd root of a negative number, where sympy takes the complex one."""
    return (-1) ** (power.exp.p % 2) * (-power.base) ** power.exp


def _is_small(tree: sympy.Basic) -> bool:
    nodes = 0
    for node in sympy.preorder_traversal(tree):
        nodes += 1
        if nodes > MAX_NODES or isinstance(node, _UNFINISHED):
            return False
    return all(_bits(node) <= MAX_BITS for node in sympy.preorder_traversal(tree) if isinstance(node, sympy.Expr))


def _bits(node: sympy.Basic) -> float:
    """An upper bound of log2 of |node|'s numerator or denominator once evaluated; symbols count as small.

    A power of a symbolic exponent and a function of a symbol stay as they are: they cost what their arguments do.
    """
    if isinstance(node, sympy.Rational):
        return float(max(node.p.bit_length(), node.q.bit_length()))
    if isinstance(node, sympy.Function) and node.free_symbols or isinstance(node, sympy.Pow) and node.exp.free_symbols:
        return sum(map(_bits, node.args))
    if isinstance(node, sympy.Pow):
        base, exponent = _bits(node.base), _bits(node.exp)
        return math.inf if exponent > 40 else max(base, 1.0) * 2.0**exponent
    if isinstance(node, sympy.factorial | sympy.gamma | sympy.factorial2 | sympy.subfactorial):
        bits = _bits(node.args[0])
        return math.inf if bits > MAX_FACTORIAL_BITS else 2.0**bits * bits
    if isinstance(node, sympy.binomial):
        top = _bits(node.args[0])
        return math.inf if top > 17 else 2.0**top
    inner = [_bits(argument) for argument in node.args]
    if isinstance(node, sympy.Mul | sympy.Add):
        return sum(inner, float(len(inner)))
    if isinstance(node, sympy.exp):
        return math.inf if inner[0] > 40 else 2.0 * 2.0 ** inner[0]
    return max(inner, default=2.0)


def _differ(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Whether two constants take clearly different values."""
    pair = [_number(tree) for tree in (gold, answer)]
    size = 0 if None in pair else max(abs(pair[0]), abs(pair[1]))
    return bool(size > 1e-60 and abs(pair[0] - pair[1]) > size * 1e-12)


def _number(tree: sympy.Expr) -> sympy.Expr | None:
    """The constant `tree` to 20 digits; None when it has no finite numerical value."""
    value = tree.evalf(20, maxn=400)
    parts = value.as_real_imag() if value.is_number and value.is_finite else ()
    return value if parts and all(part.is_Float or part.is_Rational for part in parts) else None
