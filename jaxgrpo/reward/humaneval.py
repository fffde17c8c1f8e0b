r"""HumanEval: the last fenced Python block that defines the function asked for, run with the set's own tests in a sandbox.

Right means that the tests ran to their end within the limits of `sandbox.Limits`. Code outside of a fence is never run, as in
the paper. Two deviations: the paper ran all blocks of a response one after the other, usage examples included, and took exit
code 0 for success, which a program that leaves early has too.
"""

import json
import re

from jaxgrpo.reward import sandbox
from jaxgrpo.reward.boxed import after_thinking

_FENCED = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_CHECKED = re.compile(r"^check\((\w+)\)\s*$", re.MULTILINE)
_LANGUAGES = ("", "python", "python3", "py")
MAX_PROGRAM = 100_000  # characters


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the tests pass, else 0.0. ground_truth: {"functional": tests that end with check(NAME)}, also as JSON text.

    Raises ValueError when the ground truth has no such tests, SandboxError when the sandbox cannot start.
    """
    tests, name = _tests(ground_truth)
    program = solution(after_thinking(response), name)
    if program is None or len(program) > MAX_PROGRAM:
        return 0.0
    prefix = extra_info.get("prefix") if isinstance(extra_info, dict) else None
    return float(sandbox.run(f"{prefix or ''}{program}\n{tests}").passed)


def solution(response: str, name: str) -> str | None:
    """The last fenced block of `response` that defines `name`; None when no complete block does."""
    defines = re.compile(rf"^(?:async\s+)?def\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", re.MULTILINE)
    blocks = [text for language, text in _FENCED.findall(response) if language.lower() in _LANGUAGES]
    return next((block for block in reversed(blocks) if defines.search(block)), None)


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
