"""Where a model comes from: a local Hugging Face directory, a hub id with or without its revision, a checkpoint of a run
(RUN or RUN:STEP), or `random:NAME` for an architecture alone."""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo import storage
from jaxgrpo.model.config import ModelConfig, ModelError, model_config, read_json

CONFIGURATIONS = Path(__file__).parent / "configurations"
RANDOM = "random:"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_QWEN25_ID = re.compile(r"qwen/(qwen2\.5-[\d.]+b)(-instruct)?", re.IGNORECASE)
_QWEN25_INSTRUCT_STOPS = (151643, 151645)  # <|endoftext|>, <|im_end|>
# What the published instruct models of every size say in place of their base model's configuration.
_QWEN25_INSTRUCT = {
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "rms_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class ModelSource:
    """A model resolved without reading its weights."""

    name: str  # as given
    path: Path | None  # local directory with weights and tokenizer; None when only the architecture is known
    config: ModelConfig
    hf_config: dict  # parsed config.json, kept so that save_hf writes it back unchanged
    stop_ids: tuple[int, ...]  # eos_token_id of generation_config.json, else of config.json; sorted, empty if unknown
    files: tuple[Path, ...] = ()  # safetensors files; empty when weights were not asked for or are random
    revision: str | None = None  # the commit of a hub repository
    steps: tuple[Path, ...] = ()  # of a run: the step whose weights are meant; after the newest, older ones in its stead

    @property
    def random(self) -> bool:
        """Whether the weights are to be drawn at random."""
        return self.name.startswith(RANDOM)


def resolve_model(name: str, *, need_weights: bool = True) -> ModelSource:
    """Find a model by name: a local directory, a hub id, a run, or `random:` and a shipped configuration or a config.json.

    A hub id, ORG/NAME or ORG/NAME@REVISION, is downloaded into the Hugging Face cache. RUN or RUN:STEP is a checkpoint of a
    run directory, also on gs://. With `need_weights=False` (plans, dry runs) no weight file is
    looked for, and a Qwen2.5 id resolves to its shipped configuration without network access.
    Raises ModelError when nothing is found under the name, or what is found cannot be used.
    """
    name = str(name)
    if name.startswith(RANDOM):
        return _resolve_random(name)
    run, step = run_and_step(name)
    if is_run(run):
        return _resolve_run(name, run, step)
    directory = Path(name).expanduser()
    if directory.name.isdigit() and directory.parent.name == "checkpoints" and (directory / "params").is_dir():
        raise ModelError(f"model {name!r} is a step of a run: write it as model={directory.parents[1]}:{directory.name}.")
    if directory.is_dir():
        return _resolve_directory(name, directory, need_weights)
    if not _HUB_ID.fullmatch(name) or directory.exists():
        raise ModelError(
            f"model {name!r} is not a directory here, nor a hub id such as Qwen/Qwen2.5-0.5B, nor RUN or RUN:STEP of a run "
            f"directory, nor {RANDOM}NAME with NAME one of {', '.join(shipped_configurations())}."
        )
    repository, _, revision = name.partition("@")
    if not need_weights and (match := _QWEN25_ID.fullmatch(repository)) and match[1].lower() in shipped_configurations():
        return _resolve_shipped(name, match[1].lower(), instruct=match[2] is not None)
    directory = _download(repository, revision or None, need_weights)
    commit = directory.name if directory.parent.name == "snapshots" else None
    return replace(_resolve_directory(name, directory, need_weights), revision=commit)


def run_and_step(name: str) -> tuple[str, int | None]:
    """(RUN, STEP) of `RUN:STEP`; (name, None) of anything else."""
    run, _, step = name.rpartition(":")
    return (run.rstrip("/"), int(step)) if run and step.isdigit() else (name.rstrip("/") or name, None)


def is_run(name: str) -> bool:
    """Whether a name is that of a run directory."""
    if name.startswith(RANDOM):
        return False
    folder = storage.location(name)
    with storage.reached(folder):
        return (folder / "checkpoints").is_dir() and not (folder / "config.json").exists()


def _resolve_run(name: str, run: str, step: int | None) -> ModelSource:
    folder = storage.location(run)
    with storage.reached(folder):
        steps = storage.complete_steps(folder / "checkpoints")
        there = ", ".join(child.name for child in reversed(steps)) or "none"
        if step is not None:
            steps = [child for child in steps if int(child.name) == step]
        if not steps:
            raise ModelError(f"model {name!r}: the run {run} has no checkpoint of that step; there are: {there}.")
        if not (folder / "model" / "config.json").exists():
            raise ModelError(f"model {name!r}: the run {run} has no model/ folder beside its checkpoints; bring it back.")
        companions = storage.local_copy(folder / "model")
    source = _resolve_directory(f"{run}:{steps[0].name}", companions, need_weights=False)
    return replace(source, steps=tuple(steps))


def shipped_configurations() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in CONFIGURATIONS.glob("*.json"))


