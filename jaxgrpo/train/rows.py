"""Sequences packed into rows of fixed length, and rows into micro-batches: the arrays that the update step reads.

Shapes: M micro-batches, b rows of a micro-batch (over all devices), T tokens of a row.
"""

from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Sequence:
    """A prompt and one response with its behaviour log-probabilities and advantage."""

    prompt: np.ndarray  # int32 tokens
    response: np.ndarray  # int32 tokens, at least one
    logps: np.ndarray  # float32, one per response token
    advantage: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Packed sequences [M, b, T]. Segment 0 is padding; mask is 1 on response tokens; values are aligned with their token."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray
    behaviour_logp: np.ndarray
    advantages: np.ndarray


def pack(sequences: list[Sequence], *, row_tokens: int, micro_rows: int, pad_id: int, capacity: int) -> tuple[Rows, int]:
    """Rows with room for `capacity` sequences whatever their lengths, and the number of micro-batches in use.

    First-fit decreasing by length, ties by position: the layout is a function of the lengths only. The shape depends on
    capacity, row_tokens and micro_rows alone, so that every minibatch runs the same compiled program.
    """
    if len(sequences) > capacity:
        raise ValueError(f"{len(sequences)} sequences exceed the capacity of {capacity}.")
    micro_batches = -(-capacity // micro_rows)
    shape = (micro_batches * micro_rows, row_tokens)
    tokens = np.full(shape, pad_id, np.int32)
    positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask, logps, advantages = (np.zeros(shape, np.float32) for _ in range(3))
    filled, counts = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    used = 0
    for index in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i)):
        sequence = sequences[index]
        length, prompt = len(sequence), len(sequence.prompt)
        if length > row_tokens:
            raise ValueError(f"a sequence of {length} tokens does not fit a row of {row_tokens}.")
        row = int(np.argmax(filled[: used + 1] + length <= row_tokens))
        used = max(used, row + 1)
        start = int(filled[row])
        whole, response = slice(start, start + length), slice(start + prompt, start + length)
        filled[row] += length
        counts[row] += 1
        tokens[row, whole] = np.concatenate([sequence.prompt, sequence.response])
        positions[row, whole] = np.arange(length)
        segments[row, whole] = counts[row]
        mask[row, response] = 1.0
        logps[row, response] = sequence.logps
        advantages[row, response] = sequence.advantage
    fold = (micro_batches, micro_rows, row_tokens)
    rows = Rows(*(a.reshape(fold) for a in (tokens, positions, segments, mask, logps, advantages)))
    return rows, -(-used // micro_rows)
