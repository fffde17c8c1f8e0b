"""Automatic sizes and the memory table against arithmetic written out, and what is said where sizes do not fit."""

import dataclasses

import jax
import pytest

from jaxgrpo.config import Config, ConfigError, load_config, replace
from jaxgrpo.machine import usable_cores
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import initialise
from jaxgrpo.model.source import resolve_model
from jaxgrpo.parallel.mesh import MeshError, rollout_mesh, trainer_mesh
from jaxgrpo.parallel.sharding import replicated
from jaxgrpo.rollout.layout import make_handover
from jaxgrpo.train.sizes import GIB, adopt, cache_bytes_per_slot, memory_table, resolve_sizes

TINY = ModelConfig(
    vocab=64,
    embed=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=96,
    tied=True,
    rope_theta=1e4,
    rms_eps=1e-6,
    max_positions=64,
)
TINY_SLOT = 2 * 2 * 2 * 16 * (6 + 10) * 4  # K and V x layers x kv heads x head size x tokens x float32


def tiny(*overrides) -> Config:
    sizes = ["data.prompts_per_step=8", "data.max_prompt_tokens=6", "rollout.samples=4", "rollout.max_new_tokens=10"]
    return load_config(None, [*sizes, "train.minibatch_prompts=4", "rollout.dtype=float32", *overrides])


def qwen(size):
    return resolve_model(f"random:qwen2.5-{size}").config


def test_sizes_of_a_small_run_on_eight_cpu_devices():
    config = resolve_sizes(tiny(), TINY, 8, None)
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (1, 8, 1)
    assert config.train.row_tokens == 32, "16 sequences of a minibatch, two on each device"
    assert config.train.logit_chunk == 256
    assert config.rollout.slots == 32, "all sequences of a step: they are few"
    assert config.rollout.tensor == 1
    assert config.rollout.chunk == 4
    assert config.rollout.prefill_tokens == 48
    assert config.reward.workers == len(usable_cores())


