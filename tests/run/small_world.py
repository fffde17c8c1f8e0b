"""A tiny Hugging Face model, small data files, and runs of a few steps on them."""

import json
import shutil
from pathlib import Path

from jaxgrpo.cli import main
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, jaxgrpo

SIZES = [
    "warmup.steps=0",
    "warmup.corrupt_steps=0",
    "data.prompts_per_step=8",
    "train.minibatch_prompts=8",
    "data.max_prompt_tokens=160",
    "rollout.samples=2",
    "rollout.max_new_tokens=4",
    "eval.every=2",
    "checkpoint.every=2",
    "reward.workers=1",
    "train.steps=2",
]


def write_problems(path: Path, first: int = 0, count: int = 16) -> Path:
    rows = [
        {
            "data_source": "arithmetic",
            "prompt": f"What is the last digit of {n} + 1?",
            "reward_model": {"ground_truth": str((n + 1) % 10)},
        }
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(directory: Path, seed: int = 0) -> Path:
    tokenizer = write_tiny_tokenizer(directory, [f"What is {n} + 1?" for n in range(40)], vocab_size=320)
    write_tiny_model(
        directory,
        seed=seed,
        vocab=-(-len(tokenizer) // 64) * 64,
        layers=1,
        heads=4,
        head_dim=16,
        stop_ids=(tokenizer.eos_token_id,),
    )
    return directory


class World:
    """Folders `model`, files `train.jsonl` and `test.jsonl`, and the run `run` in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run_dir = folder / "run"

    def make(self) -> "World":
        write_model(self.folder / "model")
        write_problems(self.folder / "train.jsonl")
        write_problems(self.folder / "test.jsonl", first=100, count=8)
        return self

    def copy(self, folder: Path) -> "World":
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return World(folder)

    def arguments(self, *overrides: str, config: str = CONFIG) -> list[str]:
        """Of the command that trains here."""
        own = {
            "model": self.folder / "model",
            "data.train": self.folder / "train.jsonl",
            "data.test": self.folder / "test.jsonl",
            "run_dir": self.run_dir,
        }
        return ["train", config, *SIZES, *(f"{key}={value}" for key, value in own.items()), *overrides]

    def refused(self, *overrides: str, config: str = CONFIG) -> int:
        """The exit code of a start that does not get as far as a step, in this process."""
        return main(self.arguments(*overrides, config=config))

    def train(self, env: dict, *overrides: str) -> str:
        """What a process that trains to its end says."""
        done = jaxgrpo(*self.arguments(*overrides), env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout
