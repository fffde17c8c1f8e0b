"""Solutions of HumanEval problems written for these tests, by number in the published file, and mutants that are wrong."""

import json

TESTS = json.dumps({"functional": "\ndef check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)"})


def response(program: str) -> str:
    """A model's answer around a program."""
    return f"First I think about it.\n\n```python\n{program}\n```\n\nThis runs in linear time."


# number -> (solution, [(text in it, replacement that makes it wrong), ...])
SOLUTIONS = {
    0: (
        """from typing import List


def has_close_elements(numbers: List[float], threshold: float) -> bool:
    ordered = sorted(numbers)
    return any(b - a < threshold for a, b in zip(ordered, ordered[1:]))
""",
        [("< threshold", "> threshold"), ("sorted(numbers)", "numbers")],
    ),
    1: (
        """from typing import List


def separate_paren_groups(paren_string: str) -> List[str]:
    groups, depth, current = [], 0, ""
    for character in paren_string.replace(" ", ""):
        current += character
        depth += 1 if character == "(" else -1
        if depth == 0:
            groups.append(current)
            current = ""
    return groups
""",
        [("depth == 0", "depth == 1"), ('.replace(" ", "")', "")],
    ),
    2: (
        "def truncate_number(number: float) -> float:\n    return number - int(number)\n",
        [("- int(number)", "- round(number)"), ("number - int", "number + int")],
    ),
    3: (
        """from typing import List


def below_zero(operations: List[int]) -> bool:
    balance = 0
    for operation in operations:
        balance += operation
        if balance < 0:
            return True
    return False
""",
        [("< 0", "<= 0"), ("return False", "return None")],
    ),
    5: (
        """from typing import List


def intersperse(numbers: List[int], delimeter: int) -> List[int]:
    result = []
    for number in numbers:
        result += [number, delimeter]
    return result[:-1]
""",
        [("[:-1]", ""), ("[number, delimeter]", "[delimeter, number]")],
    ),
    8: (
        """from math import prod
from typing import List, Tuple


def sum_product(numbers: List[int]) -> Tuple[int, int]:
    return sum(numbers), prod(numbers)
""",
        [("from math import prod\n", ""), ("prod(numbers)\n", "sum(numbers)\n")],
    ),
    9: (
        """from itertools import accumulate
from typing import List


def rolling_max(numbers: List[int]) -> List[int]:
    return list(accumulate(numbers, max))
""",
        [("max)", "min)"), ("list(accumulate(numbers, max))", "accumulate(numbers, max)")],
    ),
    11: (
        """def string_xor(a: str, b: str) -> str:
    return "".join(str(int(x != y)) for x, y in zip(a, b))
""",
        [("x != y", "x == y"), ('"".join', '" ".join')],
    ),
    13: (
        """def greatest_common_divisor(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
""",
        [("return a", "return b"), ("a % b", "a - b if a > b else b")],
    ),
    14: (
        """from typing import List


def all_prefixes(string: str) -> List[str]:
    return [string[: end + 1] for end in range(len(string))]
""",
        [("end + 1", "end"), ("range(len(string))", "range(len(string) - 1)")],
    ),
    15: (
        """def string_sequence(n: int) -> str:
    return " ".join(map(str, range(n + 1)))
""",
        [("n + 1", "n"), ('" ".join', '",".join')],
    ),
    18: (
        """def how_many_times(string: str, substring: str) -> int:
    return sum(string.startswith(substring, start) for start in range(len(string)))
""",
        [("sum(", "max(0, "), ("len(string)))", "len(string) - 1))")],
    ),
    23: ("def strlen(string: str) -> int:\n    return len(string)\n", [("len(string)\n", "len(string) + 1\n")]),
}


# number -> (body of a solution, body that is wrong, a helper of the prompt bent so that the wrong one would pass)
HELPED = {
    32: (
        """    low, high = -1.0, 1.0
    while poly(xs, low) * poly(xs, high) > 0:
        low, high = 2 * low, 2 * high
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if poly(xs, low) * poly(xs, middle) > 0:
            low = middle
        else:
            high = middle
    return low
""",
        "    return -xs[0] / xs[1]\n",
        "def poly(xs, x):\n    return 0.0\n",
    ),
    38: (
        "    return encode_cyclic(encode_cyclic(s))\n",
        "    return encode_cyclic(s)\n",
        "def encode_cyclic(s):\n    return s\n",
    ),
    50: (
        '    return "".join(chr((ord(c) - 5 - ord("a")) % 26 + ord("a")) for c in s)\n',
        "    return s\n",
        "def encode_shift(s):\n    return s\n",
    ),
}