def stop_ids(hf_config: dict, generation_config: dict | None = None) -> tuple[int, ...]:
    """The ids that end a response: `eos_token_id` of the generation config, else of the model's; sorted."""
    eos = (generation_config or {}).get("eos_token_id", hf_config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(sorted({int(eos)} if isinstance(eos, int) else {int(token) for token in eos}))


def _resolve_random(name: str) -> ModelSource:
    what = name.removeprefix(RANDOM)
    file = CONFIGURATIONS / f"{what.lower()}.json"
    if what.lower() not in shipped_configurations():
        file = Path(what).expanduser()
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file():
            near = difflib.get_close_matches(what.lower(), shipped_configurations(), n=1)
            hint = f" Did you mean {RANDOM}{near[0]}?" if near else ""
            raise ModelError(
                f"model {name!r}: {what!r} is neither a shipped configuration ({', '.join(shipped_configurations())}) "
                f"nor the path of a config.json.{hint}"
            )
    hf_config = read_json(file)
    return ModelSource(name, None, model_config(hf_config, origin=str(file)), hf_config, stop_ids(hf_config))


def _resolve_shipped(name: str, configuration: str, *, instruct: bool) -> ModelSource:
    file = CONFIGURATIONS / f"{configuration}.json"
    hf_config = read_json(file) | (_QWEN25_INSTRUCT if instruct else {})
    stops = _QWEN25_INSTRUCT_STOPS if instruct else stop_ids(hf_config)
    return ModelSource(name, None, model_config(hf_config, origin=str(file)), hf_config, stops)


def _resolve_directory(name: str, directory: Path, need_weights: bool) -> ModelSource:
    hf_config = read_json(directory / "config.json")
    generation_file = directory / "generation_config.json"
    return ModelSource(
        name=name,
        path=directory,
        config=model_config(hf_config, origin=str(directory / "config.json")),
        hf_config=hf_config,
        stop_ids=stop_ids(hf_config, read_json(generation_file) if generation_file.exists() else None),
        files=_weight_files(directory) if need_weights else (),
    )


def _weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory: the single one, or all that the index names."""
    if (directory / SINGLE_FILE).exists():
        return (directory / SINGLE_FILE,)
    index = directory / INDEX_FILE
    if not index.exists():
        raise ModelError(
            f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; fetch the model's safetensors files "
            "(other weight formats are not read)."
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map; fetch it again.")
    files = tuple(directory / file for file in sorted(set(weight_map.values())))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ModelError(
            f"{directory} lacks {', '.join(missing)}, named in {INDEX_FILE} ({len(files)} files in all); "
            "fetch the missing weight files."
        )
    return files


def _download(repository: str, revision: str | None, need_weights: bool) -> Path:
    """The local snapshot of a hub repository, fetched where it is not in the cache yet. revision: a commit, tag or branch."""
    import huggingface_hub

    patterns = ["*.json", "*.txt", "*.jinja", "README.md", *(["*.safetensors"] if need_weights else [])]
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client's errors come from several HTTP libraries and share no other base
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        name = f"{repository}@{revision}" if revision else repository
        raise ModelError(
            f"model {name!r} is no directory here and could not be fetched from the Hugging Face hub ({reason}). "
            "Check the name, the revision and the network, or download the model elsewhere and give the path of its directory."
        ) from error
