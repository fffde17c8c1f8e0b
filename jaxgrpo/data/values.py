"""What the values of a data file may be: checked once, with the file and the row in the message, before anything is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxgrpo.data.problem import DataError

LARGEST = 2**63 - 1  # of an integer in a column
EXACT = 2**53  # of an integer in a column that holds fractions too


def parse_json(line: str, where: str) -> object:
    """One line of JSON. DataError for what is not JSON, also where Python would take it: NaN, endless numbers and nesting."""

    def refuse(constant: str) -> None:
        raise DataError(f"{where} holds {constant}, which is not JSON; write null where there is no number")

    try:
        return json.loads(line, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error}); write one JSON object per line") from error
    except RecursionError:
        raise DataError(f"{where} is nested too deeply to be read; write one flat JSON object per line") from None
    except DataError:
        raise
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise DataError(f"{where} holds a number with thousands of digits; write it as text, in quotes") from None


def check_row(row: dict, where: str) -> None:
    """DataError for text that is no Unicode and for integers that no column holds, wherever they lie in the row."""
    _check_value(row, "", where)


def _check_value(value: object, place: str, where: str) -> None:
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, place, where)
    elif isinstance(value, dict):
        for name, entry in value.items():
            if not name.isascii():
                _check_text(name, f"a name in {place or 'the row'}", where)
            _check_value(entry, f"{place}.{name}" if place else name, where)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_value(entry, place, where)
    elif isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
        raise DataError(f"{where}: {place} is {short(value)}, an integer past 2^63 - 1; write it as text, in quotes")


def _check_text(text: str, place: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {place} holds {text[error.start]!a}, half of a surrogate pair, which is no text; write the whole "
            "character, or remove it"
        ) from None


@dataclass
class _Column:
    """What the rows so far hold in one place: values of one type, the first of them in `row`."""

    type: type
    row: int
    largest: tuple[int, int] = (0, 0)  # magnitude of an integer past 2^53, and its row
    fields: dict[str, "_Column"] = field(default_factory=dict)  # of an object, or "[]" of a list


def check_columns(rows: Sequence[dict], path: str) -> None:
    """DataError, with the first row that does not fit, where a column or a field in it cannot be one column of a parquet file:
    values of different kinds, integers past 2^53 beside fractions, objects that are empty in every row."""
    columns: dict[str, _Column] = {}
    for index, row in enumerate(rows):
        for name, value in row.items():
            _add(columns, name, value, index, name, path)
    for name, column in columns.items():
        _check_column(column, name, path)


def _add(columns: dict[str, _Column], name: str, value: object, index: int, place: str, path: str) -> None:
    """Take a value into account; DataError where it is of another kind than those before."""
    if value is None:
        return
    column = columns.get(name)
    if column is None:
        column = columns[name] = _Column(type(value), index)
    elif type(value) is not column.type:
        if {type(value), column.type} != {int, float}:
            raise DataError(
                f"{path}, row {index}: {place} is {_kind(type(value))} ({short(value)}), but in row {column.row} it is "
                f"{_kind(column.type)}; write all rows alike, or prepare files of one kind each"
            )
        column.type = float
    if isinstance(value, dict):
        for inner, entry in value.items():
            _add(column.fields, inner, entry, index, f"{place}.{inner}", path)
    elif isinstance(value, list):
        for entry in value:
            _add(column.fields, "[]", entry, index, f"{place}[]", path)
    elif isinstance(value, int) and abs(value) > max(EXACT, column.largest[0]):
        column.largest = abs(value), index


def _check_column(column: _Column, place: str, path: str) -> None:
    if column.type is float and column.largest[0]:
        raise DataError(
            f"{path}, row {column.largest[1]}: {place} is an integer past 2^53 beside fractions; write all rows as text"
        )
    if column.type is dict and not column.fields and "." in place:
        raise DataError(f"{path}, row {column.row}: {place} is an empty object, as in every row; write null, or remove it")
    for name, inner in column.fields.items():
        _check_column(inner, f"{place}[]" if name == "[]" else f"{place}.{name}", path)


def short(value: object) -> str:
    """A value as it stands in a message."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split()).encode("utf-8", errors="backslashreplace").decode()
    return repr(value) if value == "" else text if len(text) <= 160 else text[:157] + "..."


_KINDS = {bool: "true or false", int: "an integer", float: "a fraction", str: "text", dict: "an object", list: "a list"}


def _kind(of: type) -> str:
    return _KINDS.get(of, f"a {of.__name__}")
