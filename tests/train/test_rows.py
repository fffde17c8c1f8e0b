"""Packing: every response token is predicted exactly once, from the token before it, and spans see what their sequence sees."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.config import Config, replace
from jaxgrpo.train.rows import RowShape, Sequence, pack, pack_tightest
from jaxgrpo.train.sizes import row_shapes

PAD = 7


def sequences_of(groups, first=100):
    """[(prompt length, [response lengths])] -> sequences whose tokens are all different; values derive from the tokens."""
    out = []
    for prompt_length, responses in groups:
        prompt = np.arange(first, first + prompt_length, dtype=np.int32)
        first += prompt_length
        for length in responses:
            answer = np.arange(first, first + length, dtype=np.int32)
            first += length
            out.append(Sequence(prompt, answer, (-answer / 64).astype(np.float32), float(answer[0] % 5 - 2)))
    return out


def seen_by(spans, row, length):
    """For every token of the row, the places that it sees by the spans: its prefix and its span up to itself."""
    seen = [None] * length
    arrays = spans.start, spans.length, spans.first, spans.prefix_start, spans.prefix_length
    start, own, first, prefix_start, prefix = (array[row] for array in arrays)
    for s in range(spans.counts[row].sum()):
        for i in range(first[s], own[s]):
            assert seen[start[s] + i] is None, "spans do not overlap"
            seen[start[s] + i] = [*range(prefix_start[s], prefix_start[s] + prefix[s]), *range(start[s], start[s] + i + 1)]
    return seen


def folded(rows):
    """The rows with micro-batches and devices as one axis."""
    from jax import tree

    return tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), rows)


def predicted(rows):
    """[(what the predicting token sees, target, logp, advantage, sequence)] of every prediction, by spans alone."""
    rows, found = folded(rows), []
    for row in range(len(rows.tokens)):
        seen = seen_by(rows.spans, row, rows.tokens.shape[1])
        for c in range(rows.predictions.count[row]):
            places = seen[rows.predictions.source[row, c]]
            assert np.array_equal(rows.positions[row, places], np.arange(len(places)))
            values = rows.behaviour_logp[row, c], rows.advantages[row, c], (row, rows.sequence[row, c])
            found.append((tuple(rows.tokens[row, places]), rows.predictions.target[row, c], *values))
    return found


@st.composite
def packings(draw):
    """(groups, shape): lengths up to the limits, rows from exactly the longest sequence on."""
    longest_prompt, longest_response = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    response = st.integers(1, longest_response)
    group = st.tuples(st.integers(1, longest_prompt), st.lists(response, min_size=1, max_size=5))
    groups = draw(st.lists(group, max_size=8))
    count = sum(len(responses) for _, responses in groups)
    longest = longest_prompt + longest_response - 1
    row_tokens = longest + draw(st.integers(0, 30))
    capacity, devices = max(1, count + draw(st.integers(0, 3))), draw(st.integers(1, 4))
    how = draw(st.booleans()), draw(st.integers(1, 15))
    return groups, RowShape(row_tokens, devices, capacity, longest_prompt, longest_response, *how)


@settings(max_examples=300, deadline=None)
@given(packings())
def test_every_response_token_is_predicted_once_from_what_precedes_it(case):
    groups, shape = case
    sequences = sequences_of(groups)
    rows, _ = pack(sequences, shape, PAD)
    assert rows.tokens.shape == (shape.micro_batches, shape.devices, shape.row_tokens)
    found = predicted(rows)
    by_target = {int(target): rest for *rest, target in [(s, *values, target) for s, target, *values in found]}
    assert len(found) == len(by_target) == sum(len(s.response) for s in sequences)
    for s in sequences:
        whole = (*s.prompt, *s.response)
        numbers = set()
        for j, token in enumerate(s.response):
            seen, logp, advantage, number = by_target[int(token)]
            assert seen == whole[: len(s.prompt) + j]
            assert logp == s.logps[j] and advantage == np.float32(s.advantage)
            numbers.add(number)
        assert len(numbers) == 1, "one number for the sequence"
    assert len({number for *_, number in found}) == len(sequences)


@settings(max_examples=200, deadline=None)
@given(packings())
def test_a_row_holds_a_shared_prompt_once_and_nothing_else_but_padding(case):
    groups, shape = case
    rows = folded(pack(sequences_of(groups), shape, PAD)[0])
    inside = rows.segment_ids > 0
    assert (rows.tokens[~inside] == PAD).all() and (rows.positions[~inside] == 0).all()
    assert np.array_equal(rows.mask > 0, np.arange(shape.row_tokens) < rows.predictions.count[:, None])
    assert np.array_equal(rows.sequence > 0, rows.mask > 0)
    for name in ("behaviour_logp", "advantages"):
        assert (getattr(rows, name)[rows.mask == 0] == 0).all(), name
    for row in range(len(inside)):
        tokens = rows.tokens[row][inside[row]]
        if shape.share_prompts:
            assert len(set(tokens)) == len(tokens)
        seen = seen_by(rows.spans, row, shape.row_tokens)
        assert [places is not None for places in seen] == inside[row].tolist(), "spans are what is not padding"
    useful = sum(p * len(r) + sum(n - 1 for n in r) for p, r in groups)
    assert inside.sum() <= useful if shape.share_prompts else inside.sum() == useful


@settings(max_examples=200, deadline=None)
@given(packings())
def test_spans_lie_in_the_bucket_that_is_counted_for_them(case):
    groups, shape = case
    spans = folded(pack(sequences_of(groups), shape, PAD)[0]).spans
    for row in range(len(spans.start)):
        bucket = np.repeat(np.arange(len(spans.buckets)), spans.counts[row])
        sizes = (spans.length + spans.prefix_length)[row]
        for s, b in enumerate(bucket):
            assert 1 <= sizes[s] <= spans.buckets[b] and 1 <= (spans.length - spans.first)[row, s] <= spans.queries
            assert b == len(spans.buckets) - 1 or sizes[s] > spans.buckets[b + 1]
        assert (sizes[len(bucket) :] == 0).all()


@settings(max_examples=200, deadline=None)
@given(packings())
def test_rows_in_use_come_first_and_are_at_most_twice_the_least_possible(case):
    groups, shape = case
    rows, used = pack(sequences_of(groups), shape, PAD)
    busy = (folded(rows).segment_ids > 0).any(-1)
    in_use = int(busy.sum())
    assert busy[:in_use].all()
    assert used == -(-in_use // shape.devices)
    total = sum(p * len(r) + sum(r) for p, r in groups)
    assert in_use <= max(2 * total / shape.row_tokens, 1), "no two rows that are less than half full together"


@settings(max_examples=100, deadline=None)
@given(packings(), st.data())
def test_any_lengths_fit_the_shape(case, data):
    """As many sequences as there is room for, of the longest, the shortest and any other length."""
    _, shape = case
    lengths = st.one_of(st.just(shape.longest_response), st.just(1), st.integers(1, shape.longest_response))
    prompts = st.one_of(st.just(shape.longest_prompt), st.integers(1, shape.longest_prompt))
    groups = data.draw(st.lists(st.tuples(prompts, lengths), min_size=shape.capacity, max_size=shape.capacity))
    pack(sequences_of([(p, [r]) for p, r in groups]), shape, PAD)
    pack(sequences_of([(shape.longest_prompt, [r for _, r in groups])]), shape, PAD)


@settings(max_examples=100, deadline=None)
@given(packings())
def test_the_layout_depends_on_the_lengths_only(case):
    groups, shape = case
    first, used = pack(sequences_of(groups), shape, PAD)
    again, used_again = pack(sequences_of(groups), shape, PAD)
    other, used_other = pack(sequences_of(groups, first=9000), shape, PAD)
    assert used == used_again == used_other
    for name in ("tokens", "behaviour_logp", "advantages"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    for name in ("positions", "segment_ids", "mask", "sequence"):
        assert np.array_equal(getattr(first, name), getattr(other, name))
    assert np.array_equal(first.predictions.source, other.predictions.source)


def test_the_number_of_devices_does_not_move_a_sequence():
    sequences = sequences_of([(3, [5, 1]), (4, [4, 6]), (2, [3]), (6, [1])])
    layouts = [folded(pack(sequences, RowShape(16, d, 6, 6, 6, True, 4), PAD)[0]).tokens[:3] for d in (1, 2, 3)]
    assert all(np.array_equal(layout, layouts[0]) for layout in layouts)


def test_an_empty_minibatch_uses_no_micro_batch():
    rows, used = pack([], RowShape(8, 2, 3, 4, 4, True, 8), PAD)
    assert used == 0
    assert rows.tokens.shape == (2, 2, 8)


SHAPE = RowShape(8, 1, 2, 4, 5, True, 8)


@pytest.mark.parametrize(
    "groups, shape, message",
    [
        ([(4, [6])], SHAPE, r"a sequence of 4 \+ 6 tokens exceeds 4 \+ 5"),
        ([(4, [5])], dataclasses.replace(SHAPE, row_tokens=7), r"a sequence of 4 \+ 5 tokens does not fit a row of 7"),
        ([(1, [1, 1, 1])], SHAPE, "3 sequences exceed the capacity of 2"),
        ([(0, [3])], SHAPE, "a prompt of 0 and a response of 3 tokens; both need one at least"),
        ([(2, [0])], SHAPE, "a prompt of 2 and a response of 0 tokens; both need one at least"),
    ],
)
def test_sequences_that_cannot_fit_are_refused_with_their_size(groups, shape, message):
    sequences = [
        Sequence(np.ones(p, np.int32), np.ones(n, np.int32), np.zeros(n, np.float32), 0.0) for p, r in groups for n in r
    ]
    with pytest.raises(ValueError, match=message):
        pack(sequences, shape, PAD)


def paper_like(seed, prompts=128, samples=8):
    """Response lengths like the published runs': mean about 1,000, a few at the limit of 4,096; prompts of about 100 tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(1.6, 640, (prompts, samples)), 1, 4096).astype(int)
    assert 900 < lengths.mean() < 1100 and (lengths == 4096).any()
    return [(int(rng.integers(40, 200)), group.tolist()) for group in lengths]


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("devices", [1, 8, 16, 32, 64])
def test_at_most_a_tenth_of_the_computed_tokens_is_padding_at_paper_like_lengths(devices, platform):
    config = replace(Config(), {"mesh.fsdp": devices, "train.row_tokens": 8192})
    shapes = row_shapes(config, 1024, platform)
    assert len(shapes) <= 6
    for seed in range(3):
        groups = paper_like(seed)
        useful = sum(p * len(r) + sum(r) for p, r in groups)
        rows, used = pack_tightest(sequences_of(groups), shapes, PAD)
        assert used * devices * rows.tokens.shape[-1] <= 1.10 * useful
        assert rows.tokens.shape[-1] in [shape.row_tokens for shape in shapes]
