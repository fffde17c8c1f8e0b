"""Sequences packed into flat rows, one row of each device at a time: the arrays that the update step reads.

The samples of a group share their prompt: a row holds it once, before the responses (`share_prompts`; not on TPU, whose
attention kernel knows only segments). A response's last token is predicted but predicts nothing, and is not in the row.

Shapes: M micro-batches, D rows of one (a row of each device), T tokens of a row, C = T predictions, S spans.
"""

from dataclasses import dataclass

import jax
import numpy as np

from jaxgrpo.model.logprobs import Predictions
from jaxgrpo.model.packed_attention import Spans, bucket_lengths


@dataclass(frozen=True)
class Sequence:
    """A prompt and one response with its behaviour log-probabilities and advantage."""

    prompt: np.ndarray  # int32 tokens, at least one
    response: np.ndarray  # int32 tokens, at least one
    logps: np.ndarray  # float32, one per response token
    advantage: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Tokens [M, D, T], predictions [M, D, C] with their values, and spans [M, D, S] for attention. Segment 0 is padding."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray  # the span, 1, 2, ..., that a token belongs to
    predictions: Predictions
    mask: np.ndarray  # 1 for every prediction in use
    sequence: np.ndarray  # the sequence of the row, 1, 2, ..., that a prediction belongs to; 0 for none
    behaviour_logp: np.ndarray
    advantages: np.ndarray
    spans: Spans


