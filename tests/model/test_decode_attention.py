import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.model.attention import attend_blocks
from jaxgrpo.model.decode_attention import attend_cache, bytes_read, can_run, choose_backend, write_cache
from jaxgrpo.model.quantised import quantise
from jaxgrpo.model.ragged_attention import work_list

KERNELS = ["interpret", "interpret-triton"]
HEADS = [(64, 2, 7), (128, 1, 5), (128, 2, 6), (128, 1, 8), (64, 1, 2)]  # head size, kv heads, queries a kv head


def random_cache(rng, blocks, slots, kv_heads, block, head_dim):
    k = rng.normal(size=(blocks, slots, kv_heads, head_dim, block)).astype(np.float32)
    return jnp.array(k), jnp.array(rng.normal(size=(blocks, slots, kv_heads, block, head_dim)).astype(np.float32))


def exact_attention(q_BNH, k_nBKHT, v_nBKTH, lengths_B):
    """[B, N, H] in float64, slot by slot and head by head over the positions that exist."""
    n, B, K, H, T = k_nBKHT.shape
    k_BKSH = np.asarray(k_nBKHT, np.float64).transpose(1, 2, 0, 4, 3).reshape(B, K, n * T, H)
    v_BKSH = np.asarray(v_nBKTH, np.float64).transpose(1, 2, 0, 3, 4).reshape(B, K, n * T, H)
    out_BNH = np.zeros(q_BNH.shape)
    for b, length in enumerate(lengths_B):
        for head in range(q_BNH.shape[1]):
            kv = head // (q_BNH.shape[1] // K)
            scores_S = k_BKSH[b, kv, :length] @ np.asarray(q_BNH[b, head], np.float64) / H**0.5
            weights_S = np.exp(scores_S - scores_S.max())
            out_BNH[b, head] = weights_S / weights_S.sum() @ v_BKSH[b, kv, :length]
    return out_BNH


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim, kv_heads, queries", HEADS)
def test_the_ragged_kernels_give_exact_attention_at_every_kind_of_length(head_dim, kv_heads, queries, kernel):
    rng, block, blocks = np.random.default_rng(head_dim + queries), 128, 3
    lengths = np.array([1, 2, 63, 64, 65, block - 1, block, block + 1, 2 * block, 2 * block + 77, blocks * block])
    k, v = random_cache(rng, blocks, len(lengths), kv_heads, block, head_dim)
    q = jnp.array(rng.normal(size=(len(lengths), kv_heads * queries, head_dim)).astype(np.float32))
    got = attend_cache(q, k, v, jnp.array(lengths), backend=kernel)
    np.testing.assert_allclose(got, exact_attention(q, k, v, lengths), atol=1e-5)
    np.testing.assert_allclose(got, attend_blocks(q, k, v, jnp.array(lengths)), atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_ragged_kernels_never_look_behind_a_length(kernel):
    rng, lengths = np.random.default_rng(1), jnp.array([1, 130, 256])
    k, v = random_cache(rng, 3, 3, 1, 128, 128)
    q = jnp.array(rng.normal(size=(3, 4, 128)).astype(np.float32))
    poisoned = [x.at[2].set(jnp.nan) for x in (k, v)]
    np.testing.assert_array_equal(
        attend_cache(q, *poisoned, lengths, backend=kernel), attend_cache(q, k, v, lengths, backend=kernel)
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_ragged_kernels_read_an_int8_cache(head_dim, kernel):
    rng, lengths = np.random.default_rng(2), np.array([1, 127, 129, 256])
    k, v = random_cache(rng, 2, 4, 2, 128, head_dim)
    q = jnp.array(rng.normal(size=(4, 6, head_dim)).astype(np.float32))
    k_whole, v_whole = quantise(k.swapaxes(-1, -2), -1), quantise(v, -1)
    k8, k_scale, v8, v_scale = k_whole.values.swapaxes(-1, -2), k_whole.scale, v_whole.values, v_whole.scale
    got = attend_cache(q, k8, v8, jnp.array(lengths), k_scale, v_scale, backend=kernel)
    restored = np.asarray(k8, np.float64) * np.asarray(k_scale)[..., None, :], np.asarray(v8) * np.asarray(v_scale)[..., None]
    np.testing.assert_allclose(got, exact_attention(q, *restored, lengths), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_write_kernel_replaces_one_position_a_slot_and_nothing_else(head_dim, dtype):
    rng = np.random.default_rng(3)
    n, B, K, T = 2, 6, 2, 256
    position = np.array([0, 127, 128, T, n * T - 1, n * T])  # the last one is dropped

    def draw(*shape):
        return jnp.array(rng.integers(-127, 128, shape) if dtype == "int8" else rng.normal(size=shape)).astype(dtype)

    k, v, new_k, new_v = draw(n, B, K, head_dim, T), draw(n, B, K, T, head_dim), draw(B, K, head_dim), draw(B, K, head_dim)
    want_k, want_v = np.array(k), np.array(v)
    for b, at in enumerate(position[:-1]):
        want_k[at // T, b, :, :, at % T], want_v[at // T, b, :, at % T] = new_k[b], new_v[b]
    for backend in ("interpret", "xla", "triton"):
        got_k, got_v = write_cache(k, v, jnp.array(position), new_k, new_v, backend=backend)
        np.testing.assert_array_equal(np.asarray(got_k), want_k)
        np.testing.assert_array_equal(np.asarray(got_v), want_v)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_work_list_names_every_block_that_holds_something_once(lengths):
    count, slot_W, block_W = jax.device_get(work_list(jnp.array(lengths), 5, 128))
    want = [(slot, block) for slot, length in enumerate(lengths) for block in range(min(5, -(-length // 128)))]
    assert list(zip(slot_W[:count], block_W[:count], strict=True)) == want


def test_on_long_tailed_lengths_the_ragged_kernel_reads_a_third_of_what_xla_reads():
    """The paper's responses have some 1,100 tokens of 4,096 on average: prompt and response fill a quarter of the limit."""
    rng = np.random.default_rng(4)
    limit, block = 6144, 512
    lengths = np.minimum(200 + rng.lognormal(mean=6.9, sigma=0.75, size=4096).astype(int), limit)
    assert 0.2 < lengths.mean() / limit < 0.28 and lengths.max() == limit
    position = 2 * 2 * 128 * 2  # K and V of two heads of 128 in bfloat16
    xla = bytes_read("xla", lengths, limit // block, block, position)
    ragged = bytes_read("ragged", lengths, limit // block, block, position)
    assert xla == 4096 * limit * position
    assert ragged == sum(-(-int(length) // block) for length in lengths) * block * position
    assert (lengths.mean() + block / 2) / limit == pytest.approx(ragged / xla, rel=0.05)
    assert ragged / xla < 1 / 3


def test_the_kernel_is_chosen_on_tpus_where_nothing_would_be_padded():
    assert choose_backend("tpu", 512, 64) == choose_backend("tpu", 128, 128) == "ragged"
    assert choose_backend("tpu", 32, 128) == choose_backend("tpu", 512, 80) == choose_backend("cpu", 512, 128) == "xla"
    assert choose_backend("gpu", 512, 128) == "xla", "the GPU's kernel waits for its first run"
    assert can_run("triton", "gpu", 512, 64) and not can_run("triton", "gpu", 512, 80) and not can_run("triton", "cpu", 512, 64)
