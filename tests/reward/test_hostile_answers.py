import time

import pytest

from jaxgrpo.reward import Grade, GraderPool

HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "short tower": "9^{9^9}",
    "python tower": "9**9**9**9",
    "tower of twos": "2^{2^{2^{2^{2^2}}}}",
    "tower of e": "e^{e^{e^{e^{e^e}}}}",
    "variable tower": "x^{x^{x^{x^x}}}",
    "power": "2^{1000000000}",
    "odd power": "3^{99999999}",
    "negative power": "10^{-100000}",
    "power of ten powers": "10^{10^{10}}",
    "sine of a huge number": r"\sin(10^{10^{10}})",
    "root of a tower": r"\sqrt{9^{9^{9}}}",
    "root of a high order": r"\sqrt[100000]{2}",
    "nested factorials": "((9!)!)!",
    "repeated factorials": "n!!!!!!!!",
    "symbolic factorials": "((((((n!)!)!)!)!)!)!",
    "factorial of a power": "(10^9)!",
    "large factorial": "100000!",
    "binomial": r"\binom{1000000}{500000}",
    "large binomial": r"\binom{10^{9}}{5}",
    "binomial power": r"\binom{n}{k}^{500}",
    "sum": r"\sum_{k=1}^{100000000} k^k",
    "product": r"\prod_{k=1}^{10^8} k",
    "integral": r"\int_0^1 e^{-x^2}\sin(x^x) dx",
    "triple integral": r"\int \int \int x^x dx dx dx",
    "limit": r"\lim_{x\to0}\frac{\sin x}{x}",
    "derivative": r"\frac{d}{dx}x^{x^x}",
    "binomial expansion": "(x+1)^{100000}",
    "trinomial expansion": "(x+y+z)^{5000}",
    "sixth-degree expansion": "(a+b+c+d+e+f)^{60}",
    "difference of expansions": "(x+1)^{9999}-(x-1)^{9999}",
    "power of a surd": r"(1+\sqrt{2})^{9999}",
    "sum of surds": r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{20}",
    "nested radicals": r"\sqrt{2+\sqrt{2+\sqrt{2+\sqrt{2+\sqrt{2+\sqrt{2}}}}}}",
    "nested cosines": r"\cos(\cos(\cos(\cos(\cos(\cos(x))))))",
    "trigonometric powers": r"\sin^{1000}(x)+\cos^{1000}(x)",
    "absolute values": "|x^2-5x+6|+|x^3|+|x^4-1|",
    "division by zero": r"\frac{1}{0}",
    "zero over zero": r"\frac{0}{0}",
    "slash zero": "1/0",
    "infinity minus infinity": r"\infty-\infty",
    "pole": r"\tan(\frac{\pi}{2})",
    "logarithm to base one": r"\log_{1}(5)",
    "large exponent notation": "1e400",
    "many digits": "9" * 399,
    "too many digits": "9" * 4000,
    "a megabyte of digits": "9" * 1_000_000,
    "many decimals": "0." + "3" * 380,
    "nested fractions": r"\frac{" * 200 + "1" + "}{2}" * 200,
    "nested parentheses": "(" * 300 + ")" * 300,
    "thousands of parentheses": "(" * 5000 + "1" + ")" * 5000,
    "nested braces": "{" * 190 + "1" + "}" * 190,
    "nested roots": r"\sqrt{" * 60 + "2" + "}" * 60,
    "nested subscripts": "x_{" * 50 + "1" + "}" * 50,
    "unclosed text": r"\text{" * 50,
    "NUL bytes": "\x00" * 50,
    "a megabyte of NUL bytes": "\x00" * 1_000_000,
    "lone surrogate": "\ud800",
    "boxes": r"\boxed{" * 1000,
    "long sum": "+".join(["x"] * 190),
    "long polynomial": "+".join(f"x^{{{n}}}" for n in range(50)),
    "signs": r"\pm" * 100,
    "sum of signs": "1" + "".join(rf"\pm{n}" for n in range(2, 60)),
    "set of signs": r"\{" + ",".join([r"1\pm2"] * 40) + r"\}",
    "matrix of towers": r"\begin{pmatrix}" + "&".join(["9^{9^9}"] * 20) + r"\end{pmatrix}",
    "long set": r"\{" + ",".join(str(n) for n in range(100)) + r"\}",
    "commas": "," * 300,
    "equals signs": "=" * 300,
    "inequality signs": "x<" * 100 + "1",
    "unions": r"\cup" * 100,
    "bars": "|" * 399,
    "bars around signs": "|-" * 190,
    "powers of units": r"7\text{" + "m^{2}" * 75 + "}",
    "number words": "7" + r"\text{ million}" * 26,
    "many units": "7" + r"\text{km}" * 48,
    "words of digits": "7 " + "thousand " * 44,
    "symbolic tower": "2^{n^{n^{n^{n^{n}}}}}",
    "symbolic exponential tower": "e^{e^{e^{e^{e^{x}}}}}",
    "symbolic power of a power": "(x^{n})^{10^{9}}",
    "factorials of powers": "(2^{n^{9}})!",
    "equation in other variables": "u^{7}+v^{7}-3uv=w^{5}",
    "equation of towers": "x^{x^{x}}=y^{y^{y}}",
    "chain of inequalities": "a<b" + "<b" * 190,
    "rounding down": r"\lfloor x^{x} \rfloor + \lfloor y^{y} \rfloor",
    "backslashes": "\\" * 399,
    "code": '__import__("os").system("touch /tmp/should_not_exist")',
}
GOLDS = ["5", r"\frac{n(n+1)}{2}", r"(-\infty,2)\cup(3,\infty)", r"\begin{pmatrix}1&2\end{pmatrix}"]
CPU_SECONDS = 1.0


@pytest.fixture(scope="module")
def pool():
    with GraderPool(workers=2, cpu_seconds=CPU_SECONDS) as pool:
        pool.grade([("math__x", r"\boxed{6}", "5", None)])
        yield pool


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_costs_its_own_item_only(pool, name):
    neighbours = [("math__x", rf"\boxed{{\frac{{{n}}}{{2}}}}", f"{n}/2", None) for n in range(8)]
    hostile = [("math__x", f"\\boxed{{{HOSTILE[name]}}}", gold, None) for gold in GOLDS]
    start = time.monotonic()
    grades = pool.grade(neighbours[:4] + hostile + neighbours[4:])
    assert grades[:4] + grades[8:] == [Grade(1.0)] * 8
    assert [grade.score for grade in grades[4:8]] == [0.0] * 4
    assert time.monotonic() - start < 8 * (CPU_SECONDS + 1)  # four items, each tried at most twice


def test_the_hostile_answers_are_at_least_sixty():
    assert len(HOSTILE) >= 60
