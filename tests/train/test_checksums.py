"""Damage to stored checkpoints: a flipped bit anywhere is noticed or changes nothing; those without checksums load."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from jaxgrpo.config import CheckpointConfig
from jaxgrpo.train.checkpoint import (
    CheckpointError,
    Checkpoints,
    load_params,
    load_params_anywhere,
    read_checkpoint,
    save_params,
    without_checksums,
)
from jaxgrpo.train.checksums import CODECS
from jaxgrpo.train.state import TrainState

META = {"step": 4, "cursor": 64, "totals": {"tokens": 12345, "compute_flops": 1.5e17}, "config": {"seed": 3, "model": "m"}}
METRICS = {"test_loss": 0.625, "reward_mean": 0.25}


def sharding(*axes):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def state() -> TrainState:
    """Sharded, partly replicated and whole arrays of several dtypes, and an optimiser's scalars."""
    random_ = np.random.default_rng(0)
    params = {
        "embed": jax.device_put(random_.normal(size=(64, 48)).astype(np.float32), sharding("fsdp", "tensor")),
        "mlp": jax.device_put(random_.normal(size=(3, 16, 32)).astype(np.float32), sharding(None, "fsdp")),
        "norm": jax.device_put(jnp.asarray(random_.normal(size=48), jnp.bfloat16), sharding()),
    }
    return TrainState(params, optax.adam(1e-3).init(params))


def saved(folder, kept: TrainState) -> None:
    checkpoints = Checkpoints(folder, CheckpointConfig(every=1))
    checkpoints.save(4, kept, META, METRICS)
    checkpoints.close()


def target_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def reported_or_harmless(folder, kept: TrainState) -> str:
    """ "reported" or "harmless" of a folder that was damaged; AssertionError where other content comes back without a word."""
    try:
        checkpoints = Checkpoints(folder, CheckpointConfig(every=1))
    except CheckpointError:
        return "reported"
    try:
        if checkpoints.complaints:
            return "reported"
        assert checkpoints.steps() == [4]
        restored, meta = checkpoints.restore(4, target_of(kept))
    except CheckpointError:
        return "reported"
    finally:
        checkpoints.close()
    for mine, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(kept), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert meta == META
    assert checkpoints.best() == (4, METRICS["test_loss"])
    return "harmless"


def flipped(folder, kept: TrainState, flips: int, seed: int, per_file: int) -> dict[str, int]:
    """How often each end came of single bits flipped at random places: of all bytes, and `per_file` in every file."""
    rng = random.Random(seed)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    chosen = [file for file in files if whole[file] for _ in range(per_file)]
    chosen += rng.choices(files, [len(whole[file]) for file in files], k=flips)
    ends = {"reported": 0, "harmless": 0, "of arrays": 0}
    for file in chosen:
        data = bytearray(whole[file])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            end = reported_or_harmless(folder, kept)
        except Exception as error:
            raise AssertionError(f"a flipped bit in {file.relative_to(folder)}: {error!r}") from error
        finally:
            file.write_bytes(whole[file])
        ends[end] += 1
        ends["of arrays"] += end == "reported" and "d" in file.parts[-2:-1]
    return ends


