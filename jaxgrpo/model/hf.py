"""Hugging Face weights in and out: `load_hf` and `save_hf` are inverse, tensor by tensor.

Reading maps each safetensors file and copies out the slices that this host's devices hold, one device's share of one
parameter at a time; writing asks the devices for one tensor at a time. Neither ever has a second copy of the model.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.model.config import ModelConfig, ModelError, hf_config_dict
from jaxgrpo.model.parameters import ParameterSpec, check_parameters, initialise, parameter_table
from jaxgrpo.model.qwen2 import Qwen2
from jaxgrpo.model.source import INDEX_FILE, SINGLE_FILE, ModelSource, resolve_model
from jaxgrpo.model.weight_file import DTYPES, PendingTensor, StoredTensor, read_header, write_weight_file
from jaxgrpo.parallel.sharding import named_sharding
from jaxgrpo.tokenizer_files import copy_companions
from jaxgrpo.whole_file import whole_folder

__all__ = ["ModelSource", "load_hf", "load_params", "resolve_model", "save_hf", "save_params"]

OUTPUT = "lm_head.weight"
COMPARED_BYTES = 16 * 2**20
SAME_MODEL = "Fetch weights and config.json of the same model."


def load_hf(path, *, dtype, mesh=None) -> Qwen2:
    """The Qwen2 model of a local Hugging Face directory, a hub id or `random:NAME`, its parameters cast to `dtype`.

    With a mesh, every parameter is created in the shards that the sharding rules give it. Raises ModelError.
    """
    source = resolve_model(path)
    return Qwen2(source.config, load_params(source, dtype=dtype, mesh=mesh), hf_config=source.hf_config)


def load_params(source: ModelSource, *, dtype, mesh=None, seed: int = 0) -> dict[str, jax.Array]:
    """The flat parameter dict of `parameter_table`, in `dtype`, sharded over `mesh` (None: on the default device).

    Weights of a `random:` source are drawn from `seed`, the same ones on every mesh. Raises ModelError, which names
    file, tensor, value and remedy, for weights that are missing, cut short, of another shape or of an unknown dtype.
    """
    table = parameter_table(source.config)
    shardings = {spec.name: _sharding(spec, mesh) for spec in table}
    if source.random:
        return jax.jit(lambda: initialise(source.config, seed, dtype), out_shardings=shardings)()
    if not source.files:
        raise ModelError(
            f"model {source.name!r} was resolved without its weights (need_weights=False); resolve it again with them, "
            f"or use random:NAME for random ones."
        )
    stored = _stored_tensors(source, table)
    return {spec.name: _load(spec, stored[spec.name], np.dtype(dtype), shardings[spec.name]) for spec in table}


def _sharding(spec: ParameterSpec, mesh) -> jax.sharding.Sharding:
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return named_sharding(mesh, spec.axes, spec.shape)


def _stored_tensors(source: ModelSource, table: list[ParameterSpec]) -> dict[str, list[StoredTensor]]:
    """For every parameter the tensors it is read from, one a layer, all checked before the first is read."""
    found = {}
    for file in source.files:
        found |= read_header(file)
    places = source.files[0] if len(source.files) == 1 else f"{source.path} ({len(source.files)} weight files)"
    stored: dict[str, list[StoredTensor]] = {}
    for spec in table:
        missing = [name for name in spec.hf_names if name not in found]
        if missing:
            raise ModelError(
                f"{places}: tensor {missing[0]} is missing; config.json asks for {source.config.layers} layers "
                f"and {'tied' if source.config.tied else 'untied'} embeddings. {SAME_MODEL}"
            )
        stored[spec.name] = [found.pop(name) for name in spec.hf_names]
        for tensor in stored[spec.name]:
            _check_tensor(tensor, spec)
    if source.config.tied and OUTPUT in found:
        _check_tied(stored["embed"][0], found.pop(OUTPUT))
    surplus = sorted(name for name in found if not name.endswith("rotary_emb.inv_freq"))  # some exporters store these
    if surplus:
        raise ModelError(
            f"{found[surplus[0]].file}: tensor {surplus[0]} ({len(surplus)} such) has no place in the model of "
            f"config.json with {source.config.layers} layers. {SAME_MODEL}"
        )
    return stored


def _check_tensor(tensor: StoredTensor, spec: ParameterSpec) -> None:
    if tensor.shape != spec.hf_shape:
        raise ModelError(
            f"{tensor.file}: tensor {tensor.name} has shape {tensor.shape}, config.json asks for {spec.hf_shape}. {SAME_MODEL}"
        )
    tensor.numpy_dtype  # noqa: B018  refuses a dtype that cannot be read


def _check_tied(embedding: StoredTensor, output: StoredTensor) -> None:
    """A tied model needs no output matrix; one that is stored all the same must be the embedding, to its own precision.

    Both are compared as they lie on disk, a few rows at a time."""
    a_VD, b_VD = embedding.open(), output.open()
    rows = max(1, COMPARED_BYTES // (a_VD[:1].nbytes or 1))
    if a_VD.shape != b_VD.shape or not all(
        _equal(a_VD[start : start + rows], b_VD[start : start + rows]) for start in range(0, len(a_VD), rows)
    ):
        raise ModelError(
            f"{output.file}: config.json ties the output matrix to the embedding (tie_word_embeddings), but {output.name} is "
            f"another matrix than {embedding.name}: set tie_word_embeddings to false in config.json to use both, or leave the "
            "one that does not belong to the model out of the weights."
        )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one array is the other, or the other rounded to its dtype."""
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        return np.array_equal(a.astype(b.dtype), b, equal_nan=True) or np.array_equal(a, b.astype(a.dtype), equal_nan=True)


