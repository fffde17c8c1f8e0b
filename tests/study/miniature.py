"""Studies of seconds: the quickstart with a short warm-up and few, small steps."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from jaxgrpo.data import training_problems
from jaxgrpo.data.files import write_parquet

ROOT = Path(__file__).parents[2]
SHORT = {
    "data.prompts_per_step": 16,
    "train.minibatch_prompts": 8,
    "warmup.steps": 40,
    "warmup.corrupt_steps": 0,
    "eval.every": 1,
    "eval.limit": 64,
    "checkpoint.every": 5,
    "reward.workers": 1,
}


def write_study(
    folder: Path, kind: str, runs: dict, *, keys: dict, fit: dict | None = None, seeds: tuple[int, ...] = (0,)
) -> Path:
    """A study file on the quickstart's configuration, with everything it makes under `folder`/out."""
    study = {
        "study": kind,
        "out": str(folder / "out"),
        "seeds": list(seeds),
        "config": str(ROOT / "configs" / "quickstart.yaml"),
    }
    study |= {"set": SHORT | keys, "runs": runs, "fit": {"bootstrap": 200} | (fit or {})}
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def start(*arguments: str, env: dict) -> subprocess.Popen:
    """`jaxgrpo study ...`, its output line by line in `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "jaxgrpo.cli", "study", *arguments],
        env=env | {"COLUMNS": "200"}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def processes_naming(text: str) -> list[int]:
    """Processes of this machine whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if text in command:
                found.append(int(entry.name))
    return found


def write_problems(path: Path, count: int) -> None:
    """The first `count` problems of the built-in task's training stream as a problem file."""
    rows = [
        {
            "data_source": problem.data_source,
            "prompt": list(problem.messages),
            "reward_model": {"ground_truth": problem.ground_truth},
            "extra_info": problem.extra_info,
        }
        for problem in training_problems(0, 0, count)
    ]
    write_parquet(path, rows)