def check_flips(folder, flips: int, seed: int, per_file: int) -> None:
    kept = state()
    saved(folder, kept)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"4/_CHECKPOINT_METADATA", "4/meta/metadata", "4/metrics/metrics", "4/params/manifest.ocdbt"} <= names
    ends = flipped(folder, kept, flips, seed, per_file)
    assert ends["of arrays"] > 0.5 * flips, ends  # most bytes are those of arrays
    assert reported_or_harmless(folder, kept) == "harmless"


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_reported_or_changes_nothing(tmp_path):
    check_flips(tmp_path, flips=20, seed=0, per_file=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_many_flipped_bits_none_changes_anything_unnoticed(tmp_path):
    check_flips(tmp_path, flips=400, seed=1, per_file=40)


def saved_before(folder, kept: TrainState) -> None:
    """A checkpoint as it was before there were checksums: Orbax's own arrays and plain JSON."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["reward_mean"])
    with ocp.CheckpointManager(folder, options=options) as manager:
        items = {"params": ocp.args.StandardSave(kept.params), "opt_state": ocp.args.StandardSave(kept.opt_state)}
        manager.save(4, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(META)), metrics=METRICS)


def test_a_checkpoint_from_before_checksums_loads_and_is_said_to_have_none(tmp_path):
    kept = state()
    saved_before(tmp_path / "old", kept)
    saved(tmp_path / "new", kept)
    assert reported_or_harmless(tmp_path / "old", kept) == "harmless"
    assert without_checksums(tmp_path / "new" / "4" / "params") is None
    said = []
    params, meta = read_checkpoint(tmp_path / "old", said.append)
    assert meta == META and len(said) == 1 and "was saved without checksums" in said[0]
    np.testing.assert_array_equal(np.asarray(params["embed"]), np.asarray(kept.params["embed"]))
    assert (tmp_path / "old" / "4" / "params" / "array_metadatas").exists()  # it really is of the other kind


def test_damage_is_noticed_on_another_mesh_and_only_where_it_lies(tmp_path):
    """A chunk is read, and so verified, by whoever needs a part of it."""
    kept = state()
    save_params(tmp_path / "warm_start", kept.params)
    (data,) = (file for file in (tmp_path / "warm_start").rglob("d/*") if file.stat().st_size > 10_000)
    whole = data.read_bytes()
    data.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    two = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    place = jax.sharding.NamedSharding(two, jax.sharding.PartitionSpec())
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), kept.params)
    with pytest.raises(CheckpointError, match=r"warm_start cannot be read, it may be damaged .*delete it"):
        load_params(tmp_path / "warm_start", target, "delete it")
    with pytest.raises(CheckpointError, match="may be damaged"):
        load_params_anywhere(tmp_path / "warm_start")
    data.write_bytes(whole)
    restored = load_params(tmp_path / "warm_start", target, "delete it")
    for name, value in kept.params.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(value))


def test_a_checkpoint_in_the_folder_of_another_step_is_refused(tmp_path):
    kept = state()
    saved(tmp_path, kept)
    shutil.move(tmp_path / "4", tmp_path / "6")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1))
    with pytest.raises(CheckpointError, match="it says that it is of step 4, its folder that it is of step 6"):
        checkpoints.restore(6, target_of(kept))
    checkpoints.close()
    with pytest.raises(CheckpointError, match="it says that it is of step 4"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"test_loss": 0.625}', b'{"test_loss": "much"}'])
def test_a_damaged_metrics_entry_is_reported_and_blocks_no_checkpoint(content, tmp_path):
    kept = state()
    saved(tmp_path, kept)
    sealed = json.loads((tmp_path / "4" / "metrics" / "metrics").read_text())
    if content.startswith(b'{"'):  # a number that was changed, and nothing else
        content = json.dumps(sealed | json.loads(content) | {"reward_mean": 0.5}).encode()
    (tmp_path / "4" / "metrics" / "metrics").write_bytes(content)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1, best=1))
    (complaint,) = checkpoints.complaints
    assert "the metrics of checkpoint 4 in" in complaint and "are damaged" in complaint
    assert checkpoints.best() is None
    _, meta = checkpoints.restore(4, target_of(kept))
    assert meta == META
    checkpoints.save(5, kept, META | {"step": 5}, METRICS)
    checkpoints.wait()
    assert checkpoints.best() == (5, METRICS["test_loss"])
    checkpoints.close()


@pytest.mark.parametrize("data", [np.random.default_rng(0).normal(size=80).astype(np.float32), np.zeros(50_000, np.float32)])
def test_every_single_bit_of_a_stored_chunk_is_protected(data):
    """Noise, which zstd keeps as it is, and zeros, which it describes in a few bytes."""
    grid = {"name": "regular", "configuration": {"chunk_shape": list(data.shape)}}
    metadata = {"shape": data.shape, "chunk_grid": grid, "codecs": CODECS, "data_type": "float32"}
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata, "store_data_equal_to_fill_value": True}
    context, changed = ts.Context(), 0
    ts.open(spec, create=True, context=context).result().write(data).result()
    store = ts.KvStore.open({"driver": "memory"}, context=context).result()
    whole = bytes(store["c/0"])
    for at in range(8 * len(whole)):
        store["c/0"] = whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :]
        array = ts.open(spec, open=True, context=context, recheck_cached_data=True).result()
        try:
            assert array.read().result().tobytes() == data.tobytes(), f"bit {at}"
        except ValueError:
            changed += 1
    assert changed > 7 * len(whole)
