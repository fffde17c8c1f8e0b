"""How fast maths answers are graded, and what that costs a training step.

    python benchmarks/grading.py PROBLEMS.parquet [--repeats 3] [--json OUT]

PROBLEMS: a prepared training file with at least 4,096 problems. First 4,096 answers, half of them right, are graded by a fresh
pool. Then a tiny model, taught to end its answers in a box, makes GRPO steps of 128 prompts x 8 samples on this machine, once
graded as mathematics and once as single letters, which takes no time; the runs alternate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxgrpo.data.files import problem_rows, write_parquet
from jaxgrpo.data.repair import Repairs
from jaxgrpo.reward import GraderPool

sys.path.insert(0, str(Path(__file__).parents[1]))
from jaxgrpo.bench.machine import describe
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

COUNT = 4096
THOUGHT = "Let us see. We have $x^2 + 3x - 4 = 0$, and therefore $x = 1$ or $x = -4$. "
STEPS = 3


def throughput(rows: list[dict]) -> dict:
    """Seconds for 4,096 answers of 2,000 characters: cold, with the workers still to be started, and again."""
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    items = [
        ("math__x", THOUGHT * 26 + rf"So the answer is $\boxed{{{truths[n if n % 2 else (n + 1) % COUNT]}}}$.", truths[n], None)
        for n in range(COUNT)
    ]
    with GraderPool() as pool:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            grades = pool.grade(items)
            seconds.append(time.perf_counter() - start)
    right, errors = sum(grade.score for grade in grades), sum(grade.error is not None for grade in grades)
    return {"answers": COUNT, "cold_s": seconds[0], "again_s": seconds[1], "right": right, "grader_errors": errors}


def overhead(rows: list[dict], folder: Path, repeats: int) -> dict:
    """Seconds of steps with the maths grader and with one that takes no time."""
    tokenizer = write_tiny_tokenizer(folder / "hf", [THOUGHT] + [row["prompt"][0]["content"] for row in rows[:200]], 2048)
    sizes = {"vocab": -(-len(tokenizer) // 64) * 64, "layers": 2, "heads": 4, "head_dim": 32, "max_positions": 2048}
    write_tiny_model(folder / "hf", stop_ids=(tokenizer.eos_token_id,), **sizes)
    rows = [row for row in rows if len(row["prompt"][0]["content"]) < 500]
    examples = [
        {"prompt": row["prompt"], "response": THOUGHT * 4 + rf"So $\boxed{{{row['reward_model']['ground_truth']}}}$."}
        for row in rows
    ]
    write_parquet(folder / "demonstrations.parquet", examples)
    letters = [row | {"data_source": "stem__supergpqa", "reward_model": {"ground_truth": "A"}} for row in rows]
    write_parquet(folder / "maths.parquet", rows)
    write_parquet(folder / "letters.parquet", letters)
    common = {
        "data.max_prompt_tokens": 400,
        "data.overlong": "drop",
        "data.prompts_per_step": 128,
        "train.minibatch_prompts": 64,
        "rollout.max_new_tokens": 192,
        "rollout.dtype": "float32",
        "train.dtype": "float32",
        "eval.every": 0,
        "eval.limit": 64,
    }
    taught = folder / "taught"
    train(
        common | {"model": folder / "hf", "run_dir": taught, "train.steps": 1} | files(folder, "letters"),
        {"warmup.steps": 150, "warmup.check_every": 150, "warmup.demonstrations": folder / "demonstrations.parquet"},
    )
    jaxgrpo("export", taught, folder / "taught-hf")
    measured = {"maths": [], "letters": []}
    for repeat in range(repeats):
        for kind in measured:
            run = folder / f"{kind}-{repeat}"
            train(common | {"model": folder / "taught-hf", "run_dir": run, "train.steps": STEPS} | files(folder, kind), {})
            steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            measured[kind] += [step for step in steps if step["step"] > 1]  # the first compiles
    seconds = {kind: statistics.median(step["step_s"] for step in steps) for kind, steps in measured.items()}
    last = measured["maths"][-1]
    return {
        "step_s": seconds,
        "all_step_s": {kind: [step["step_s"] for step in steps] for kind, steps in measured.items()},
        "waited_for_grades_s": statistics.median(step["grade_s"] for step in measured["maths"]),
        "added": seconds["maths"] / seconds["letters"] - 1,
        "response_length_mean": last["response_length_mean"],
        "truncated_fraction": last["truncated_fraction"],
        "reward_mean": last["reward_mean"],
        "grader_errors": last["grader_errors"],
    }


def files(folder: Path, kind: str) -> dict:
    return {"data.train": folder / f"{kind}.parquet", "data.test": folder / f"{kind}.parquet"}


def train(keys: dict, more: dict) -> None:
    config = Path(__file__).parents[1] / "configs" / "qwen2.5-0.5b.yaml"
    jaxgrpo("train", config, *(f"{key}={value}" for key, value in (keys | more).items()))


def jaxgrpo(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "jaxgrpo.cli", *map(str, arguments)], check=True, stdout=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", metavar="PROBLEMS", help="a prepared training file of at least 4,096 problems")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each kind (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = problem_rows(arguments.problems, Repairs())
    figures = throughput(rows[:COUNT])
    with tempfile.TemporaryDirectory() as folder:
        figures |= overhead(rows, Path(folder), arguments.repeats)
    text = json.dumps(describe() | figures, indent=1)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
