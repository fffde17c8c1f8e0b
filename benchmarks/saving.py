"""What the checksums of a checkpoint cost: the same arrays saved with them, without them, and as Orbax writes them by itself.

    python benchmarks/saving.py [--gib 1] [--repeats 5] [--json OUT]

Random float32, half of it parameters and half optimiser moments. The ways alternate, each save goes into an empty folder and is
synced to disk before the next. Seconds of the blocking part and of the whole save, medians over the repeats.
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
ALL = list(checksums.CODECS)


def random_tree(gib: float) -> dict:
    """`gib` GiB in ARRAYS arrays."""
    rows = int(gib * 2**30 / 4 / ARRAYS / 4096)
    make = jax.jit(lambda key: jax.random.normal(key, (rows, 4096), jnp.float32))
    return {f"array_{i}": make(key) for i, key in enumerate(jax.random.split(jax.random.key(0), ARRAYS))}


def save_once(folder: Path, tree: dict, way: str) -> tuple[float, float, int]:
    """(blocking seconds, seconds of the whole save, bytes) of one save."""
    own = way != "orbax"
    checksums.CODECS = [c for c in ALL if way == "with" or c["name"] != "crc32c"]
    with ocp.AsyncCheckpointer(checksums.array_handler() if own else ocp.StandardCheckpointHandler()) as checkpointer:
        started = time.perf_counter()
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree) if own else ocp.args.StandardSave(tree))
        blocked = time.perf_counter() - started
        checkpointer.wait_until_finished()
        whole = time.perf_counter() - started
    return blocked, whole, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


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
    result = {
        way: {
            "blocking_s": statistics.median(blocked for blocked, _, _ in taken),
            "whole_s": statistics.median(whole for _, whole, _ in taken),
            "every_whole_s": [round(whole, 3) for _, whole, _ in taken],
            "gib": taken[0][2] / 2**30,
        }
        for way, taken in ways.items()
    }
    result["cost"] = result["with"]["whole_s"] / result["without"]["whole_s"] - 1
    text = json.dumps({"gib": arguments.gib, "machine": describe(), **result}, indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
