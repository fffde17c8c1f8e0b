"""int8 weights and int8 KV: what is stored, what is read, and that only the rounding of the stored numbers is new."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import engine_of, load, prompts_of, requests_of, said
from test_logprobs import INT8, LENGTHS, differences

from jaxgrpo.model.attention import attend_blocks
from jaxgrpo.model.parameters import parameter_table
from jaxgrpo.model.quantised import Quantised, quantise
from jaxgrpo.model.qwen2 import Qwen2
from jaxgrpo.parallel.mesh import rollout_mesh, trainer_mesh
from jaxgrpo.rollout import cache as kv
from jaxgrpo.rollout.layout import make_handover
from jaxgrpo.rollout.scheduler import generate
from jaxgrpo.train.state import parameter_shardings
from tests.model.tiny_hf_model import write_tiny_model

MATRICES = {"q_w", "k_w", "v_w", "o_w", "gate_w", "up_w", "down_w"}


def dequantised(weights: dict, config) -> dict:
    """The trainer's stacked float32 parameters that a rollout layout stands for, written with NumPy."""

    def whole(name, value):
        if not isinstance(value, Quantised):
            return np.asarray(value, np.float32)
        values, scale = np.asarray(value.values, np.float32), np.asarray(value.scale)
        return values * (scale[:, None] if name == "embed" else scale)

    flat = {name: whole(name, value) for name, value in weights.items() if name != "layers"}
    stacked = {f"layers.{n}": np.stack([whole(n, layer[n]) for layer in weights["layers"]]) for n in weights["layers"][0]}
    return flat | {spec.name: stacked[spec.name].reshape(spec.shape) for spec in parameter_table(config) if spec.stacked}


@pytest.mark.parametrize("shape, axes", [((64, 4, 16), (0,)), ((4, 16, 64), (0, 1)), ((2, 96, 64), (1,)), ((3, 5, 16), -1)])
def test_quantised_numbers_are_those_of_numpy_and_off_by_half_a_step_at_most(shape, axes):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = quantise(jnp.asarray(x), axes)
    scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(got.values, np.round(x / scale).astype(np.int8))
    np.testing.assert_allclose(got.scale, np.squeeze(scale, axes), rtol=1e-6)
    assert (np.abs(got.values * scale - x) <= 0.501 * scale).all()
    assert got.values.dtype == jnp.int8 and got.scale.dtype == jnp.float32 and np.abs(got.values).max() == 127


def test_zeros_stay_zeros_and_what_is_not_finite_stays_not_finite():
    x = jnp.array([[0.0, 0.0], [1.0, jnp.nan], [1.0, jnp.inf], [2.0, -1.0]])
    got = quantise(x, 1)
    assert np.array_equal(got.values[0], [0, 0])
    finite = np.isfinite(np.asarray(got.values * got.scale[:, None])).all(axis=1)
    assert finite.tolist() == [True, False, False, True]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_matrices_are_stored_in_int8_and_all_else_in_the_compute_dtype(tmp_path, tied):
    untied = load(write_tiny_model(tmp_path, vocab=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=96, tied=tied))
    c, mesh = untied.config, jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("replica", "tensor"))
    weights = make_handover(c, mesh, "bfloat16", "int8")(
        jax.device_put(untied.params, jax.sharding.NamedSharding(mesh, jax.P()))
    )
    assert {name for name, value in weights["layers"][0].items() if isinstance(value, Quantised)} == MATRICES
    assert {name for name in weights if isinstance(weights[name], Quantised)} == {"embed" if tied else "lm_head"}
    for array in jax.tree.leaves(weights, is_leaf=lambda x: isinstance(x, Quantised)):
        if isinstance(array, Quantised):
            assert array.values.dtype == jnp.int8 and array.scale.dtype == jnp.float32
        else:
            assert array.dtype == jnp.bfloat16
    D, N, K, H, F, V = c.embed, c.heads, c.kv_heads, c.head_dim, c.mlp, c.vocab
    layer = 2 * N * H * D + 2 * K * H * D + 3 * D * F + 4 * (N * H + 2 * K * H + D + 2 * F + D)  # values, scales
    layer += 2 * (N * H + 2 * K * H + 2 * D)  # biases and norms
    ends = V * D + 4 * V + 2 * D + (0 if tied else 2 * V * D)
    assert sum(x.nbytes for x in jax.tree.leaves(weights)) == c.layers * layer + ends


def test_dequantised_weights_are_off_by_half_a_step_of_their_output_channel(model):
    _, weights = engine_of(model, **INT8)
    stood_for = dequantised(weights, model.config)
    for spec in parameter_table(model.config):
        exact = np.asarray(model.params[spec.name])
        inputs = (1,) if spec.name == "embed" else tuple(range(1, 1 + spec.inputs))
        step = np.abs(exact).max(axis=inputs, keepdims=True) / 127 if spec.init == "normal" else 0.0
        assert (np.abs(stood_for[spec.name] - exact) <= 0.501 * step + 1e-7).all(), spec.name


def test_the_sampler_with_int8_weights_is_the_trainer_with_the_weights_these_stand_for(model):
    engine, weights = engine_of(model, weights="int8")
    trainer = Qwen2(model.config, dequantised(weights, model.config))
    assert np.abs(differences(trainer, engine, weights, samples=2)).max() <= 1e-4


