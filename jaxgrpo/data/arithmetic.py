"""The built-in task: chains of digits, `7*8-9-0`, evaluated from left to right modulo 10.

A problem has 2 to 5 operands. The right response to `7*8-9-0` is its running values, `677` (56 -> 6, 6-9 -> 7,
7-0 -> 7); only the last one is graded. Each step is one look-up in a table of 300 entries, (running value, operator,
digit) -> value, so more operands are harder, and a model with a weak table has something to sharpen.

Tokens are whole steps: the prompt is always the 6 tokens `7 *8 -9 -0 . =`, operands first, then filler, so operand
j sits at position j and its running value at a constant distance from it. Nothing here needs a download.

512 problems are held out: the 128 with the smallest hash for each number of operands. The generators compare that hash
with the same limit and draw again, so they cannot produce a held-out problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from jaxgrpo.data.hashing import hash_words
from jaxgrpo.data.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DATA_SOURCE = "arithmetic"
OPERATORS = "+-*"
MIN_OPERANDS, MAX_OPERANDS = 2, 5
HELDOUT_PER_LENGTH = 128
PROMPT_TOKENS = MAX_OPERANDS + 1
PAD, EOS = "<pad>", "<eos>"

_STEPS = [operator + str(digit) for operator in OPERATORS for digit in range(10)]
_LENGTHS = np.arange(MIN_OPERANDS, MAX_OPERANDS + 1)
_SIZES = 10 * 30 ** (_LENGTHS - 1)  # problems that exist for each number of operands
# One stream of random numbers for each purpose.
_HELDOUT, _TRAIN_LENGTH, _TRAIN, _WARMUP_LENGTH, _WARMUP, _CORRUPT, _RELABEL = range(1, 8)

_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '=' + message['content'] + eos_token }}"
    "{%- else -%}{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '=' }}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The task's tokenizer and chat template: 44 tokens (pad, eos, digits, thirty steps such as `*8`, `=`, filler `.`).

    Decoding with skip_special_tokens gives the digits without spaces. Characters outside the task are dropped.
    transformers rebuilds the tokenizer of any directory whose config.json says qwen2 as byte-level BPE with Qwen2's
    splitting rule, so this one is written in those terms too: no merges, and the steps are added tokens, which are
    matched before any splitting.
    """
    # Imported here: transformers takes seconds, and drawing problems does not need it.
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [PAD, EOS, *map(str, range(10)), *_STEPS, "=", "."]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(step, normalized=False) for step in _STEPS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=PAD,  # unused; without it the rebuilt tokenizer appends an unknown token of its own
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


def solve(problem_text: str) -> str:
    """The right response: the running values of a problem text (with or without filler), `7*8-9-0` -> `677`."""
    text = problem_text.rstrip(".")
    value, values = int(text[0]), []
    for operator, digit in zip(text[1::2], text[2::2], strict=True):
        value = _TABLE_ROWS[value][_STEP_NUMBER[operator + digit]]
        values.append(str(value))
    return "".join(values)


def heldout_problems() -> list[Problem]:
    """The 512 held-out problems in a fixed order: 2, 3, 4, 5, 2, 3, ... operands, so any prefix is balanced too."""
    chosen = []
    for length, size, limit in zip(_LENGTHS, _SIZES, _heldout_limits(), strict=True):
        codes = np.concatenate([chunk[_heldout_hash(length, chunk) <= limit] for chunk in _chunks(size)])
        chosen.append(codes[np.argsort(_heldout_hash(length, codes))])
    codes = np.stack(chosen, axis=1).reshape(-1)
    lengths = np.tile(_LENGTHS, HELDOUT_PER_LENGTH)
    return [_problem(index, text, "heldout") for index, text in enumerate(_texts(lengths, _unpack(codes)))]


def training_problem(seed: int, position: int) -> Problem:
    """The problem at a position (from 0) of the endless training stream of a seed."""
    return training_problems(seed, position, 1)[0]


def training_problems(seed: int, start: int, count: int) -> list[Problem]:
    """Problems start .. start + count - 1 of the endless training stream: a pure function of (seed, position).

    The numbers of operands are equally frequent, and so are all problems of one length that are not held out.
    """
    lengths, digits = _draw(seed, np.arange(start, start + count), _TRAIN_LENGTH, _TRAIN)
    return [_problem(start + i, text, "train") for i, text in enumerate(_texts(lengths, digits))]


