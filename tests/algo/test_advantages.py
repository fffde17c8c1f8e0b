"""Group advantages against the definition in float64 NumPy, and against torch's statistics."""

import numpy as np
import numpy_grpo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxgrpo.algo import group_advantages

SHAPES = [(1, 1), (1, 2), (3, 4), (5, 8), (2, 16)]
rewards_of_a_step = st.sampled_from(SHAPES).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0, -1.0, 5.0]))
)


@settings(max_examples=150, deadline=None)
@given(rewards=rewards_of_a_step, std_normalise=st.booleans())
def test_advantages_equal_the_definition(rewards, std_normalise):
    expected = numpy_grpo.advantages(rewards, std_normalise)
    got = group_advantages(rewards, std_normalise=std_normalise)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_advantages_equal_those_of_torch(shape):
    torch = pytest.importorskip("torch")
    rewards = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    group = torch.tensor(rewards)
    expected = (group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-6)
    np.testing.assert_allclose(group_advantages(rewards), expected.numpy(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(value=st.floats(-1e6, 1e6, width=32), shape=st.sampled_from(SHAPES[1:]), std_normalise=st.booleans())
def test_groups_of_equal_rewards_have_exactly_zero_advantages(value, shape, std_normalise):
    advantages = np.asarray(group_advantages(np.full(shape, value, np.float32), std_normalise=std_normalise))
    assert (advantages == 0).all(), "a rounded mean must not become an advantage once it is divided by eps"


def test_a_group_of_one_keeps_its_reward():
    rewards = np.array([[1.0], [0.0], [-2.5]], np.float32)
    np.testing.assert_allclose(group_advantages(rewards), rewards, rtol=1e-5)
    assert np.array_equal(group_advantages(rewards, std_normalise=False), rewards)


def test_half_right_groups_of_two_give_plus_and_minus_the_square_root_of_a_half():
    np.testing.assert_allclose(group_advantages([[1.0, 0.0]]), [[0.5**0.5, -(0.5**0.5)]], rtol=1e-5)


def test_a_larger_eps_shrinks_the_advantages():
    rewards = np.array([[0.0, 1.0, 1.0]], np.float32)
    np.testing.assert_allclose(group_advantages(rewards, eps=0.5), numpy_grpo.advantages(rewards, eps=0.5), rtol=1e-5)


def test_rewards_that_are_not_a_table_are_refused():
    with pytest.raises(ValueError, match=r"\[prompts, samples\], not \(3,\)"):
        group_advantages(np.zeros(3))
