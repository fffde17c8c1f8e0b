"""Where models come from: directories, hub ids, shipped configurations."""

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tiny_hf_model import tiny_config, write_json, write_tiny_model

from jaxgrpo.model import ModelError
from jaxgrpo.model.config import model_config
from jaxgrpo.model.hf import load_params, resolve_model
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import shipped_configurations, stop_ids
from tests.run.commands import ROOT
from tests.tiny_hub import COMMIT

# Published by Qwen in the model cards: billions of parameters, with and without embeddings.
CARDS = {
    "0.5B": (0.49, 0.36),
    "1.5B": (1.54, 1.31),
    "3B": (3.09, 2.77),
    "7B": (7.61, 6.53),
    "14B": (14.7, 13.1),
    "32B": (32.5, 31.0),
    "72B": (72.7, 70.0),
}


@pytest.mark.parametrize("size", CARDS)
def test_the_shipped_configurations_have_the_published_numbers_of_parameters(size):
    counts = count_parameters(resolve_model(f"Qwen/Qwen2.5-{size}", need_weights=False).config)
    total, non_embedding = CARDS[size]
    assert counts["total"] / 1e9 == pytest.approx(total, rel=0.01)
    assert counts["non_embedding"] / 1e9 == pytest.approx(non_embedding, rel=0.01)


@pytest.mark.parametrize("size", CARDS)
def test_transformers_reads_the_shipped_configurations_alike(size):
    transformers = pytest.importorskip("transformers")
    source = resolve_model(f"random:qwen2.5-{size.lower()}")
    theirs = transformers.Qwen2Config(**source.hf_config)
    assert theirs.rope_parameters["rope_theta"] == source.config.rope_theta == 1e6
    assert theirs.layer_types == ["full_attention"] * source.config.layers
    assert (theirs.tie_word_embeddings, theirs.rms_norm_eps) == (source.config.tied, source.config.rms_eps)
    assert source.config == model_config(theirs.to_dict())


def test_the_miniature_is_tied_and_has_about_a_hundred_thousand_parameters():
    source = resolve_model("random:miniature")
    assert source.config.tied
    assert 100_000 <= count_parameters(source.config)["total"] <= 110_000
    assert source.path is None and source.random and source.stop_ids == (1,)


def test_a_qwen25_id_needs_no_network_where_no_weights_are_needed():
    base = resolve_model("Qwen/Qwen2.5-14B", need_weights=False)
    instruct = resolve_model("qwen/qwen2.5-14b-INSTRUCT", need_weights=False)
    assert base.stop_ids == (151643,)
    assert instruct.stop_ids == (151643, 151645)
    assert (base.config.rms_eps, instruct.config.rms_eps) == (1e-5, 1e-6)
    assert instruct.hf_config["eos_token_id"] == 151645
    with pytest.raises(ModelError, match="resolved without its weights"):
        load_params(base, dtype=jnp.float32)


def test_stop_ids_come_from_the_generation_config_and_else_from_the_config(tmp_path):
    directory = write_tiny_model(tmp_path, heads=4, head_dim=16, stop_ids=(9, 3))
    assert resolve_model(str(directory)).stop_ids == (3, 9)
    (directory / "generation_config.json").unlink()
    assert resolve_model(str(directory)).stop_ids == (1,)
    assert stop_ids({"eos_token_id": 5}, {"temperature": 0.7}) == (5,)
    assert stop_ids({}) == ()


def test_a_directory_without_weights_resolves_where_none_are_needed(tmp_path):
    directory = write_tiny_model(tmp_path, heads=4, head_dim=16)
    (directory / "model.safetensors").unlink()
    assert resolve_model(str(directory), need_weights=False).config.heads == 4
    with pytest.raises(ModelError, match="neither model.safetensors nor model.safetensors.index.json"):
        resolve_model(str(directory))


def test_random_weights_take_a_config_json_of_ones_own(tmp_path):
    write_json(tmp_path / "config.json", tiny_config(heads=6, kv_heads=3, head_dim=16))
    for name in (f"random:{tmp_path}", f"random:{tmp_path}/config.json"):
        source = resolve_model(name)
        assert (source.config.heads, source.path, source.stop_ids) == (6, None, (1,))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:miniatur", "Did you mean random:miniature"),
        ("random:gpt", "neither a shipped configuration"),
        ("qwen2.5-0.5b", "not a directory here, nor a hub id"),
        ("/no/such/directory", "not a directory here"),
        (__file__, "not a directory here"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_what_would(name, message):
    with pytest.raises(ModelError, match=message) as error:
        resolve_model(name)
    assert name in str(error.value)
    assert all(shipped in str(error.value) for shipped in shipped_configurations())


RESOLVE = """
import os, sys
from tests.tiny_hub import serve
hub = serve(models_Qwen2=sys.argv[1])
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
from jaxgrpo.model.source import resolve_model
for need_weights in (False, True):
    source = resolve_model("Tiny/Qwen2", need_weights=need_weights)
    print(sorted(file.name for file in source.path.iterdir()), source.config.heads)
pinned = resolve_model("Tiny/Qwen2@v1.0")
print(pinned.path == source.path, pinned.revision, source.revision)
hub.shutdown()
hub.server_close()
print(resolve_model("Tiny/Qwen2").path == source.path)
for name in ("Tiny/Other", "Tiny/Qwen2@v9"):
    try:
        resolve_model(name)
    except ValueError as error:
        print(error)
"""


def test_a_hub_id_is_fetched_from_the_hub_and_is_an_error_where_there_is_none(tmp_path):
    directory = write_tiny_model(tmp_path / "model", heads=4, head_dim=16)
    (directory / "pytorch_model.bin").write_bytes(b"not wanted")
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RESOLVE, str(directory)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    plan, fetched, pinned, cached, refused, unknown = done.stdout.splitlines()
    assert plan == "['config.json', 'generation_config.json'] 4"
    assert fetched == "['config.json', 'generation_config.json', 'model.safetensors'] 4"
    assert pinned == f"True {COMMIT} {COMMIT}"
    assert cached == "True"
    assert "'Tiny/Qwen2@v9'" in unknown and "Check the name, the revision and the network" in unknown
    assert "'Tiny/Other'" in refused and "could not be fetched from the Hugging Face hub" in refused
    assert "give the path of its directory" in refused