def _load(spec: ParameterSpec, stored: list[StoredTensor], dtype: np.dtype, sharding) -> jax.Array:
    """One parameter. A share that several devices hold is read once; the host keeps one share at a time."""
    shares: dict[tuple, tuple[tuple, list]] = {}
    for device, index in sharding.addressable_devices_indices_map(spec.shape).items():
        key = tuple(slice_.indices(size) for slice_, size in zip(index, spec.shape, strict=True))
        shares.setdefault(key, (index, []))[1].append(device)
    on_device = []
    for index, devices in shares.values():
        share = _read_share(spec, stored, index, dtype)
        # A buffer that aliased numpy's memory could not be donated to the training step.
        on_device += jax.block_until_ready([jax.device_put(share, device, may_alias=False) for device in devices])
    return jax.make_array_from_single_device_arrays(spec.shape, sharding, on_device, dtype=dtype)


def _read_share(spec: ParameterSpec, stored: list[StoredTensor], index: tuple, dtype: np.dtype) -> np.ndarray:
    """The slice `index` of a parameter, copied out of the mapped files layer by layer."""
    if not spec.stacked:
        return np.array(_as_used(spec, stored[0].open())[index], dtype, order="C")
    layers = stored[index[0]]
    first = _as_used(spec, layers[0].open())[index[1:]]
    share = np.empty((len(layers), *first.shape), dtype)
    for number, tensor in enumerate(layers):
        share[number] = _as_used(spec, tensor.open())[index[1:]]
    return share


def _as_used(spec: ParameterSpec, tensor: np.ndarray) -> np.ndarray:
    """View a tensor of an HF file, [out, in] with heads and head size as one, in the shape of `spec` for one layer."""
    shape = spec.layer_shape
    outputs_first = tensor.reshape(shape[spec.inputs :] + shape[: spec.inputs])
    outputs = len(shape) - spec.inputs
    return outputs_first.transpose(*range(outputs, len(shape)), *range(outputs))


def _as_stored(spec: ParameterSpec, value: np.ndarray) -> np.ndarray:
    """The inverse of `_as_used`, again a view."""
    axes = (*range(spec.inputs, value.ndim), *range(spec.inputs))
    return value.transpose(axes).reshape(spec.hf_shape)


def save_hf(model: Qwen2, out_dir, *, copy_from: Path | None = None) -> None:
    """Write `model` as a Hugging Face directory, in the dtype of its parameters. See `save_params`."""
    save_params(model.params, model.config, out_dir, hf_config=model.hf_config, copy_from=copy_from)


