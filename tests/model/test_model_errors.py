"""Weights that cannot be used and directories that cannot be written: one clear message each."""

import errno
import json
import resource
from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_hf_model import tiny_config, tiny_weights, write_json, write_tiny_model, write_weights

from jaxgrpo.model import ModelError, load_hf, save_hf
from jaxgrpo.model.config import model_config
from jaxgrpo.model.hf import load_params, resolve_model, save_params
from jaxgrpo.train.conversion import convert, export

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}  # as Qwen's model cards document it
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def directory(tmp_path):
    return write_tiny_model(tmp_path / "model", **SMALL)


def refusal(directory) -> str:
    with pytest.raises(ModelError) as error:
        load_hf(directory, dtype=jnp.float32)
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite_header(file, change):
    """Replace the header of a safetensors file by `change(header)`."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def test_a_missing_weight_file_is_named(tmp_path):
    directory = write_tiny_model(tmp_path, shards=3, **SMALL)
    (directory / "model-00002-of-00003.safetensors").unlink()
    message = refusal(directory)
    assert "model-00002-of-00003.safetensors" in message and "fetch the missing weight files" in message


def test_a_weight_file_that_vanishes_after_resolving_is_named(directory):
    source = resolve_model(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model.safetensors does not exist"):
        load_params(source, dtype=jnp.float32)


def test_an_index_without_a_weight_map_is_refused(directory):
    (directory / "model.safetensors").unlink()
    write_json(directory / "model.safetensors.index.json", {"metadata": {}})
    assert "model.safetensors.index.json has no weight_map" in refusal(directory)


def test_a_weight_file_cut_short_is_told_by_its_size(directory):
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1000])
    message = refusal(directory)
    assert f"{file}: truncated" in message and f"{len(data):,}" in message and f"{len(data) - 1000:,}" in message
    file.write_bytes(data[:100])
    assert "truncated or not a safetensors file" in refusal(directory)
    file.write_bytes(b"")
    assert str(file) in refusal(directory)
    file.write_bytes(data + b"more")
    assert "longer than its header says" in refusal(directory)


def test_a_file_that_is_not_safetensors_is_told(directory):
    (directory / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 10)
    assert "not a safetensors file" in refusal(directory)


def test_a_corrupt_header_is_told(directory):
    file = directory / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:8] + b"?" + good[9:])
    assert "header is corrupt" in refusal(directory)

    changes = [
        lambda header: header | {QUERY: {"dtype": "F32", "shape": [64, 64]}},
        lambda header: header | {QUERY: header[QUERY] | {"data_offsets": [0]}},
        lambda header: header | {QUERY: header[QUERY] | {"data_offsets": [100, 50]}},
        lambda header: header | {QUERY: header[QUERY] | {"shape": [64, 63]}},
        lambda header: header | {QUERY: header[QUERY] | {"shape": "64"}},
        lambda header: list(header),
    ]
    for change in changes:
        file.write_bytes(good)
        rewrite_header(file, change)
        message = refusal(directory)
        assert "header is corrupt" in message and str(file) in message


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(directory):
    weights = tiny_weights(tiny_config(**SMALL))
    write_weights(directory, weights | {QUERY: np.zeros((32, 64), np.float32)})
    message = refusal(directory)
    assert QUERY in message and "(32, 64)" in message and "(64, 64)" in message


def test_a_missing_tensor_is_named(directory):
    weights = tiny_weights(tiny_config(**SMALL))
    del weights[QUERY]
    write_weights(directory, weights)
    message = refusal(directory)
    assert f"tensor {QUERY} is missing" in message and str(directory / "model.safetensors") in message


def test_an_untied_model_without_an_output_matrix_is_refused(directory):
    write_json(directory / "config.json", tiny_config(tied=False, **SMALL))
    assert "lm_head.weight is missing" in refusal(directory)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_model_with_an_output_matrix_of_its_own_is_refused(directory, shards):
    weights = tiny_weights(tiny_config(**SMALL))
    output = weights["model.embed_tokens.weight"].copy()
    output[-1, -1] += 1e-3
    (directory / "model.safetensors").unlink()
    write_weights(directory, weights | {"lm_head.weight": output}, shards)
    message = refusal(directory)
    assert "lm_head.weight" in message and "set tie_word_embeddings to false" in message
    write_weights(directory, weights | {"lm_head.weight": output[:-1]}, shards)
    assert "tie_word_embeddings" in refusal(directory)
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        convert(str(directory), str(directory.parent / "converted"))


@pytest.mark.parametrize("dtypes", [(np.float32, np.float32), (np.float32, ml_dtypes.bfloat16), (np.float16, np.float32)])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_tied_model_whose_output_matrix_is_the_embedding_loads(directory, dtypes, shards, monkeypatch):
    monkeypatch.setattr("jaxgrpo.model.hf.COMPARED_BYTES", 1000)  # several parts
    weights = tiny_weights(tiny_config(**SMALL))
    embedding = weights["model.embed_tokens.weight"].astype(dtypes[0])
    (directory / "model.safetensors").unlink()
    write_weights(
        directory, weights | {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.astype(dtypes[1])}, shards
    )
    model = load_hf(directory, dtype=jnp.float32)
    assert "lm_head" not in model.params
    np.testing.assert_array_equal(np.asarray(model.params["embed"]), embedding.astype(np.float32))


def test_an_untied_converted_model_whose_config_was_made_tied_is_refused(tmp_path):
    converted = convert(str(write_tiny_model(tmp_path / "model", tied=False, **SMALL)), str(tmp_path / "converted"))
    write_json(converted / "config.json", tiny_config(tied=True, **SMALL))
    with pytest.raises(ModelError, match="config.json is not that of the weights.*lm_head"):
        export(str(converted), str(tmp_path / "exported"))


def test_weights_of_more_layers_than_the_config_has_are_refused(directory):
    write_json(directory / "config.json", tiny_config(layers=2, **SMALL))
    message = refusal(directory)
    assert "model.layers.2." in message and "2 layers" in message


def test_an_unsupported_dtype_is_named(directory):
    weights = tiny_weights(tiny_config(**SMALL))
    write_weights(directory, weights | {QUERY: weights[QUERY].astype(np.float64)})
    message = refusal(directory)
    assert QUERY in message and "F64" in message and "BF16" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6'"),
        ({"rope_parameters": PLAIN, "rope_scaling": YARN}, "rope_scaling.type is 'yarn'"),
        ({"rope_parameters": {**PLAIN, "rope_type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_parameters": {"full_attention": PLAIN}}, "rope_parameters.full_attention"),
        ({"rope_parameters": {**PLAIN, "rope_theta": 1e4}}, "rope_theta 1e+06 and rope_parameters.rope_theta 10000"),
        ({"rope_scaling": {"rope_theta": 1e4}, "rope_theta": 1e6}, "rope_scaling.rope_theta 10000"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor is 4.0"),
        ({"rope_scaling": {"rope_type": "default", "type": "dynamic"}}, "rope_scaling.type is 'dynamic'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "'mrope'"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"use_dynamic_ntk": True}, "use_dynamic_ntk is True"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide by 3"),
    ],
)
def test_a_config_of_another_architecture_is_refused(change, message, directory):
    config = {key: value for key, value in (tiny_config(**SMALL) | change).items() if value is not None}
    write_json(directory / "config.json", config)
    refused = refusal(directory)
    assert message in refused and str(directory / "config.json") in refused


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": None, "use_mrope": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0, "factor": None}},
        {"rope_theta": 500000, "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_plain_rotary_embeddings_are_understood_wherever_they_stand(rope):
    config = {key: value for key, value in tiny_config(**SMALL).items() if key != "rope_theta"}
    assert model_config(config | rope).rope_theta == 5e5


def test_a_config_that_is_missing_or_is_not_json_is_named(directory):
    (directory / "config.json").write_text('{"model_type": "qwen2", ')
    assert "config.json is not valid JSON" in refusal(directory)
    (directory / "config.json").write_text("[]")
    assert "not an object" in refusal(directory)
    (directory / "config.json").unlink()
    assert "config.json does not exist" in refusal(directory)


def test_saving_never_overwrites(directory, tmp_path):
    model = load_hf(directory, dtype=jnp.float32)
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(ModelError, match="not an empty directory"):
        save_hf(model, directory)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    with pytest.raises(ModelError, match="not an empty directory"):
        save_hf(model, directory / "config.json")
    (tmp_path / "empty").mkdir()
    save_hf(model, tmp_path / "empty")
    assert resolve_model(str(tmp_path / "empty")).files


def test_saving_into_a_bucket_or_in_another_dtype_is_refused(directory, tmp_path):
    model = load_hf(directory, dtype=jnp.float32)
    with pytest.raises(ModelError, match="gs://bucket/model is no local path"):
        save_hf(model, "gs://bucket/model")
    with pytest.raises(ModelError, match="int8"):
        save_params(model.params, model.config, tmp_path / "out", dtype=np.int8)
    with pytest.raises(ModelError, match="to copy the tokenizer from, is not a directory"):
        save_hf(model, tmp_path / "out", copy_from=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()


def test_saving_parameters_of_several_hosts_is_refused(directory, tmp_path):
    model = load_hf(directory, dtype=jnp.float32)
    embed = model.params["embed"]
    elsewhere = SimpleNamespace(shape=embed.shape, dtype=embed.dtype, is_fully_addressable=False)
    with pytest.raises(ModelError, match="embed is spread over several hosts"):
        save_params(model.params | {"embed": elsewhere}, model.config, tmp_path / "out")


def test_a_disk_that_fills_up_leaves_nothing_behind(directory, tmp_path):
    model = load_hf(directory, dtype=jnp.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the system stops the file there, as a full disk would
    try:
        with pytest.raises(ModelError) as error:
            save_hf(model, tmp_path / "parent" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"[Errno {errno.EFBIG}]" in str(error.value) and "free space" in str(error.value)
    assert list((tmp_path / "parent").iterdir()) == []
    save_hf(model, tmp_path / "parent" / "out")