def warmup_examples(seed: int, start: int, count: int, corruption: float) -> list[tuple[Problem, str]]:
    """Supervised pairs (problem, response text) start .. start + count - 1 of their own stream; none is held out.

    corruption: the rate, in [0, 1], at which an entry of the (running value, operator, digit) table is replaced, each
    time it is used, by a digit drawn at random from all ten; the chain then goes on from the digit that was written. An
    ideal model of this text gives the right value of every entry the probability 1 - 0.9 * corruption and every wrong
    one 0.1 * corruption: the right value stays the most likely one, but samples at temperature 1 are often wrong, which
    is what RL can mend. The problem's ground truth is always the true one.
    """
    if not 0.0 <= corruption <= 1.0:
        raise ValueError(f"corruption {corruption} is not a rate between 0 and 1")
    positions = np.arange(start, start + count)
    lengths, steps = _draw(seed, positions, _WARMUP_LENGTH, _WARMUP)
    slot = np.arange(1, MAX_OPERANDS)
    wrong = (hash_words(_CORRUPT, seed, positions[:, None], slot) >> np.uint64(11)) * 2.0**-53 < corruption
    random_digit = (hash_words(_RELABEL, seed, positions[:, None], slot) % np.uint64(10)).astype(np.int64)
    values = np.empty((count, MAX_OPERANDS), np.int64)
    values[:, 0] = steps[:, 0]
    for j in range(1, MAX_OPERANDS):
        values[:, j] = np.where(wrong[:, j - 1], random_digit[:, j - 1], _TABLE[values[:, j - 1], steps[:, j]])
    responses = ["".join(map(str, row[1:n])) for row, n in zip(values.tolist(), lengths.tolist(), strict=True)]
    problems = [_problem(start + i, text, "warmup") for i, text in enumerate(_texts(lengths, steps))]
    return list(zip(problems, responses, strict=True))


def _value_table() -> np.ndarray:
    """int64 [10, 30]: the next running value for each running value and step."""
    value, digit = np.arange(10)[:, None], np.arange(10)[None]
    return np.concatenate([value + digit, value - digit, value * digit], axis=1) % 10


_TABLE = _value_table()
_TABLE_ROWS = _TABLE.tolist()  # look-ups of single entries are faster in lists
_STEP_NUMBER = {step: number for number, step in enumerate(_STEPS)}


def _unpack(codes: np.ndarray) -> np.ndarray:
    """Problem codes [n] -> int64 [n, MAX_OPERANDS]: first digit, then step numbers (0 where the problem has ended)."""
    columns = [codes % 10]
    rest = codes // 10
    for _ in range(1, MAX_OPERANDS):
        columns.append(rest % 30)
        rest = rest // 30
    return np.stack(columns, axis=1)


def _texts(lengths: np.ndarray, steps: np.ndarray) -> list[str]:
    """Problem texts with their filler, one for each row of `_unpack`."""
    texts = []
    for length, row in zip(lengths.tolist(), steps.tolist(), strict=True):
        chain = str(row[0]) + "".join(_STEPS[step] for step in row[1:length])
        texts.append(chain + "." * (MAX_OPERANDS - length))
    return texts


def _problem(index: int, text: str, split: str) -> Problem:
    values = solve(text)
    return Problem(
        index=index,
        messages=({"role": "user", "content": text},),
        data_source=DATA_SOURCE,
        ground_truth=values[-1],
        extra_info={"operands": len(values) + 1, "values": values, "split": split},
    )


def _heldout_hash(lengths: int | np.ndarray, codes: np.ndarray) -> np.ndarray:
    return hash_words(_HELDOUT, np.asarray(lengths), codes)


def _chunks(size: int) -> Iterator[np.ndarray]:
    """All problem codes of one length in pieces that stay in the processor's cache."""
    for start in range(0, int(size), 1 << 16):
        yield np.arange(start, min(start + (1 << 16), int(size)))


@lru_cache(maxsize=1)
def _heldout_limits() -> np.ndarray:
    """uint64 [number of lengths]: a problem is held out if its hash is at most the limit of its length."""
    limits = []
    for length, size in zip(_LENGTHS, _SIZES, strict=True):
        smallest = np.zeros(0, np.uint64)
        for chunk in _chunks(size):
            smallest = np.concatenate([smallest, _heldout_hash(length, chunk)])
            smallest = np.partition(smallest, HELDOUT_PER_LENGTH - 1)[:HELDOUT_PER_LENGTH]
        limits.append(smallest.max())
    return np.array(limits)


def _draw(seed: int, positions: np.ndarray, length_stream: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [n] and steps [n, MAX_OPERANDS] at the positions of a stream; held-out problems are drawn again."""
    which = (hash_words(length_stream, seed, positions) % np.uint64(len(_LENGTHS))).astype(np.int64)
    lengths, limits = _LENGTHS[which], _heldout_limits()[which]
    codes = np.zeros(len(positions), np.int64)
    pending, attempt = np.arange(len(positions)), 0
    while pending.size:
        words = hash_words(stream, seed, positions[pending], attempt)
        codes[pending] = (words % _SIZES[which[pending]].astype(np.uint64)).astype(np.int64)
        reserved = _heldout_hash(lengths[pending], codes[pending]) <= limits[pending]
        pending, attempt = pending[reserved], attempt + 1
    return lengths, _unpack(codes)
