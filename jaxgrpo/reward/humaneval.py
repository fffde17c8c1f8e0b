r"""HumanEval: the last fenced Python block that defines the function asked for, run with the set's own tests in a sandbox.

In front of it stand what precedes the function in the prompt (`extra_info["prefix"]`, which the loader fills) and the imports,
functions, classes and assignments of the answer's other blocks. Without such a block the last one that returns something is
taken for the function's body, where `extra_info["signature"]`, or the end of the prefix, holds its head. The tests see the
helpers of the prompt as the prompt has them.

Right means that the tests ran to their end within the limits of `sandbox.Limits`. Code outside of a fence is never run, as in
the paper. Two deviations: the paper ran all blocks of a response one after the other, usage examples included, and took exit
code 0 for success, which a program that leaves early has too.
"""

import json
import re

from jaxgrpo.reward import fenced, sandbox
from jaxgrpo.reward.boxed import after_thinking

_CHECKED = re.compile(r"^check\((\w+)\)\s*$", re.MULTILINE)
_GIVES_BACK = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)
_OPEN_LINE = (":", "(", "[", "{", ",", "\\")
MAX_PROGRAM = 100_000  # characters

# Each text is compiled by itself: a __future__ import may begin the answer. Classes look for names in their module.
_PROGRAM = """\
import sys
module = sys.modules["solution"] = type(sys)("solution")
answer = module.__dict__

def run(text, names, where):
    exec(compile(text, where, "exec", dont_inherit=True), names)

def define(text, names):
    import ast
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    try:
        body = ast.parse(text).body
    except Exception:
        return
    future = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    for node in body:
        if isinstance(node, kept) and node not in future:
            try:
                run(ast.Module([*future, node], []), names, "another block")
            except Exception:
                pass

run({prefix!r}, answer, "prompt")
for text in {others!r}:
    define(text, answer)
run({main!r}, answer, "answer")
tested = dict(answer)
run({prefix!r}, tested, "prompt")
run({tests!r}, tested, "tests")
"""


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the tests pass, else 0.0. ground_truth: {"functional": tests that end with check(NAME)}, also as JSON text.

    Raises ValueError when the ground truth has no such tests, SandboxError when the sandbox cannot start.
    """
    tests, name = _tests(ground_truth)
    prefix, signature = _given(extra_info, name)
    text = after_thinking(response)
    main = solution(text, name, signature)
    if main is None:
        return 0.0
    others = [block for block in fenced.python(text) if block != main]
    if len(main) + sum(map(len, others)) > MAX_PROGRAM:
        return 0.0
    return float(sandbox.run(_PROGRAM.format(prefix=prefix, others=others, main=main, tests=tests)).passed)


def solution(response: str, name: str, signature: str = "") -> str | None:
    """The last fenced block of `response` that defines `name`; None when no complete block does.

    signature: the function's head; where no block defines it, the last one that returns something becomes its body.
    """
    defines = _definition(name)
    texts = fenced.python(response)
    whole = next((text for text in reversed(texts) if defines.search(text)), None)
    if whole is not None or not signature:
        return whole
    body = next((text for text in reversed(texts) if _GIVES_BACK.search(text)), None)
    return None if body is None else f"{signature.rstrip()}\n{_body(body)}"


def _definition(name: str) -> re.Pattern:
    return re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^\n=]*)?=", re.MULTILINE)


def _given(extra_info: object, name: str) -> tuple[str, str]:
    """(what precedes the function, its signature); a prefix that goes as far as the function's head holds both."""
    given = extra_info if isinstance(extra_info, dict) else {}
    prefix, signature = given.get("prefix") or "", given.get("signature") or ""
    heads = list(_definition(name).finditer(prefix))
    if heads:
        start = heads[-1].start()
        return prefix[:start], signature or prefix[start:]
    return prefix, signature


def _body(text: str) -> str:
    """`text` indented as the body of a function. The first line may have lost its blanks, as the end of a prompt has them."""
    lines = text.split("\n")
    first, rest = lines[0], [line for line in lines[1:] if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in rest), default=0)
    deeper = bool(rest) and len(rest[0]) - len(rest[0].lstrip()) > margin
    if margin and first.strip() and (deeper or not first.rstrip().endswith(_OPEN_LINE)):
        lines = [first, *(line[margin:] for line in lines[1:])]
    return "".join(f"    {line}\n" for line in lines)


def _tests(ground_truth: object) -> tuple[str, str]:
    """(test program, name of the function under test)."""
    try:
        truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        tests = truth["functional"]
        return tests, _CHECKED.findall(tests)[-1]
    except (ValueError, TypeError, KeyError, IndexError):
        raise ValueError(
            'humaneval: the ground truth must be {"functional": tests that end with check(NAME)}, got '
            f"{str(ground_truth)[:200]!r}"
        ) from None
