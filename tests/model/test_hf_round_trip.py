"""Loading and saving are inverse, on one device and on eight, and transformers reads what is written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_reference import tokens_of, transformers_logits
from safetensors.numpy import load_file
from tiny_hf_model import tiny_config, tiny_weights, write_json, write_tiny_model, write_weights

from jaxgrpo.model import load_hf, save_hf
from jaxgrpo.model.hf import load_params, resolve_model, save_params
from jaxgrpo.model.parameters import check_parameters, initialise, parameter_table
from jaxgrpo.parallel.mesh import trainer_mesh
from jaxgrpo.parallel.sharding import named_sharding

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}


def tensors_of(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].tobytes() == value.tobytes(), name


def eight_devices(shape):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return trainer_mesh(shape, jax.devices()[:8])


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("old_style", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_saving_what_was_loaded_is_bit_identical(dtype, tied, old_style, shards, tmp_path):
    source = write_tiny_model(tmp_path / "in", dtype=dtype, tied=tied, old_style=old_style, shards=shards, **SMALL)
    save_hf(load_hf(source, dtype=dtype), tmp_path / "out", copy_from=source)
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(source))
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_text() == (source / file).read_text()


def test_transformers_gives_the_same_logits_from_a_saved_model(tmp_path):
    pytest.importorskip("torch")
    for old_style in (True, False):
        source = write_tiny_model(tmp_path / f"in-{old_style}", tied=False, old_style=old_style, **SMALL)
        model = load_hf(source, dtype=jnp.float32)
        out = tmp_path / f"out-{old_style}"
        save_params(model.params, model.config, out, hf_config=model.hf_config, max_shard_bytes=50_000)
        assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
        tokens_BT = tokens_of(256)
        assert np.array_equal(transformers_logits(out, tokens_BT), transformers_logits(source, tokens_BT))


def test_a_model_saved_without_its_config_json_loads_in_transformers(tmp_path):
    pytest.importorskip("torch")
    model = load_hf("random:miniature", dtype=jnp.float32)
    save_params(model.params, model.config, tmp_path / "out")
    tokens_BT = tokens_of(64)
    assert np.abs(transformers_logits(tmp_path / "out", tokens_BT) - np.asarray(model(tokens_BT))).max() <= 2e-4


def test_weights_above_the_limit_are_split_and_load_again(tmp_path):
    source = write_tiny_model(tmp_path / "in", **SMALL)
    model = load_hf(source, dtype=jnp.float32)
    limit = 70_000
    save_params(model.params, model.config, tmp_path / "out", hf_config=model.hf_config, max_shard_bytes=limit)
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(source))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors_of(source).values())
    for file in set(index["weight_map"].values()):
        held = load_file(tmp_path / "out" / file)
        assert all(index["weight_map"][name] == file for name in held)
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= limit
    again = load_hf(tmp_path / "out", dtype=jnp.float32)
    assert all(np.array_equal(again.params[name], value) for name, value in model.params.items())


def test_every_parameter_is_the_transpose_that_the_table_says(tmp_path):
    source = resolve_model(str(write_tiny_model(tmp_path, tied=False, **SMALL)))
    params = {name: np.asarray(value) for name, value in load_params(source, dtype=jnp.float32).items()}
    check_parameters(source.config, params)
    stored = tensors_of(tmp_path)
    layer = "model.layers.2."
    assert np.array_equal(params["embed"], stored["model.embed_tokens.weight"])
    assert np.array_equal(params["lm_head"], stored["lm_head.weight"].T)
    query = stored[f"{layer}self_attn.q_proj.weight"]  # [heads * head size, embed]
    assert np.array_equal(params["layers.q_w"][2, :, 3, 5], query[3 * 16 + 5])
    assert np.array_equal(params["layers.k_b"][2, 1], stored[f"{layer}self_attn.k_proj.bias"][16:])
    output = stored[f"{layer}self_attn.o_proj.weight"]  # [embed, heads * head size]
    assert np.array_equal(params["layers.o_w"][2, 3, 5], output[:, 3 * 16 + 5])
    assert np.array_equal(params["layers.down_w"][2], stored[f"{layer}mlp.down_proj.weight"].T)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_mesh_of_eight_devices_holds_the_same_arrays(shape, shards, tmp_path):
    mesh = eight_devices(shape)
    source = resolve_model(str(write_tiny_model(tmp_path / "in", tied=False, shards=shards, **SMALL)))
    single = load_params(source, dtype=jnp.float32)
    sharded = load_params(source, dtype=jnp.float32, mesh=mesh)
    for spec in parameter_table(source.config):
        value = sharded[spec.name]
        assert value.sharding == named_sharding(mesh, spec.axes, spec.shape)
        assert np.array_equal(np.asarray(value), np.asarray(single[spec.name])), spec.name
        for shard in value.addressable_shards:  # every replica, not just the first
            assert np.array_equal(np.asarray(shard.data), np.asarray(single[spec.name])[shard.index]), spec.name
    save_params(sharded, source.config, tmp_path / "out", hf_config=source.hf_config)
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "in"))


def test_random_weights_are_the_same_on_every_mesh_and_differ_by_seed():
    source = resolve_model("random:miniature")
    single = load_params(source, dtype=jnp.float32, seed=5)
    sharded = load_params(source, dtype=jnp.float32, seed=5, mesh=eight_devices((2, 2, 2)))
    assert all(np.array_equal(np.asarray(single[name]), np.asarray(sharded[name])) for name in single)
    assert not np.array_equal(np.asarray(single["embed"]), np.asarray(initialise(source.config, 6)["embed"]))
    assert abs(np.asarray(single["layers.gate_w"]).std() - 0.02) < 1e-3


def test_loaded_parameters_can_be_donated(tmp_path):
    source = resolve_model(str(write_tiny_model(tmp_path, **SMALL)))
    params = load_params(source, dtype=jnp.float32)
    before = np.array(params["embed"])
    doubled = jax.jit(lambda params: {name: 2 * value for name, value in params.items()}, donate_argnums=0)(params)
    assert params["embed"].is_deleted()
    assert np.array_equal(np.asarray(doubled["embed"]), 2 * before)
    assert np.array_equal(tensors_of(tmp_path)["model.embed_tokens.weight"], before)


def test_the_dtype_of_the_file_and_the_dtype_asked_for_may_differ(tmp_path):
    source = write_tiny_model(tmp_path / "in", dtype=jnp.bfloat16, **SMALL)
    model = load_hf(source, dtype=jnp.float32)
    save_hf(model, tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"
    assert tensors_of(tmp_path / "wide")["model.norm.weight"].dtype == np.float32
    save_params(model.params, model.config, tmp_path / "back", hf_config=model.hf_config, dtype=jnp.bfloat16)
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == model.hf_config


def test_a_tied_model_that_stores_its_output_matrix_loads_without_it(tmp_path):
    directory = write_tiny_model(tmp_path, tied=True, **SMALL)
    plain = load_hf(directory, dtype=jnp.float32)
    weights = tiny_weights(tiny_config(**SMALL))
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    write_weights(directory, weights | {"lm_head.weight": weights["model.embed_tokens.weight"]} | frequencies)
    model = load_hf(directory, dtype=jnp.float32)
    assert "lm_head" not in model.params
    assert all(np.array_equal(model.params[name], value) for name, value in plain.params.items())


def test_tokenizer_files_travel_with_the_weights(tmp_path):
    source = write_tiny_model(tmp_path / "in", **SMALL)
    for name in ("tokenizer", "tokenizer_config", "vocab", "special_tokens_map", "added_tokens"):
        write_json(source / f"{name}.json", {"name": name})
    (source / "merges.txt").write_text("a b\n")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "training_args.bin").write_bytes(b"0")
    save_hf(load_hf(source, dtype=jnp.float32), tmp_path / "out", copy_from=source)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {file.name for file in source.iterdir()} - {"training_args.bin"}
    for file in written - {"model.safetensors"}:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()
