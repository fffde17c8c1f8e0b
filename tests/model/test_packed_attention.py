"""Attention over spans of a flat row against dense masked attention: results and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.model.attention import attend
from jaxgrpo.model.packed_attention import Spans, attend_spans, bucket_lengths, splash

T, HEADS, KV_HEADS, SIZE, PLACES = 96, 4, 2, 8, 40


def spans_of(pieces, longest, queries):
    """Spans from (start, length, prefix start, prefix length) of each, cut into parts of `queries`, as packing leaves them."""
    buckets = bucket_lengths(longest)
    parts = [
        (start, min(length, first + queries), first, *prefix)
        for start, length, *prefix in pieces
        for first in range(0, length, queries)
    ]
    parts.sort(key=lambda part: -(part[1] + part[4]))
    arrays = np.zeros((5, PLACES), np.int32)
    arrays[:, : len(parts)] = np.array(parts, np.int32).reshape(-1, 5).T
    counts = np.zeros(len(buckets), np.int32)
    for _, length, _, _, prefix in parts:
        counts[max(b for b, size in enumerate(buckets) if size >= prefix + length)] += 1
    return Spans(*arrays, counts, buckets, queries)


def dense(q, k, v, pieces):
    """The same from a [T, T] mask; zero outside all spans."""
    mask, inside = np.zeros((T, T), bool), np.zeros((T, 1, 1), bool)
    for start, length, prefix_start, prefix in pieces:
        for i in range(start, start + length):
            mask[i, prefix_start : prefix_start + prefix] = mask[i, start : i + 1] = inside[i] = True
    return jnp.where(inside, attend(q[None], k[None], v[None], jnp.asarray(mask)[None, None])[0], 0)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(T, n, SIZE)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]


@st.composite
def layouts(draw):
    """Groups one after another: a prompt and the responses that see it, with gaps, as far as the row reaches."""
    pieces, at = [], 0
    while len(pieces) < 14 and at < T:
        prompt = draw(st.integers(1, 40))
        if at + prompt > T:
            break
        start, at = at, at + prompt
        pieces.append((start, prompt, 0, 0))
        for own in draw(st.lists(st.integers(1, 30), max_size=5)):
            if at + own <= T:
                pieces.append((at, own, start, prompt))
                at += own
        at += draw(st.integers(0, 5))
    return pieces


run = jax.jit(lambda q, k, v, dout, spans: pulled(partial(attend_spans, "xla"), q, k, v, dout, spans))


def pulled(function, q, k, v, dout, *rest):
    out, pull = jax.vjp(lambda q, k, v: function(q, k, v, *rest), q, k, v)
    return out, *pull(dout)


@settings(max_examples=25, deadline=None)
@given(layouts(), st.integers(0, 9))
def test_results_and_gradients_equal_dense_attention(pieces, seed):
    q, k, v, dout = arrays(seed)
    got = run(q, k, v, dout, spans_of(pieces, 70, 24))
    expected = pulled(partial(dense, pieces=pieces), q, k, v, dout)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    assert run._cache_size() == 1, "layouts are data"


def test_a_row_without_spans_is_zero_and_so_are_its_gradients():
    q, k, v, dout = arrays(0)
    assert all((np.asarray(x) == 0).all() for x in run(q, k, v, dout, spans_of([], 70, 24)))


def test_buckets_reach_the_longest_and_fall_in_small_steps():
    for longest in (1, 31, 32, 191, 6143):
        buckets = bucket_lengths(longest)
        assert buckets[0] - 32 < longest <= buckets[0] and len(buckets) <= 8
        assert all(a > b >= a * 0.5 or b == 32 for a, b in zip(buckets, buckets[1:], strict=False))


@pytest.mark.parametrize("size", [64, 128])
def test_the_tpu_kernel_interpreted_on_a_cpu_equals_dense_attention(size):
    rng = np.random.default_rng(1)
    length = 256
    q, k, v, dout = (rng.normal(size=(length, n, size)).astype(np.float32) for n in (4, 2, 2, 4))
    segments = np.repeat([1, 2, 3, 0], [100, 30, 90, 36]).astype(np.int32)
    mask = (segments[:, None] == segments) & np.tril(np.ones((length, length), bool))
    inside = jnp.asarray(segments > 0)[:, None, None]

    def masked(q, k, v):
        return jnp.where(inside, attend(q[None], k[None], v[None], jnp.asarray(mask)[None, None])[0], 0)

    kernel = lambda q, k, v: jnp.where(inside, splash(q, k, v, segments, interpret=True), 0)  # noqa: E731
    for ours, theirs in zip(pulled(kernel, q, k, v, dout), pulled(masked, q, k, v, dout), strict=True):
        assert np.isfinite(np.asarray(ours)).all()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
