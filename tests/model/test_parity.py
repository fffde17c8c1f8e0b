"""The forward pass against transformers in float32: committed logits always, a live comparison where torch is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_reference import CASES, REFERENCE, tokens_of, transformers_logits
from tiny_hf_model import checksum, tiny_config, tiny_weights, write_tiny_model

from jaxgrpo.model import load_hf
from jaxgrpo.parallel.mesh import trainer_mesh

TOLERANCE = 2e-4
STYLES = {
    "old-style config": {"old_style": True},
    "new-style config": {"old_style": False},
    "sharded with index": {"shards": 3},
}
LIVE_CASES = CASES | {
    "head_dim_apart": {"heads": 6, "kv_heads": 3, "head_dim": 32, "embed": 64, "tied": False},
    "other_numbers": {"heads": 4, "kv_heads": 4, "head_dim": 16, "rope_theta": 1e4, "rms_eps": 1e-2, "layers": 1},
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_committed_ones_of_transformers(case, style, tmp_path):
    reference = np.load(REFERENCE / f"{case}.npz")
    drawn = checksum(tiny_weights(tiny_config(**CASES[case])))
    assert drawn == reference["weights"], "numpy draws other weights than for the reference: run make_reference.py"
    model = load_hf(write_tiny_model(tmp_path, **CASES[case], **STYLES[style]), dtype=jnp.float32)
    logits_BTV = np.asarray(model(reference["tokens"]))
    assert logits_BTV.dtype == np.float32
    assert np.abs(reference["logits"]).max() > 3, "a parity of small numbers says little"
    assert np.abs(logits_BTV - reference["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", LIVE_CASES)
def test_logits_equal_those_of_transformers_now(case, style, tmp_path):
    pytest.importorskip("torch")
    directory = write_tiny_model(tmp_path, seed=3, **LIVE_CASES[case], **STYLES[style])
    tokens_BT = tokens_of(256, rows=3, length=40)
    expected_BTV = transformers_logits(directory, tokens_BT)
    logits_BTV = np.asarray(load_hf(directory, dtype=jnp.float32)(tokens_BT))
    assert np.abs(logits_BTV - expected_BTV).max() <= TOLERANCE


def test_logits_of_weights_stored_in_bfloat16_equal_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    directory = write_tiny_model(tmp_path, dtype=jnp.bfloat16, heads=4, kv_heads=2, head_dim=16)
    tokens_BT = tokens_of(256)
    expected_BTV = transformers_logits(directory, tokens_BT)  # cast to float32 on loading, as here
    model = load_hf(directory, dtype=jnp.float32)
    assert np.abs(np.asarray(model(tokens_BT)) - expected_BTV).max() <= TOLERANCE
    padded_BTV = transformers_logits(directory, tokens_BT, attention_mask=torch.ones(tokens_BT.shape, dtype=torch.long))
    assert np.abs(padded_BTV - expected_BTV).max() <= TOLERANCE


def test_two_sequences_packed_in_a_row_equal_the_separate_ones(tmp_path):
    model = load_hf(write_tiny_model(tmp_path, heads=4, kv_heads=2, head_dim=16), dtype=jnp.float32)
    first, second = tokens_of(256, rows=1, length=9, seed=1), tokens_of(256, rows=1, length=14, seed=2)
    padding = np.zeros((1, 5), int)
    packed = np.concatenate([first, second, padding], axis=1)
    positions = np.concatenate([np.arange(9), np.arange(14), np.arange(5)])[None]
    segments = np.concatenate([np.full(9, 1), np.full(14, 2), np.zeros(5, int)])[None]
    logits = np.asarray(model(packed, positions=positions, segment_ids=segments))
    assert np.isfinite(logits).all()
    assert np.abs(logits[:, :9] - np.asarray(model(first))).max() <= 2e-5
    assert np.abs(logits[:, 9:23] - np.asarray(model(second))).max() <= 2e-5
    unsegmented = np.asarray(model(packed, positions=positions))
    assert np.abs(unsegmented[:, 9:23] - np.asarray(model(second))).max() > 0.1, "the segments matter"


def test_a_left_padded_row_equals_the_unpadded_one(tmp_path):
    model = load_hf(write_tiny_model(tmp_path, heads=4, kv_heads=2, head_dim=16), dtype=jnp.float32)
    tokens = tokens_of(256, rows=1, length=11)
    padded = np.concatenate([np.zeros((1, 6), int), tokens], axis=1)
    positions = np.concatenate([np.zeros(6, int), np.arange(11)])[None]
    segments = np.concatenate([np.zeros(6, int), np.ones(11, int)])[None]
    logits = np.asarray(model(padded, positions=positions, segment_ids=segments))
    assert np.abs(logits[:, 6:] - np.asarray(model(tokens))).max() <= 2e-5


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_same_on_a_mesh_of_eight_devices(case, tmp_path):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    reference = np.load(REFERENCE / f"{case}.npz")
    mesh = trainer_mesh((2, 2, 2), jax.devices()[:8])
    model = load_hf(write_tiny_model(tmp_path, **CASES[case]), dtype=jnp.float32, mesh=mesh)
    with jax.set_mesh(mesh):
        logits_BTV = jax.jit(lambda model, tokens: model(tokens))(model, reference["tokens"])
    assert np.abs(np.asarray(logits_BTV) - reference["logits"]).max() <= TOLERANCE
