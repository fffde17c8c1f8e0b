r"""Repairs of known faults in published data files. A text is changed only where it cannot be meant as it stands.

1. Doubled backslashes: `\\frac{1}{2}` where `\frac{1}{2}` is meant (one ground truth in nine of GURU-MATH). A text is
   affected if every run of backslashes in it has even length and one of them stands before a LaTeX command name or an
   escaped sign such as `\%`. A matrix written properly, `\begin{pmatrix} 1 \\ 2 \end{pmatrix}`, has odd runs and is
   left alone; in a doubled matrix the row breaks stay row breaks.
2. Doubled delimiters in prompts, `\\(x\\)` and `\\{x\\}`, beside single backslashes: repaired where the closing one
   shows that no row break is meant, and never in a text with rows.
3. A chat message whose content is the `str()` of the list of messages (HumanEval): the list is read back.

Counted with them: HumanEval problems whose empty `extra_info.prefix` is filled from the prompt (code_prompt.py).
"""

import ast
import re
from dataclasses import dataclass

_COMMANDS = (
    "begin|end|left|right|big|Big|d?frac|tfrac|sqrt|binom|text|mathrm|mathbb|mathcal|mathbf|boxed|overline|vec|hat|bar|"
    "pi|circ|infty|cup|cap|ln|log|lg|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|cdot|cdots|ldots|dots|times|div|pm|mp|"
    "leq|geq|neq|le|ge|ne|leqslant|geqslant|approx|equiv|pmod|mod|in|notin|mid|subset|emptyset|varnothing|"
    "alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|omega|Omega|phi|varphi|rho|sigma|tau|Delta|"
    "lfloor|rfloor|lceil|rceil|langle|rangle|sum|prod|int|lim|max|min|angle|triangle|degree|quad|qquad|to|rightarrow"
)
_RUN = re.compile(r"\\+")
_CLEAR_SIGN = re.compile(rf"(?<!\\)(?:\\\\)+(?:{_COMMANDS}|[%{{}}$])")
_ROWS = re.compile(r"\\(?:begin|substack|matrix|pmatrix|cases|array|eqalign)\b")
_OWN_SUFFIX = re.compile(r"\\boxed\{\}")  # added by the preparation of the file, after the doubling
_ROW_BREAK = re.compile(r"(?<!\\)\\\\(?=[\s\d+-])")


@dataclass
class Repairs:
    """How many rows of a file were changed, by kind of fault."""

    ground_truths: int = 0
    prompts: int = 0
    message_lists: int = 0
    code_before: int = 0

    def __bool__(self) -> bool:
        return bool(self.ground_truths or self.prompts or self.message_lists or self.code_before)

    def __str__(self) -> str:
        return (
            f"doubled backslashes in {self.ground_truths} ground truths and {self.prompts} prompts, "
            f"{self.message_lists} prompts that were the text of a message list"
            + (f"; {self.code_before} empty prefixes of functions filled from their prompts" if self.code_before else "")
        )


def halve_backslashes(text: str) -> str:
    """Fault 1: halve every run of backslashes in a text that is affected as a whole; any other comes back unchanged."""
    if not _CLEAR_SIGN.search(text) or any(len(run) % 2 for run in _RUN.findall(text)):
        return text
    if _ROWS.search(text):
        text = _ROW_BREAK.sub(lambda _: "\\" * 4, text)
    return _RUN.sub(lambda run: run.group()[: len(run.group()) // 2], text)


def single_delimiters(text: str) -> str:
    r"""Fault 2: `\\(`, `\\)`, `\\{`, `\\}` -> one backslash each, where they come as delimiters."""
    if _ROWS.search(text):
        return text
    if "\\\\)" in text:
        text = re.sub(r"(?<!\\)\\\\(?=[()])", lambda _: "\\", text)
    if "\\\\}" in text and text.count("\\\\{") == text.count("\\\\}"):
        text = re.sub(r"(?<!\\)\\\\(?=[{}])", lambda _: "\\", text)
    return text


def repair_prompt_text(text: str) -> str:
    """Faults 1 and 2 in the content of a message."""
    if "\\\\" not in text:
        return text
    suffixes = _OWN_SUFFIX.findall(text)
    parts = _OWN_SUFFIX.split(text)
    if not any(len(run) % 2 for part in parts for run in _RUN.findall(part)):
        parts = [halve_backslashes(part) for part in parts]
    parts = [single_delimiters(part) for part in parts]
    return "".join(part + suffix for part, suffix in zip(parts, [*suffixes, ""], strict=True))


def read_message_list(content: str) -> list[dict] | None:
    """Fault 3: the messages whose `str()` the content is, or None if it is ordinary text."""
    if not re.match(r"\[\{['\"](?:content|role)['\"]:", content):
        return None
    try:
        messages = ast.literal_eval(content)
    except (ValueError, SyntaxError):
        return None
    well_formed = all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in messages)
    return messages if messages and well_formed else None


def repair(messages: list[dict], ground_truth: object, repairs: Repairs) -> tuple[list[dict], object]:
    """The repaired messages and ground truth of one row; what was changed is counted in `repairs`."""
    if len(messages) == 1 and (inner := read_message_list(messages[0]["content"])) is not None:
        messages = inner
        repairs.message_lists += 1
    else:
        fixed = [{**message, "content": repair_prompt_text(message["content"])} for message in messages]
        repairs.prompts += fixed != messages
        messages = fixed
    if isinstance(ground_truth, str) and (fixed_truth := halve_backslashes(ground_truth)) != ground_truth:
        repairs.ground_truths += 1
        ground_truth = fixed_truth
    return messages, ground_truth
