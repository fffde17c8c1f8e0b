"""`model=RUN[:STEP]`: a new run that starts from the weights of a checkpoint of another one, and from nothing else of it.

It begins at step 0 with a fresh optimiser; its reference policy are its own start weights, which it keeps in `warm_start/`, so
that it can go on when the other run has gone further or is gone. Where it came from stands in its history and checkpoints.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from jaxgrpo import storage
from jaxgrpo.config import Config, replace
from jaxgrpo.model.source import ModelSource, is_run, resolve_model, run_and_step
from jaxgrpo.parallel import hosts
from jaxgrpo.train.checkpoint import CheckpointError, load_params
from jaxgrpo.train.metrics import read_metrics
from jaxgrpo.train.stored import Stored, read_meta

IDENTITY = ("model_family", "n_nominal")  # what stays of the other run in the metrics of this one


def pinned(config: Config, stored: Stored | None) -> tuple[Config, list[str]]:
    """`config` with the step of the other run that a run here began from, and without a warm-up of weights that were trained;
    and what was so left out, to be told."""
    begun = stored.config.model if stored and stored.origin else ""
    if begun and config.model.rstrip("/") in (begun, run_and_step(begun)[0]):
        config = replace(config, {"model": begun})
    elif not hosts.from_first(is_run(run_and_step(config.model)[0]), "whether the model is a run"):
        return config, []
    if not config.warmup.steps:
        return config, []
    told = f"warm-up   left out (warmup.steps={config.warmup.steps}): {config.model} is trained already"
    return replace(config, {"warmup.steps": 0, "warmup.corrupt_steps": 0}), [told]


def own_source(run: Path, stored: Stored | None, config: Config) -> ModelSource | None:
    """The architecture and tokenizer that a run here has kept of the one it began from; None where it is another, or there is
    something left to fetch from there."""
    same = stored is not None and stored.origin is not None and stored.config.model == config.model
    kept = same and (run / "warm_start").exists() and (run / "model" / "config.json").exists()
    if not hosts.from_first(kept, "whether the start of the run is kept"):
        return None
    source = resolve_model(str(storage.local_copy(run / "model")), need_weights=False)
    return dataclasses.replace(source, name=config.model)


def load_origin(source: ModelSource, target: dict, say: Callable[[str], None]) -> tuple[dict[str, jax.Array], Path]:
    """(weights, step folder) of the first of `source.steps` that every host can read. CheckpointError where none can be."""
    for step in source.steps:
        params = complaint = None
        try:
            params = load_params(step / "params", target, "name another step as model=RUN:STEP")
        except CheckpointError as error:
            complaint = str(error)
        complaints = [text for text in hosts.gather(complaint, f"{step} to be read") if text]
        if not complaints:
            return params, step
        say(f"WARNING   {complaints[0]}")
    error = CheckpointError(complaints[0])
    error.on_all_hosts = True
    raise error


def origin_of(step: Path, digest: str) -> dict:
    """What is written down of where a run came from; the family and nominal size are None where nothing there tells them."""
    run = step.parents[1]
    told = (read_meta(step) or {}).get("identity") or next(
        (line for line in reversed(read_metrics(run / "metrics.jsonl")) if all(key in line for key in IDENTITY)), {}
    )
    return {"run": str(run), "step": int(step.name), "digest": digest} | {key: told.get(key) for key in IDENTITY}
