"""Zebra puzzles: a table {"header": [...], "rows": [[...], ...]} in the last <answer>...</answer> of the response."""

import ast
import json
import re

from jaxgrpo.reward.boxed import after_thinking
from jaxgrpo.reward.latex import depth

MAX_TABLE = 20_000  # characters; the largest reference table has about 1,500
MAX_NESTING = 8

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when every cell is right, else 0.0. The paper gave the fraction of right cells: see `cell_accuracy`."""
    return float(cell_accuracy(response, ground_truth) == 1.0)


def cell_accuracy(response: str, ground_truth: object) -> float:
    """The fraction of the reference's cells that the answer has right, 0.0 without a readable table.

    Columns are matched by their header, rows by the reference's first column (the position). A column or row more or
    less than the reference makes the cells it stands for wrong. Raises ValueError when the ground truth is no table.
    """
    gold = _table(json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth)
    if gold is None or not gold[1]:
        raise ValueError(f"zebra: the ground truth must have a header and rows, got {str(ground_truth)[:200]!r}")
    header, rows = gold
    answer = _answer(after_thinking(response))
    if answer is None or not set(header) <= set(answer[0]):
        return 0.0
    columns = [answer[0].index(name) for name in header]
    given: dict[str, list[str]] = {}
    for row in answer[1]:
        cells = [row[column] for column in columns]
        if cells[0] in given:
            return 0.0  # two rows for one position are no table
        given[cells[0]] = cells
    right = sum(wanted == cell for row in rows for wanted, cell in zip(row, given.get(row[0], ()), strict=False))
    extra = max(0, len(answer[0]) - len(header)) * len(rows) + max(0, len(answer[1]) - len(rows)) * len(header)
    return right / (len(rows) * len(header) + extra)


def _answer(text: str) -> tuple[list[str], list[list[str]]] | None:
    start = text.rfind("<answer>")
    match = _ANSWER.match(text, start) if 0 <= start and len(text) - start <= MAX_TABLE else None
    if not match:
        return None
    source = match[1].strip()
    source = re.sub(r"^```\w*|```$", "", source).strip()
    if depth(source) > MAX_NESTING:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return _table(read(source))
        except (ValueError, SyntaxError):  # not written that way
            continue
    return None


def _table(value: object) -> tuple[list[str], list[list[str]]] | None:
    """(header, rows) as lists of plain text; None when `value` is no rectangular table."""
    if not isinstance(value, dict) or not {"header", "rows"} <= value.keys():
        return None
    header, rows = value["header"], value["rows"]
    if isinstance(header, str) or isinstance(rows, str) or not hasattr(header, "__iter__") or not hasattr(rows, "__iter__"):
        return None
    names = [_cell(name) for name in header]
    table = [[_cell(cell) for cell in row] for row in rows if hasattr(row, "__iter__") and not isinstance(row, str)]
    if len(set(names)) != len(names) or any(len(row) != len(names) for row in table):
        return None
    return names, table


def _cell(value: object) -> str:
    """A cell's text: spelling of spaces, hyphens, underscores and case does not count."""
    return re.sub(r"[\s_-]+", "-", str(value).strip()).casefold()