def test_sizes_of_the_paper_recipe_on_eight_accelerators():
    device_bytes = 16 * GIB
    config = resolve_sizes(Config(), qwen("0.5b"), 8, device_bytes)
    per_slot = 2 * 24 * 2 * 64 * 6144 * 2
    assert cache_bytes_per_slot(config, qwen("0.5b")) == per_slot
    total, replicated = 494_032_768, 49 * 896 + 24 * (14 * 64 + 2 * 2 * 64)  # norms and biases lie on every device
    held = (4 + 8 + 2) * ((total - replicated) // 8 + replicated)  # float32 weights and moments, bfloat16 reference
    assert config.rollout.slots == 1024, "a quarter of 4,096 sequences"
    crowded = resolve_sizes(Config(), qwen("0.5b"), 8, 10 * GIB)
    assert crowded.rollout.slots == 8 * int(0.8 * (10 * GIB - held - 2 * total) // per_slot) < 1024, "what the memory holds"
    assert (config.train.row_tokens, config.train.logit_chunk) == (8192, 1024)
    assert config.rollout.chunk == 32
    assert config.rollout.prefill_tokens == 8192


def test_the_sampler_is_split_over_as_many_devices_as_its_weights_need():
    device_bytes = 16 * GIB
    assert resolve_sizes(Config(), qwen("1.5b"), 8, device_bytes).rollout.tensor == 1  # 3.1 GB beside 2.7 of 17.2
    assert resolve_sizes(Config(), qwen("3b"), 8, device_bytes).rollout.tensor == 2  # 6.2 GB beside 5.4
    assert resolve_sizes(Config(), qwen("7b"), 16, device_bytes).rollout.tensor == 4  # 15.2 GB beside 6.7
    assert resolve_sizes(Config(), qwen("14b"), 32, device_bytes).rollout.tensor == 8  # 29.5 GB beside 6.5
    assert resolve_sizes(Config(), qwen("0.5b"), 7, 2 * GIB).rollout.tensor == 7, "14 heads: 2 does not divide 7 devices"


def test_a_model_that_leaves_no_room_for_a_cache_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="use more devices"):
        resolve_sizes(Config(), qwen("14b"), 8, 16 * GIB)


def test_sizes_that_are_set_are_kept_and_resolving_twice_changes_nothing():
    wanted = {"train.logit_chunk": 8, "rollout.slots": 24, "rollout.chunk": 3, "rollout.prefill_tokens": 12}
    wanted |= {"train.row_tokens": 32, "rollout.cache_gib": 0.5, "rollout.tensor": 2, "reward.workers": 3}
    config = resolve_sizes(tiny(*(f"{key}={value}" for key, value in wanted.items())), TINY, 8, None)
    assert config == replace(config, wanted)
    assert resolve_sizes(config, TINY, 8, None) == config


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["mesh.data=3"], "mesh data=3 x fsdp=2 x tensor=1 needs 6 devices, there are 8"),
        (["mesh.fsdp=4"], "needs 4 devices, there are 8"),
        (["mesh.tensor=16"], "needs 16 devices, there are 8"),
        (["rollout.tensor=3"], "rollout.tensor=3 does not divide the 8 devices"),
        (["rollout.slots=12"], "rollout.slots=12 does not divide over 8 rollout replicas"),
        (["rollout.slots=32", f"rollout.cache_gib={2.5 * TINY_SLOT / GIB!r}"], "at most rollout.slots=16 fit"),
        ([f"rollout.cache_gib={0.9 * TINY_SLOT / GIB!r}"], "the KV cache of one sequence of 16 tokens takes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_their_values(overrides, message):
    with pytest.raises((ConfigError, MeshError)) as caught:
        resolve_sizes(tiny(*overrides), TINY, 8, None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_cache_budget_for_exactly_one_sequence_per_replica_is_enough():
    config = resolve_sizes(tiny(f"rollout.cache_gib={TINY_SLOT / GIB!r}"), TINY, 8, None)
    assert config.rollout.slots == 8


def test_kv_heads_that_do_not_divide_are_cached_by_every_device_of_a_replica():
    config = resolve_sizes(tiny("rollout.tensor=2"), TINY, 8, None)
    assert cache_bytes_per_slot(config, TINY) == TINY_SLOT // 2
    config = resolve_sizes(tiny("rollout.tensor=4"), TINY, 8, None)
    assert cache_bytes_per_slot(config, TINY) == TINY_SLOT


def test_the_memory_table_of_a_sharded_14b_is_the_arithmetic_of_its_shapes():
    overrides = ["mesh.data=2", "mesh.fsdp=8", "mesh.tensor=4", "rollout.tensor=4", "rollout.slots=64", "rollout.cache_gib=20"]
    config = resolve_sizes(load_config(None, overrides), qwen("14b"), 64, None)
    d, layers, heads, kv, head, ffn, vocab = 5120, 48, 40, 8, 128, 13_824, 152_064
    matrices = d * heads * head + 2 * d * kv * head + heads * head * d + 3 * d * ffn
    split_32_ways = layers * matrices + 2 * vocab * d  # hidden dimension over fsdp 8, the other over tensor 4
    biases, norms = layers * (heads + 2 * kv) * head, layers * 2 * d + d
    trained = split_32_ways // 32 + biases // 4 + norms  # norms are on every device; data replicates all
    sampled = (split_32_ways + biases) // 4 + norms
    assert memory_table(config, qwen("14b")) == {
        "parameters": 4 * trained,
        "optimiser": 8 * trained,
        "gradients": 4 * trained,
        "reference": 2 * trained,
        "host memory": 0,
        "rollout weights": 2 * sampled,
        "KV cache": 64 // 16 * (2 * layers * (kv // 4) * head * 6144 * 2),
    }


def test_the_memory_table_replicates_the_kv_heads_that_do_not_divide():
    overrides = ["mesh.fsdp=2", "mesh.tensor=4", "rollout.tensor=8", "rollout.slots=8", "optim.optimizer=sgd", "algo.kl_coef=0"]
    config = resolve_sizes(load_config(None, overrides), qwen("3b"), 8, None)
    d, layers, heads, kv, head, ffn, vocab = 2048, 36, 16, 2, 128, 11_008, 151_936
    kv_matrices = layers * 2 * d * kv * head
    others = layers * (2 * d * heads * head + 3 * d * ffn) + vocab * d
    q_biases, kv_biases, norms = layers * heads * head, layers * 2 * kv * head, layers * 2 * d + d
    trained = others // 8 + kv_matrices // 2 + q_biases // 4 + kv_biases + norms
    sampled = others // 8 + kv_matrices + q_biases // 8 + kv_biases + norms
    assert memory_table(config, qwen("3b")) == {
        "parameters": 4 * trained,
        "optimiser": 0,
        "gradients": 4 * trained,
        "reference": 0,
        "host memory": 0,
        "rollout weights": 2 * sampled,
        "KV cache": 8 * (2 * layers * kv * head * 6144 * 2),
    }


def test_the_memory_table_moves_what_is_offloaded_to_the_host():
    whole = memory_table(resolve_sizes(tiny(), TINY, 8, None), TINY)
    kinds = ("parameters", "gradients", "rollout weights", "KV cache")
    for offload, moved in (("moments", ["optimiser"]), ("all", ["optimiser", "reference"])):
        table = memory_table(resolve_sizes(tiny(f"train.offload={offload}"), TINY, 8, None), TINY)
        assert table["host memory"] == sum(whole[kind] for kind in moved) > 0
        assert all(table[kind] == 0 for kind in moved) and all(table[kind] == whole[kind] for kind in kinds)
    half = memory_table(resolve_sizes(tiny("optim.moments_dtype=bfloat16"), TINY, 8, None), TINY)
    assert half["optimiser"] == whole["optimiser"] // 2


INT8 = ["rollout.weights=int8", "rollout.cache_dtype=int8"]


def test_the_memory_table_counts_int8_weights_and_cache_with_their_scales():
    overrides = ["mesh.data=2", "mesh.fsdp=8", "mesh.tensor=4", "rollout.tensor=4", "rollout.slots=64", "rollout.cache_gib=20"]
    config = resolve_sizes(load_config(None, [*overrides, *INT8]), qwen("14b"), 64, None)
    d, layers, heads, kv, head, ffn, vocab = 5120, 48, 40, 8, 128, 13_824, 152_064
    matrices = layers * (2 * d * heads * head + 2 * d * kv * head + 3 * d * ffn) + vocab * d  # with the output matrix
    split_scales = layers * (heads * head + 2 * kv * head + 2 * ffn) + vocab  # of q, k, v, gate, up and the output matrix
    whole_scales = layers * 2 * d  # of o and down, whose inputs are split
    biases, norms = layers * (heads + 2 * kv) * head, layers * 2 * d + d
    in_bfloat16 = (vocab * d + biases) // 4 + norms  # the embedding of an untied model is only looked up
    table = memory_table(config, qwen("14b"))
    assert table["rollout weights"] == matrices // 4 + 4 * (split_scales // 4 + whole_scales) + 2 * in_bfloat16
    assert table["KV cache"] == 64 // 16 * (2 * layers * (kv // 4) * 6144 * (head + 4))


@pytest.mark.parametrize("tied, tensor", [(True, 1), (False, 2), (True, 4)])
def test_the_memory_table_of_int8_weights_is_what_lies_on_a_device(tied, tensor):
    model = dataclasses.replace(TINY, tied=tied)
    config = resolve_sizes(tiny(*INT8, f"rollout.tensor={tensor}"), model, 8, None)
    mesh = rollout_mesh(trainer_mesh((1, 8, 1)), tensor)
    weights = make_handover(model, mesh, "float32", "int8")(jax.device_put(initialise(model, 0), replicated(mesh)))
    held = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(weights))
    assert memory_table(config, model)["rollout weights"] == held


def test_int8_makes_room_for_more_slots_and_fewer_devices_a_replica():
    device_bytes = 16 * GIB
    plain, int8 = (resolve_sizes(load_config(None, o), qwen("1.5b"), 8, device_bytes) for o in ([], INT8))
    assert int8.rollout.slots > 2 * plain.rollout.slots
    plain, int8 = (resolve_sizes(load_config(None, o), qwen("3b"), 8, device_bytes) for o in ([], INT8))
    assert (plain.rollout.tensor, int8.rollout.tensor) == (2, 1)


def test_a_resumed_run_takes_the_sizes_that_were_written_down():
    stored = resolve_sizes(tiny("rollout.chunk=3", "rollout.slots=16"), TINY, 8, None)
    adopted = adopt(tiny(), stored, 8)
    assert adopted == stored
    assert adopt(tiny("rollout.slots=24"), stored, 8).rollout.slots == 24, "what the user sets comes first"


@pytest.mark.parametrize(
    "before, after, devices",
    [
        ([], [], 4),
        ([], ["mesh.data=2"], 8),
        (["mesh.data=2", "mesh.tensor=2"], [], 8),
        (["mesh.tensor=8"], [], 8),
        (["mesh.tensor=8"], ["mesh.fsdp=8"], 8),
        (["mesh.fsdp=8"], ["mesh.fsdp=2", "mesh.tensor=4"], 8),
    ],
)
def test_a_run_may_be_resumed_on_another_mesh(before, after, devices):
    stored = resolve_sizes(tiny(*before), TINY, 8, None)
    config = resolve_sizes(adopt(tiny(*after), stored, devices), TINY, devices, None)
    assert config.mesh.data * config.mesh.fsdp * config.mesh.tensor == devices
    assert config.train.row_tokens == 16 * -(-16 // (config.mesh.data * config.mesh.fsdp))