def test_eight_devices_store_the_same_bits_as_one(model):
    one, eight = (engine_of(model, *mesh, **INT8)[1] for mesh in ((1, 1), (4, 2)))
    assert jax.tree.structure(one) == jax.tree.structure(eight)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True))


def test_the_hand_over_moves_int8_from_device_to_device(model):
    mesh = trainer_mesh((1, 8, 1))
    shardings = parameter_shardings(model.config, mesh)
    params = {n: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=shardings[n]) for n, p in model.params.items()}
    handover = make_handover(model.config, rollout_mesh(mesh, 1), "float32", "int8")
    program = handover.lower(params).compile().as_text()
    moved = re.findall(r"= (\w+)\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", program)
    matrices = [dtype for dtype, shape in moved if "," in shape]
    assert matrices and set(matrices) == {"s8"}


def test_the_cache_is_stored_in_int8_with_a_scale_per_position_and_head(model):
    engine, _ = engine_of(model, **INT8)
    c, s, state = model.config, engine.settings, engine.init_decode_state()
    for layer in state.cache:
        assert layer.k.dtype == layer.v.dtype == jnp.int8
        assert layer.k_scale.dtype == layer.v_scale.dtype == jnp.float32
    positions = s.slots * s.blocks(s.max_prompt + s.max_new) * s.block
    assert sum(x.nbytes for x in jax.tree.leaves(state.cache)) == c.layers * positions * c.kv_heads * 2 * (c.head_dim + 4)


def random_kv(blocks: int, slots: int, block: int, seed: int = 0):
    """Prompts' K and V [B, S, K, H] that fill the blocks."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(slots, blocks * block, 2, 16)), jnp.float32) for _ in "kv"]


def as_float(cache: kv.LayerCache) -> tuple[np.ndarray, np.ndarray]:
    """K [n, B, K, H, T] and V [n, B, K, T, H] that an int8 cache stands for."""
    return np.asarray(cache.k * cache.k_scale[:, :, :, None]), np.asarray(cache.v * cache.v_scale[..., None])


def test_prompts_inserted_and_positions_written_come_back_up_to_half_a_step():
    prompts = kv.from_prompts(*random_kv(2, 3, 4), 4, "int8")
    exact = kv.from_prompts(*random_kv(2, 3, 4), 4, "float32")
    slots, plain = (kv.empty(3, 5, 2, 16, 4, dtype) for dtype in ("int8", "float32"))
    for slot in (3, 0):
        slots, plain = kv.insert(slots, prompts, 1, slot), kv.insert(plain, exact, 1, slot)
    k, v = (x[:, 0] for x in random_kv(1, 5, 4, seed=1))
    where = jnp.array([8, 2, 11, 7, 99])  # the last lies behind the cache
    slots, plain = kv.write(slots, where, k, v), kv.write(plain, where, k, v)
    steps = [np.asarray(scale) for scale in (slots.k_scale[:, :, :, None], slots.v_scale[..., None])]
    for got, expected, step in zip(as_float(slots), (plain.k, plain.v), steps, strict=True):
        assert (np.abs(got - expected) <= 0.501 * step + 1e-30).all()
        assert np.abs(expected).max() > 2


def test_attention_over_an_int8_cache_is_attention_over_what_it_stands_for():
    cache = kv.from_prompts(*random_kv(3, 4, 8), 8, "int8")
    q = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, 16)), jnp.float32)
    lengths = jnp.array([1, 24, 13, 8])
    got = attend_blocks(q, cache.k, cache.v, lengths, cache.k_scale, cache.v_scale)
    np.testing.assert_allclose(got, attend_blocks(q, *as_float(cache), lengths), atol=1e-5)


def test_most_greedy_tokens_are_those_of_float32(model):
    prompts = prompts_of([*LENGTHS, 3, 20, 25])
    exact, rounded = (
        [r.tokens for (r,) in generate(*engine_of(model, **changes), requests_of(prompts))] for changes in ({}, INT8)
    )
    assert (
        np.mean([a == b for ours, theirs in zip(rounded, exact, strict=True) for a, b in zip(ours, theirs, strict=True)]) > 0.7
    )


def test_slots_and_order_do_not_change_a_bit_in_int8_either(model):
    whole = requests_of(prompts_of([3, 32, 9, 16, 17]), samples=3, temperature=0.9)
    requests = [replace(request, max_new=limit) for request, limit in zip(whole, (24, 1, 7, 13, 2), strict=True)]
    reference = said(generate(*engine_of(model, **INT8), requests))
    assert said(generate(*engine_of(model, **INT8), requests[::-1])) == reference[::-1]
    assert said(generate(*engine_of(model, **INT8), requests[:1])) == reference[:1]


def test_the_decoding_loop_carries_int8_weights_and_no_floating_point_copy_of_them(model):
    engine, weights = engine_of(model, **INT8)
    program = engine._decode.lower(weights, engine.init_decode_state()).compile().as_text()
    loop = max(re.findall(r"= (\(.*\)) while\(", program), key=len)
    carried = re.findall(r"(\w+)\[64,96\]", loop)  # the gate and up matrices
    assert carried == ["s8"] * 2 * model.config.layers