def save_params(
    params: dict,
    config: ModelConfig,
    out_dir,
    *,
    hf_config: dict | None = None,
    copy_from: Path | None = None,
    dtype=None,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Write parameters as a Hugging Face directory that transformers loads: config.json and safetensors.

    `hf_config` is written back as it came, but for the dtype where that changed; generation config and tokenizer are
    copied from `copy_from` by `copy_companions`. Weights above `max_shard_bytes` are split into several files with an index.
    `dtype` is by default that of the parameters. The directory appears under its name once complete, and not at all after a
    failure.

    Raises ModelError when `out_dir` is not empty or is no local path, when parameters are spread over several hosts,
    and when writing fails (a full disk).
    """
    check_parameters(config, params)
    dtype = np.dtype(dtype or params["embed"].dtype)
    out_dir = _output_directory(out_dir)
    _check_savable(params, dtype, copy_from)
    try:
        with whole_folder(out_dir) as unfinished:
            _write_config(hf_config_dict(config, hf_config), unfinished, dtype)
            _write_weights(list(_pending_tensors(params, config, dtype)), unfinished, max_shard_bytes)
            if copy_from:
                copy_companions(Path(copy_from), unfinished)
    except OSError as error:
        raise ModelError(
            f"writing {out_dir} failed ({error}); free space there or choose another directory. No part of it is left behind."
        ) from None


def _output_directory(out_dir) -> Path:
    """The directory to write, absolute and not yet in use."""
    if "://" in str(out_dir):
        raise ModelError(f"{out_dir} is no local path; write to a local directory and upload that.")
    out_dir = Path(out_dir).expanduser().absolute()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ModelError(f"{out_dir} exists and is not an empty directory; choose another one or remove it.")
    return out_dir


def _check_savable(params: dict, dtype: np.dtype, copy_from: Path | None) -> None:
    if dtype not in DTYPES.values():
        raise ModelError(f"weights are not written as {dtype}; choose {', '.join(d.name for d in DTYPES.values())}.")
    if copy_from is not None and not Path(copy_from).is_dir():
        raise ModelError(f"{copy_from}, to copy the tokenizer from, is not a directory; give the model's own.")
    spread = [name for name, value in params.items() if not getattr(value, "is_fully_addressable", True)]
    if spread:
        raise ModelError(
            f"parameter {spread[0]} is spread over several hosts; save a checkpoint and export that on one host "
            "(jaxgrpo export CHECKPOINT OUT_HF_DIR)."
        )


def _write_config(hf_config: dict, directory: Path, dtype: np.dtype) -> None:
    """config.json with the dtype under the key it had: `torch_dtype`, or `dtype` in files of transformers 5."""
    for key in ("torch_dtype", "dtype"):
        if key in hf_config:
            hf_config = hf_config | {key: dtype.name}
    (directory / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")


def _pending_tensors(params: dict, config: ModelConfig, dtype: np.dtype) -> Iterator[PendingTensor]:
    """Every tensor of the HF file, layer after layer as such files are ordered, each fetched when it is written."""
    table = parameter_table(config)
    for spec in table:
        if not spec.stacked:
            yield PendingTensor(spec.hf_name, spec.hf_shape, dtype, partial(_fetch, params, spec, None, dtype))
    for layer in range(config.layers):
        for spec in table:
            if spec.stacked:
                read = partial(_fetch, params, spec, layer, dtype)
                yield PendingTensor(spec.hf_names[layer], spec.hf_shape, dtype, read)


def _fetch(params: dict, spec: ParameterSpec, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One tensor on the host, as it is stored."""
    # np.asarray leaves its host copy inside the jax.Array it is given: give it one that ends here.
    value = jnp.copy(params[spec.name]) if layer is None else params[spec.name][layer]
    return _as_stored(spec, np.asarray(value)).astype(dtype, copy=False)


def _write_weights(tensors: list[PendingTensor], directory: Path, max_shard_bytes: int) -> None:
    """One file, or several of at most `max_shard_bytes` (a larger tensor has a file of its own) and their index."""
    shards: list[list[PendingTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_weight_file(directory / SINGLE_FILE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_weight_file(directory / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
