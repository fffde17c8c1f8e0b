"""Problems and demonstrations from parquet or JSONL files or the Hugging Face hub, and problems as token ids.

A problem file has the columns `data_source`, `prompt` (chat messages), `reward_model` {ground_truth} and optionally
`ability` and `extra_info`. Everything is checked here once: what passes needs no further checks downstream.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxgrpo.data.code_prompt import SOURCE as ASKS_FOR_CODE
from jaxgrpo.data.code_prompt import code_before
from jaxgrpo.data.problem import DataError, EncodedPrompt, Problem
from jaxgrpo.data.repair import Repairs, repair
from jaxgrpo.data.values import check_columns, check_row, parse_json
from jaxgrpo.data.values import short as _short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
DATA_SUFFIXES = (".parquet", ".jsonl")
PREPARED = (TRAIN, HELDOUT) = ("train.parquet", "heldout.parquet")  # what `jaxgrpo data prepare` writes
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:.+)?")
_PROBLEM_COLUMNS = ("data_source", "prompt", "reward_model")
_ROLES = ("system", "user", "assistant", "tool")  # a chat template leaves out what others say, without a word


def load_problems(path: str) -> list[Problem]:
    """The problems of a file in file order, with known faults repaired (repair.py; the counts are logged).

    path: a local .parquet or .jsonl file, or a hub id "org/name" or "org/name:file", with "@revision" after the name.
    Raises DataError for a file that is missing, unreadable, empty or of another kind, and for a row that lacks what a
    problem needs; the message names the file, the row (counted from 0), the value and the remedy.
    """
    return problems_of(read_rows(path), path)


def problems_of(rows: list[dict], path: str) -> list[Problem]:
    """Rows of `path` with the columns of a problem file as problems; errors as in `load_problems`."""
    repairs = Repairs()
    problems = [_problem(index, row, f"{path}, row {index}", repairs) for index, row in enumerate(rows)]
    if repairs:
        _LOG.info("%s: repaired %s", path, repairs)
    return problems


def problem_rows(path: str, repairs: Repairs, keep: Sequence[str] | None = None) -> list[dict]:
    """The rows of a problem file as they are, except for the repairs, which are counted in `repairs`.

    keep: the columns that shall be written again, all by default; a DataError names the row where one of them cannot be one
    column of a parquet file. Kinds of file and other errors as in `load_problems`.
    """
    rows = read_rows(path)
    kept = [{name: value for name, value in row.items() if keep is None or name in keep} for row in rows]
    check_columns([{name: value for name, value in row.items() if name != "prompt"} for row in kept], path)
    for index, row in enumerate(rows):
        problem = _problem(index, row, f"{path}, row {index}", repairs)
        row["prompt"] = list(problem.messages)
        row["reward_model"] = row["reward_model"] | {"ground_truth": problem.ground_truth}
        row["extra_info"] = problem.extra_info
    return rows


def write_parquet(path: str | os.PathLike, rows: list[dict]) -> None:
    """Rows as a parquet file that appears whole or not at all. DataError when it cannot be written."""
    import pyarrow
    import pyarrow.parquet

    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    empty = {name for name in rows[0] if all(row.get(name) == {} for row in rows)} if rows else set()
    if empty:  # parquet has no structs without fields; a missing column reads back the same
        rows = [{name: value for name, value in row.items() if name not in empty} for row in rows]
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        os.replace(temporary, path)
    except (pyarrow.ArrowException, OSError) as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise DataError(f"{path} cannot be written ({_short(str(error))}); choose another folder or mend the rows") from error


def load_demonstrations(path: str) -> list[tuple[tuple[dict, ...], str]]:
    """Pairs (messages, response text) for a supervised warm-up: columns `prompt` (messages or a string) and `response`.

    The same kinds of file and the same errors as `load_problems`; nothing is repaired.
    """
    pairs = []
    for index, row in enumerate(read_rows(path, ("prompt", "response"))):
        where = f"{path}, row {index}"
        if not isinstance(row["response"], str) or not row["response"]:
            raise DataError(f"{where}: response is {_short(row['response'])}; it must be a text of at least one character")
        pairs.append((tuple(_messages(row["prompt"], where)), row["response"]))
    return pairs


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    overlong: Literal["error", "drop"],
) -> tuple[list[EncodedPrompt], int]:
    """Prompts as token ids (chat template and generation prompt applied), in order, and the number of problems dropped.

    overlong: what becomes of a prompt of more than max_tokens tokens, an error or left out and counted.
    Raises DataError for an overlong prompt if so asked, if nothing is left, or if the template cannot render a problem.
    """
    if overlong not in ("error", "drop"):
        raise DataError(f"data.overlong is {overlong!r}; choose error or drop")
    if not problems:
        raise DataError("there are no problems to encode; give a data file with at least one row")
    encoded, dropped, longest = [], 0, 0
    for problem, ids in zip(problems, _apply_template(problems, tokenizer), strict=True):
        if not ids:
            raise DataError(f"problem {problem.index} ({problem.data_source}) has no token under this tokenizer; remove it")
        longest = max(longest, len(ids))
        if len(ids) <= max_tokens:
            encoded.append(EncodedPrompt(problem, np.asarray(ids, np.int32)))
        elif overlong == "drop":
            dropped += 1
        else:
            raise DataError(
                f"the prompt of problem {problem.index} ({problem.data_source}) has {len(ids)} tokens, the limit is "
                f"{max_tokens}; raise data.max_prompt_tokens or set data.overlong=drop"
            )
    if not encoded:
        raise DataError(
            f"all {dropped} prompts are longer than {max_tokens} tokens and were dropped (the longest has {longest}); "
            "raise data.max_prompt_tokens"
        )
    return encoded, dropped


def _apply_template(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    from jinja2 import TemplateError

    conversations = [list(problem.messages) for problem in problems]
    try:
        return tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)["input_ids"]
    except TemplateError as error:
        for problem in problems:  # the batch does not say which one failed
            try:
                tokenizer.apply_chat_template(list(problem.messages), add_generation_prompt=True, tokenize=False)
            except TemplateError as reason:
                raise DataError(
                    f"the tokenizer's chat template refuses problem {problem.index} ({problem.data_source}): {reason}; "
                    "change its messages or the template"
                ) from reason
        raise DataError(f"the tokenizer's chat template fails: {error}") from error


def _problem(index: int, row: dict, where: str, repairs: Repairs) -> Problem:
    messages = _messages(row["prompt"], where)
    messages, ground_truth = repair(messages, _ground_truth(row["reward_model"], where), repairs)
    if not isinstance(row["data_source"], str) or not row["data_source"]:
        raise DataError(f"{where}: data_source is {row['data_source']!r}; it must name the grader, such as 'math__mine'")
    extra_info = {} if row.get("extra_info") is None else row["extra_info"]
    if not isinstance(extra_info, dict):
        raise DataError(f"{where}: extra_info is {_short(extra_info)}; make it an object such as {{}}")
    if row["data_source"].startswith(ASKS_FOR_CODE):
        added = {key: code for key, code in code_before(messages, ground_truth).items() if code and not extra_info.get(key)}
        extra_info = extra_info | added
        repairs.code_before += "prefix" in added
    return Problem(index, tuple(messages), row["data_source"], ground_truth, extra_info)


def read_rows(
    path: str, columns: Sequence[str] = _PROBLEM_COLUMNS, *, split: str = "train", subset: str | None = None
) -> list[dict]:
    """The rows of a file, at least one, each with all the columns. split, subset: of a hub data set."""
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        raise DataError(f"{path} is a directory; name one {' or '.join(DATA_SUFFIXES)} file in it")
    if os.path.exists(path):
        if suffix not in DATA_SUFFIXES:
            raise DataError(f"{path}: the suffix {suffix!r} is not supported; give a {' or '.join(DATA_SUFFIXES)} file")
        rows, names = _read_parquet(path) if suffix == ".parquet" else _read_jsonl(path)
    elif _HUB_ID.fullmatch(path) and suffix not in DATA_SUFFIXES or re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?:.+", path):
        rows, names = _read_hub(path, split, subset)
    else:
        made = "; `jaxgrpo data prepare SOURCE OUT_DIR` makes it" if os.path.basename(path) in PREPARED else ""
        kinds = " or ".join(DATA_SUFFIXES)
        raise DataError(f"there is no file {path}{made}; give a local {kinds} file or a hub id org/name[:file]")
    if not rows:
        raise DataError(f"{path} has no rows; give a file with at least one problem")
    if names is not None:
        _require_columns(names, columns, path)
    for index, row in enumerate(rows):
        if names is None:
            _require_columns(row, columns, f"{path}, row {index}")
        check_row(row, f"{path}, row {index}")
    return rows


def _require_columns(present: Sequence[str], columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; it has {', '.join(present) or 'none'} "
            f"and needs {', '.join(columns)}: rename or add what is missing"
        )


def _read_parquet(path: str) -> tuple[list[dict], list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        return table.to_pylist(), table.column_names
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also text that is no UTF-8, and odd dates
        raise DataError(f"{path} is not readable as parquet ({_short(str(error))}); fetch or write it again") from error


def _read_jsonl(path: str) -> tuple[list[dict], None]:
    rows, empty = [], 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    empty += 1
                    continue
                row = parse_json(line, f"{path}, line {number}")
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number} is {_short(row)}; write one JSON object per line")
                rows.append(row)
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is not readable as UTF-8 text ({error}); fetch or write it again") from error
    if empty and rows:
        _LOG.warning("%s: %d empty lines are left out; messages count the rows without them, from 0", path, empty)
    return rows, None


def _read_hub(path: str, split: str, subset: str | None) -> tuple[list[dict], list[str]]:
    name, _, file = path.partition(":")
    name, _, revision = name.partition("@")
    try:
        import datasets

        with _quiet("huggingface_hub", "datasets"):  # they tell of every try again
            data = datasets.load_dataset(name, subset, data_files=file or None, split=split, revision=revision or None)
    except Exception as error:  # the hub client has no common base class for its failures
        raise DataError(
            f"{path}: there is no such local file, and the hub could not be asked or has no such data set "
            f"({type(error).__name__}: {_short(str(error))}); check the network and the name, or fetch the file "
            f"elsewhere and give its local path ({' or '.join(DATA_SUFFIXES)})"
        ) from error
    return data.to_list(), data.column_names


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """While this lasts, these loggers tell only of errors."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _messages(prompt: object, where: str) -> list[dict]:
    """The chat messages of a row as a list of {role, content}; a plain string is one user message."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"{where}: the prompt is {_short(prompt)}; it must be a list of messages {{role, content}}")
    messages = []
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{where}: the message {_short(message)} has no role and content that are text; mend the row")
        if role not in _ROLES:
            raise DataError(f"{where}: the role {_short(role)} of a message is none of {', '.join(_ROLES)}; mend the row")
        messages.append({"role": role, "content": content})
    if not any(message["content"].strip() for message in messages):
        raise DataError(f"{where}: the prompt is empty ({_short(prompt)}); fill it in or remove the row")
    return messages


def _ground_truth(reward_model: object, where: str) -> object:
    ground_truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if ground_truth is None or ground_truth == "":
        raise DataError(f"{where}: reward_model is {_short(reward_model)}; it needs a ground_truth to grade against")
    if isinstance(ground_truth, float) and not math.isfinite(ground_truth):
        raise DataError(f"{where}: the ground_truth is {ground_truth}; write the answer, or remove the row")
    return ground_truth
