"""Zebra puzzles: a table {"header": [...], "rows": [[...], ...]} in the last <answer>...</answer> of the response."""

import ast
import json
import re
import warnings

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
    try:
        return _table(_value(source))
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ):  # no JSON, no literal, or one built to break
        return None


def _value(source: str) -> object:
    """The value of JSON or of a Python literal. Braces doubled as in a template count once; a key given twice is an error."""
    if source.startswith("{{") and source.endswith("}}"):
        source = source[1:-1]
    try:
        return json.loads(source, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        pass
    with warnings.catch_warnings():  # of odd escapes in strings
        warnings.simplefilter("ignore")
        tree = ast.parse(source, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            _unique([(key.value, None) for key in node.keys if isinstance(key, ast.Constant)])
    return ast.literal_eval(tree)


def _unique(pairs: list[tuple]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _table(value: object) -> tuple[list[str], list[list[str]]] | None:
    """(header, rows) as lists of plain text; None when `value` is no rectangular table."""
    if not isinstance(value, dict) or not {"header", "rows"} <= value.keys():
        return None
    header, rows = _items(value["header"]), _items(value["rows"])
    table = [_items(row) for row in rows or ()]
    if header is None or rows is None or None in table:
        return None
    names = [_cell(name) for name in header]
    if len(set(names)) != len(names) or any(len(row) != len(names) for row in table):
        return None
    return names, [[_cell(cell) for cell in row] for row in table]


def _items(value: object) -> list | None:
    """The items of a list, a tuple or an array; None for anything else: text, and what has no order or two parts an item."""
    return list(value) if isinstance(value, list | tuple) or hasattr(value, "tolist") else None


def _cell(value: object) -> str:
    """A cell's text: spelling of spaces, hyphens, underscores and case does not count."""
    return re.sub(r"[\s_-]+", "-", str(value).strip()).casefold()
