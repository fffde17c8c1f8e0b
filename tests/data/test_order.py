import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.data import DataError, PromptOrder
from jaxgrpo.data.hashing import hash_words

sizes = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def test_splitmix64_gives_its_published_values():
    # The generator seeded with 1234567: its n-th output is the mix of seed + (n - 1) * golden.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    golden, state = 0x9E3779B97F4A7C15, 1234567
    for expected in published:
        assert int(hash_words(state)) == expected
        state = (state + golden) % 2**64


@given(sizes, st.integers(0, 40))
def test_curriculum_is_file_order_repeated_without_the_incomplete_last_batch(size, step):
    n, batch = size
    kept = list(range(n // batch * batch))
    cursor = step * batch
    expected = [kept[position % len(kept)] for position in range(cursor, cursor + batch)]
    assert PromptOrder(n, batch, "curriculum", 0).batch_positions(step).tolist() == expected


@settings(deadline=None)
@given(sizes, st.integers(0, 2**40), st.integers(0, 3))
def test_shuffle_visits_no_problem_twice_in_an_epoch_and_drops_less_than_a_batch(size, seed, epoch):
    n, batch = size
    order = PromptOrder(n, batch, "shuffle", seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = np.concatenate([order.batch_positions(step) for step in steps])
    assert len(set(seen.tolist())) == len(seen) == n // batch * batch
    assert seen.min() >= 0 and seen.max() < n and n - len(seen) < batch


def test_shuffle_depends_on_seed_and_epoch_and_on_nothing_else():
    order = PromptOrder(64, 16, "shuffle", 7)
    late_first = order.batch_positions(4001)
    again = PromptOrder(64, 16, "shuffle", 7)
    assert np.array_equal(again.batch_positions(4001), late_first)
    epochs = {tuple(np.concatenate([order.batch_positions(4 * e + i) for i in range(4)])) for e in range(20)}
    seeds = {tuple(PromptOrder(64, 64, "shuffle", s).batch_positions(0)) for s in range(20)}
    assert len(epochs) == len(seeds) == 20


def test_shuffle_puts_every_problem_at_every_place_about_equally_often():
    counts = np.zeros((8, 8))
    for seed in range(4000):
        counts[np.arange(8), PromptOrder(8, 8, "shuffle", seed).batch_positions(0)] += 1
    assert np.abs(counts / 4000 - 1 / 8).max() < 0.03


def test_the_papers_full_run_takes_105_steps_of_512_in_one_epoch():
    assert PromptOrder(53_904, 512, "curriculum", 0).steps_per_epoch == 105


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, 4, "curriculum", 0), ["3 problems", "4 prompts", "at most 3"]),
        ((0, 1, "curriculum", 0), ["0 problems"]),
        ((3, 0, "curriculum", 0), ["batch of 0"]),
        ((3, 2, "random", 0), ["'random'", "curriculum, shuffle"]),
    ],
)
def test_impossible_orders_are_refused_with_the_value_and_the_remedy(arguments, words):
    with pytest.raises(DataError) as error:
        PromptOrder(*arguments)
    assert all(word in str(error.value) for word in words)


def test_steps_count_from_zero():
    with pytest.raises(ValueError, match="-1"):
        PromptOrder(4, 2, "curriculum", 0).batch_positions(-1)
