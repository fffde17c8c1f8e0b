"""Packing: every token is placed exactly once, where mask, positions and segments say, whatever the lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.train.rows import Sequence, pack

PAD = 7


def sequences_of(lengths, first=100):
    """Sequences whose tokens are all different numbers; log-probabilities and advantages derive from them."""
    out = []
    for prompt, response in lengths:
        tokens = np.arange(first, first + prompt + response, dtype=np.int32)
        first += prompt + response
        answer = tokens[prompt:]
        out.append(Sequence(tokens[:prompt], answer, (-answer / 64).astype(np.float32), float(answer[0] % 5 - 2)))
    return out


def unpacked(rows):
    """[(tokens, mask, logps, advantages)] of every segment, read by segment ids alone, with the row each was in."""
    flat = {name: value.reshape(-1, value.shape[-1]) for name, value in vars(rows).items()}
    found = []
    for row in range(len(flat["tokens"])):
        for segment in range(1, flat["segment_ids"][row].max() + 1):
            places = np.flatnonzero(flat["segment_ids"][row] == segment)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places))), "a segment is one run"
            assert np.array_equal(flat["positions"][row, places], np.arange(len(places)))
            found.append(
                (row, *(flat[name][row, places] for name in ("tokens", "mask", "behaviour_logp", "advantages"))),
            )
    return found


@st.composite
def packings(draw):
    """(lengths of prompts and responses, row_tokens, micro_rows, capacity)."""
    row_tokens = draw(st.integers(2, 24))
    lengths = st.integers(1, row_tokens).flatmap(
        lambda total: st.integers(1, total).map(lambda response: (total - response, response))
    )
    many = draw(st.lists(lengths, max_size=20))
    return many, row_tokens, draw(st.integers(1, 6)), max(1, len(many) + draw(st.integers(0, 5)))


@settings(max_examples=300, deadline=None)
@given(packings())
def test_every_token_is_placed_exactly_once(case):
    lengths, row_tokens, micro_rows, capacity = case
    sequences = sequences_of(lengths)
    rows, used = pack(sequences, row_tokens=row_tokens, micro_rows=micro_rows, pad_id=PAD, capacity=capacity)
    assert rows.tokens.shape == (-(-capacity // micro_rows), micro_rows, row_tokens)
    found = unpacked(rows)
    assert len(found) == len(sequences)
    by_first_token = {int(tokens[0]): rest for _, tokens, *rest in found}
    by_tokens = {int(tokens[0]): tokens for _, tokens, *_ in found}
    for sequence in sequences:
        whole = np.concatenate([sequence.prompt, sequence.response])
        mask, logps, advantages = by_first_token[int(whole[0])]
        prompt, response = np.zeros(len(sequence.prompt)), np.ones(len(sequence.response))
        assert np.array_equal(by_tokens[int(whole[0])], whole)
        assert np.array_equal(mask, np.concatenate([prompt, response]))
        assert np.array_equal(logps, np.concatenate([prompt, sequence.logps]).astype(np.float32))
        assert np.array_equal(advantages, np.concatenate([prompt, response * sequence.advantage]))


@settings(max_examples=200, deadline=None)
@given(packings())
def test_padding_is_segment_zero_and_empty(case):
    lengths, row_tokens, micro_rows, capacity = case
    rows, _ = pack(sequences_of(lengths), row_tokens=row_tokens, micro_rows=micro_rows, pad_id=PAD, capacity=capacity)
    padding = rows.segment_ids == 0
    assert (rows.tokens[padding] == PAD).all()
    for name in ("positions", "mask", "behaviour_logp", "advantages"):
        assert (vars(rows)[name][padding] == 0).all(), name
    assert (~padding).sum() == sum(map(sum, lengths))


@settings(max_examples=200, deadline=None)
@given(packings())
def test_rows_in_use_come_first_and_are_at_most_twice_the_least_possible(case):
    lengths, row_tokens, micro_rows, capacity = case
    rows, used = pack(sequences_of(lengths), row_tokens=row_tokens, micro_rows=micro_rows, pad_id=PAD, capacity=capacity)
    busy = (rows.segment_ids > 0).any(-1).reshape(-1)
    in_use = int(busy.sum())
    assert busy[:in_use].all()
    assert used == -(-in_use // micro_rows)
    assert in_use <= max(2 * sum(map(sum, lengths)) / row_tokens, 1), "no two rows that are less than half full together"


@settings(max_examples=100, deadline=None)
@given(packings())
def test_the_layout_depends_on_the_lengths_only(case):
    lengths, row_tokens, micro_rows, capacity = case
    sizes = {"row_tokens": row_tokens, "micro_rows": micro_rows, "pad_id": PAD, "capacity": capacity}
    first, used = pack(sequences_of(lengths), **sizes)
    again, used_again = pack(sequences_of(lengths), **sizes)
    other, used_other = pack(sequences_of(lengths, first=9000), **sizes)
    assert used == used_again == used_other
    for name in vars(first):
        assert np.array_equal(vars(first)[name], vars(again)[name])
    for name in ("positions", "segment_ids", "mask"):
        assert np.array_equal(vars(first)[name], vars(other)[name])


def test_the_micro_batch_size_does_not_move_a_sequence():
    lengths = [(3, 5), (1, 1), (4, 4), (2, 6), (0, 3), (6, 1)]
    layouts = []
    for micro_rows in (1, 2, 3, 6):
        rows, _ = pack(sequences_of(lengths), row_tokens=10, micro_rows=micro_rows, pad_id=PAD, capacity=6)
        layouts.append(rows.tokens.reshape(-1, 10))
    assert all(np.array_equal(layout, layouts[0]) for layout in layouts)


def test_an_empty_minibatch_uses_no_micro_batch():
    rows, used = pack([], row_tokens=4, micro_rows=2, pad_id=PAD, capacity=3)
    assert used == 0
    assert rows.tokens.shape == (2, 2, 4)


def test_sequences_that_cannot_fit_are_refused_with_their_size():
    with pytest.raises(ValueError, match="a sequence of 9 tokens does not fit a row of 8"):
        pack(sequences_of([(4, 5)]), row_tokens=8, micro_rows=1, pad_id=PAD, capacity=1)
    with pytest.raises(ValueError, match="3 sequences exceed the capacity of 2"):
        pack(sequences_of([(1, 1)] * 3), row_tokens=8, micro_rows=1, pad_id=PAD, capacity=2)
