"""Starting the real command in a real process, and reading what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxgrpo.train.metrics import is_timing_key

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
# A quickstart of seconds: a few warm-up steps, 6 training steps, a checkpoint and an evaluation every second one.
SHORT = [
    "data.prompts_per_step=16",
    "train.minibatch_prompts=8",
    "train.steps=6",
    "warmup.steps=20",
    "warmup.corrupt_steps=0",
    "eval.every=2",
    "eval.limit=64",
    "checkpoint.every=2",
]


def environment(cache: Path, devices: int | None = None) -> dict:
    """The test's environment without its eight devices, so that the command chooses its own; one compilation cache for all."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    if devices:
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return env


def jaxgrpo(*arguments: str, env: dict, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run `jaxgrpo ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "jaxgrpo.cli", *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def untimed_metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the keys that may differ between runs of one seed."""
    return [untimed(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def untimed(record: dict) -> dict:
    return {key: value for key, value in record.items() if not is_timing_key(key)}


def eval_files(run_dir: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted((run_dir / "eval").iterdir())}
