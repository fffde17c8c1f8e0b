"""`jaxgrpo convert` and `jaxgrpo export`: Hugging Face weights to an Orbax directory that loads in shards, and back.

A converted directory holds what came beside the weights (config.json, generation_config.json, tokenizer) and `params/`. A run
keeps the same companions in its `model/` folder, so that its checkpoints can be exported without the original directory.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxgrpo import storage
from jaxgrpo.data import save_tokenizer
from jaxgrpo.model.config import ModelError, read_json
from jaxgrpo.model.family import model_family, write_family
from jaxgrpo.model.hf import load_params, save_params
from jaxgrpo.model.parameters import check_parameters
from jaxgrpo.model.source import ModelSource, resolve_model
from jaxgrpo.storage import naming
from jaxgrpo.tokenizer_files import copy_companions
from jaxgrpo.train import checkpoint
from jaxgrpo.whole_file import file_checksum, whole_folder

PARAMS = "params"
CHECKSUMS = "checksums.json"  # of the files beside the weights


def is_converted(name: str) -> bool:
    """Whether a model name is a directory that `convert` wrote."""
    return (Path(name) / PARAMS).is_dir()


def convert(model: str, out_dir: str) -> Path:
    """Write the model's weights, in the dtype they came in, as an Orbax directory; returns its path."""
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is not an empty directory; choose another one or remove it.")
    source = resolve_model(model)
    if source.steps:
        raise ModelError(f"{model} is a run, which `jaxgrpo train` takes as it is (model={model}): export it to convert it.")
    params = load_params(source, dtype=jnp.dtype(stored_dtype(source.hf_config)))
    with whole_folder(out) as unfinished:
        write_companions(unfinished, source, tokenizer=None)
        write_family(unfinished, model_family(source))
        checkpoint.save_params(unfinished / PARAMS, params)
    return out


def export(path: str, out_dir: str, dtype: str | None = None) -> tuple[Path, int | None]:
    """Write a converted directory, a run, or one of its checkpoints as a Hugging Face directory; returns its path and the step
    of the run that it holds, None where no run is.

    dtype: of the written weights; by default that of the model the run started from.
    """
    start, step = storage.location(path), None
    if is_converted(path) and (start / "config.json").exists():
        companions, params = start, checkpoint.load_params_anywhere(start / PARAMS, "convert the model again")
        if note := checkpoint.without_checksums(start / PARAMS):
            print(note)
    else:
        params, meta = checkpoint.read_checkpoint(start)
        step, companions = meta.get("step"), run_companions(start)
    hf_config = read_json(companions / "config.json")
    source = resolve_model(str(companions), need_weights=False)
    try:
        check_parameters(source.config, params)
    except ValueError as error:
        raise ModelError(
            f"{companions / 'config.json'} is not that of the weights in {start} ({error}); put it back."
        ) from None
    chosen = jnp.dtype(dtype or stored_dtype(hf_config))
    out = storage.location(out_dir)
    with storage.reached(out):
        if storage.is_remote(out) and out.is_dir() and any(out.iterdir()):  # save_params sees to a local one
            raise ModelError(f"{out} exists and is not an empty directory; choose another one or remove it.")
    with storage.written_locally(out) as folder:
        save_params(params, source.config, str(folder), hf_config=hf_config, copy_from=companions, dtype=chosen)
    return out, step


def run_companions(start: Path) -> Path:
    """The model/ folder of the run that a run directory, its checkpoints/ folder or one step of it belongs to; of a run on an
    object store a copy of it."""
    for folder in (start, *storage.absolute(start).parents[:2]):
        if (folder / "model").is_dir():
            return storage.local_copy(folder / "model")
    raise ModelError(f"no model/ folder beside the checkpoint {start}: give a checkpoint inside its run directory.")


def load_converted(source: ModelSource, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The parameters of a converted directory, laid out and cast as `target`."""
    return checkpoint.load_params(source.path / PARAMS, target, "convert the model again")


def stored_dtype(hf_config: dict) -> str:
    """The dtype that the weights of a config.json are kept in."""
    return hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32"


def write_companions(directory: Path, source: ModelSource, tokenizer) -> None:
    """config.json, generation_config.json and tokenizer of a model, from its directory or, for random weights, made here; and
    checksums.json for `jaxgrpo check`."""
    with naming(directory):
        _write_companions(directory, source, tokenizer)
    known = {file.name: file_checksum(file) for file in sorted(directory.iterdir()) if file.is_file()}
    (directory / CHECKSUMS).write_text(json.dumps(known, indent=2) + "\n")


def _write_companions(directory: Path, source: ModelSource, tokenizer) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if source.path is not None:
        shutil.copyfile(source.path / "config.json", directory / "config.json")
        own = tokenizer is None or str(tokenizer.name_or_path) == str(source.path)
        copy_companions(source.path, directory, tokenizer=own)
        if tokenizer is not None and not (own and (source.path / "tokenizer.json").exists()):
            save_tokenizer(tokenizer, directory)  # of the run's own choice, or one that transformers made of older files
        return
    if tokenizer is None:
        raise ModelError(f"model {source.name} has random weights and no tokenizer: there is nothing to convert.")
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    (directory / "config.json").write_text(json.dumps(source.hf_config | special, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(special | {"do_sample": True}, indent=2) + "\n")
    save_tokenizer(tokenizer, directory)
