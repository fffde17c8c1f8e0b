"""What the checksums of a checkpoint cost: the same arrays saved with them, without them, and as Orbax writes them by itself.

    python benchmarks/saving.py [--gib 1] [--repeats 5] [--json OUT]

Random float32, half of it parameters and half optimiser moments. The ways alternate, each save goes into an empty folder and is
synced to disk before the next. Seconds of the blocking part, of the whole save and of all processors, medians over the repeats.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxgrpo.bench.machine import describe
from jaxgrpo.train import checksums

ARRAYS = 16
ALL = checksums.CODECS
PLAIN = [*ALL[:-1], {"name": "zstd", "configuration": {"level": 1}}]


def random_tree(gib: float) -> dict:
    """`gib` GiB in ARRAYS arrays."""
    rows = int(gib * 2**30 / 4 / ARRAYS / 4096)
    make = jax.jit(lambda key: jax.random.normal(key, (rows, 4096), jnp.float32))
    return {f"array_{i}": make(key) for i, key in enumerate(jax.random.split(jax.random.key(0), ARRAYS))}


def save_once(folder: Path, tree: dict, way: str) -> dict:
    """Blocking seconds, seconds of the whole save, processor seconds and GiB of one save."""
    own = way != "orbax"
    checksums.CODECS = ALL if way == "with" else PLAIN
    with ocp.AsyncCheckpointer(checksums.array_handler() if own else ocp.StandardCheckpointHandler()) as checkpointer:
        started, worked = time.perf_counter(), time.process_time()
        checkpointer.save(folder, args=checksums.SaveArrays(tree) if own else ocp.args.StandardSave(tree))
        blocked = time.perf_counter() - started
        checkpointer.wait_until_finished()
        whole, worked = time.perf_counter() - started, time.process_time() - worked
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"blocking_s": blocked, "whole_s": whole, "processor_s": worked, "gib": size / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="of random float32 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of every way, after one that is not counted")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    arguments = parser.parse_args()
    tree = jax.block_until_ready(random_tree(arguments.gib))
    ways: dict[str, list] = {"with": [], "without": [], "orbax": []}
    for repeat in range(arguments.repeats + 1):
        for way, taken in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                figures = save_once(Path(folder) / "saved", tree, way)
                os.sync()
                shutil.rmtree(folder, ignore_errors=True)
            taken += [figures] if repeat else []
    result = {way: {key: statistics.median(one[key] for one in taken) for key in taken[0]} for way, taken in ways.items()}
    for way, taken in ways.items():
        result[way]["every_whole_s"] = [round(one["whole_s"], 3) for one in taken]
    result["cost"] = {key: result["with"][key] / result["without"][key] - 1 for key in ("whole_s", "processor_s")}
    text = json.dumps({"gib": arguments.gib, "machine": describe(), **result}, indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