@dataclass(frozen=True)
class RowShape:
    """What fixes the arrays' shapes: the same for every minibatch, whatever its lengths."""

    row_tokens: int
    devices: int  # of data x fsdp
    capacity: int  # sequences
    longest_prompt: int
    longest_response: int
    share_prompts: bool
    queries: int  # attention computes longer runs of tokens in parts

    @property
    def longest(self) -> int:
        """Tokens that a row needs for the longest sequence; its last token predicts nothing."""
        return self.longest_prompt + self.longest_response - 1

    @property
    def micro_batches(self) -> int:
        """Room for `capacity` of the longest: first-fit puts at least row_tokens // longest of them into every row but one."""
        rows = -(-self.capacity // max(1, self.row_tokens // self.longest))
        return -(-rows // self.devices)

    @property
    def spans(self) -> int:
        return min(self.row_tokens, 2 * self.capacity + self.row_tokens // self.queries)


class _Row:
    """A row that fills up."""

    def __init__(self):
        self.tokens = self.predictions = 0
        self.placed: list[tuple[int, int, int]] = []  # sequence, start of its prompt, start of its own tokens


def layout(sequences: list[Sequence], shape: RowShape) -> list[_Row]:
    """First-fit decreasing, group by group, into the row that already holds the group's prompt where it fits.

    A function of the lengths and of which neighbouring sequences have equal prompts; ties go by position.
    """
    T = shape.row_tokens
    rows: list[_Row] = []
    groups = _groups(sequences)
    by_size = sorted(range(len(groups)), key=lambda g: (-sum(len(sequences[i]) for i in groups[g]), g))
    order = [(g, i) for g in by_size for i in sorted(groups[g], key=lambda i: (-len(sequences[i]), i))]
    if not shape.share_prompts:
        order = sorted(order, key=lambda pair: (-len(sequences[pair[1]]), pair[1]))
    holding: dict[int, list[tuple[_Row, int]]] = {}  # by group, the rows that hold its prompt, and where
    for group, index in order:
        prompt, response = len(sequences[index].prompt), len(sequences[index].response)
        if prompt == 0 or response == 0:
            raise ValueError(
                f"a sequence has a prompt of {prompt} and a response of {response} tokens; both need one at least."
            )
        if prompt > shape.longest_prompt or response > shape.longest_response:
            raise ValueError(
                f"a sequence of {prompt} + {response} tokens exceeds {shape.longest_prompt} + {shape.longest_response}."
            )
        if prompt + response - 1 > T:
            raise ValueError(f"a sequence of {prompt} + {response} tokens does not fit a row of {T}.")

        def fits(row: _Row, own: int, response=response) -> bool:
            return row.tokens + own <= T and row.predictions + response <= T

        held = holding.setdefault(group, []) if shape.share_prompts else []
        row, prompt_at = next(((row, at) for row, at in held if fits(row, response - 1)), (None, 0))
        if row is None:
            row = next((row for row in rows if fits(row, prompt + response - 1)), None)
            if row is None:
                rows.append(row := _Row())
            prompt_at = row.tokens
            held.append((row, prompt_at))
            row.tokens += prompt
        row.placed.append((index, prompt_at, row.tokens))
        row.tokens += response - 1
        row.predictions += response
    return rows


def _groups(sequences: list[Sequence]) -> list[list[int]]:
    """Neighbours with the same prompt."""
    groups: list[list[int]] = []
    for index, sequence in enumerate(sequences):
        if groups and np.array_equal(sequences[groups[-1][0]].prompt, sequence.prompt):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pack(sequences: list[Sequence], shape: RowShape, pad_id: int) -> tuple[Rows, int]:
    """Rows with room for `shape.capacity` sequences whatever their lengths, and the number of micro-batches in use."""
    if len(sequences) > shape.capacity:
        raise ValueError(f"{len(sequences)} sequences exceed the capacity of {shape.capacity}.")
    rows = layout(sequences, shape)
    T, total = shape.row_tokens, shape.micro_batches * shape.devices
    assert len(rows) <= total, "first-fit keeps to the bound"
    buckets = bucket_lengths(shape.longest)
    tokens = np.full((total, T), pad_id, np.int32)
    positions, segments, source, target, owner = (np.zeros((total, T), np.int32) for _ in range(5))
    mask, logps, advantages = (np.zeros((total, T), np.float32) for _ in range(3))
    spans = np.zeros((5, total, shape.spans), np.int32)
    counts, predicted = np.zeros((total, len(buckets)), np.int32), np.zeros(total, np.int32)
    for r, row in enumerate(rows):
        pieces: list[tuple[int, int, int, int]] = []  # spans: start, length, start and length of the prefix
        prompts: set[int] = set()
        for number, (index, prompt_at, start) in enumerate(row.placed, start=1):
            s = sequences[index]
            p, own = len(s.prompt), len(s.response) - 1
            prompt_is_new = prompt_at not in prompts
            prompts.add(prompt_at)
            tokens[r, prompt_at : prompt_at + p], positions[r, prompt_at : prompt_at + p] = s.prompt, np.arange(p)
            tokens[r, start : start + own], positions[r, start : start + own] = s.response[:-1], np.arange(p, p + own)
            if shape.share_prompts:
                pieces += [(prompt_at, p, 0, 0)] if prompt_is_new else []
                pieces += [(start, own, prompt_at, p)] if own else []
            else:
                pieces.append((prompt_at, p + own, 0, 0))
            first, last = predicted[r], predicted[r] + len(s.response)
            source[r, first:last] = [prompt_at + p - 1, *range(start, start + own)]
            target[r, first:last], logps[r, first:last] = s.response, s.logps
            mask[r, first:last], advantages[r, first:last], owner[r, first:last] = 1.0, s.advantage, number
            predicted[r] = last
        for number, (start, length, *_) in enumerate(pieces, start=1):
            segments[r, start : start + length] = number
        parts = [
            (start, min(length, first + shape.queries), first, *prefix)
            for start, length, *prefix in pieces
            for first in range(0, length, shape.queries)
        ]
        parts.sort(key=lambda part: -(part[1] + part[4]))
        spans[:, r, : len(parts)] = np.array(parts, np.int32).T
        for _, length, _, _, prefix in parts:
            counts[r, max(b for b, size in enumerate(buckets) if size >= prefix + length)] += 1

    def fold(array):
        return array.reshape(shape.micro_batches, shape.devices, *array.shape[1:])

    predictions = Predictions(fold(source), fold(target), fold(predicted))
    values = (fold(array) for array in (mask, owner, logps, advantages))
    places = Spans(*map(fold, spans), fold(counts), buckets, min(shape.queries, shape.longest))
    used = -(-len(rows) // shape.devices)
    return Rows(fold(tokens), fold(positions), fold(segments), predictions, *values, places), used


def pack_tightest(sequences: list[Sequence], shapes: list[RowShape], pad_id: int) -> tuple[Rows, int]:
    """`pack` into the shape that computes the fewest tokens; at a tie, the one with the longest rows."""

    def computed(shape: RowShape) -> int:
        return -(-len(layout(sequences, shape)) // shape.devices) * shape.row_tokens

    shape = min(shapes, key=lambda shape: (computed(shape), -shape.row_tokens)) if len(shapes) > 1 else shapes[0]
    return pack(sequences, shape, pad_id)
