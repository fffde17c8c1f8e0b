"""How fast maths answers are graded, and what that costs a training step.

    python benchmarks/grading.py PROBLEMS.parquet [--repeats 3] [--json OUT]

PROBLEMS: a prepared training file with at least 4,096 problems. First 4,096 answers, half of them right, are graded by a fresh
pool. Then a tiny model, taught to end its answers in a box, makes two GRPO steps of 128 prompts x 8 samples, and after that
rollouts alone, the same ones graded as mathematics and as single letters, which takes no time, in turn.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxgrpo.config import load_config
from jaxgrpo.data.files import problem_rows, write_parquet
from jaxgrpo.data.repair import Repairs
from jaxgrpo.parallel.mesh import prepare_cpu_devices
from jaxgrpo.reward import GraderPool

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

COUNT = 4096
THOUGHT = "Let us see. We have $x^2 + 3x - 4 = 0$, and therefore $x = 1$ or $x = -4$. "


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
    """What grading adds to a rollout, and how long a whole step takes."""
    tokenizer = write_tiny_tokenizer(folder / "hf", [THOUGHT] + [row["prompt"][0]["content"] for row in rows[:200]], 2048)
    sizes = {"vocab": -(-len(tokenizer) // 64) * 64, "layers": 2, "heads": 4, "head_dim": 32, "max_positions": 2048}
    write_tiny_model(folder / "hf", stop_ids=(tokenizer.eos_token_id,), **sizes)
    rows = [row for row in rows if len(row["prompt"][0]["content"]) < 500]
    examples = [
        {"prompt": row["prompt"], "response": THOUGHT * 4 + rf"So $\boxed{{{row['reward_model']['ground_truth']}}}$."}
        for row in rows
    ]
    write_parquet(folder / "demonstrations.parquet", examples)
    write_parquet(folder / "problems.parquet", rows)
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
    demonstrations = {
        "warmup.steps": 150,
        "warmup.check_every": 150,
        "warmup.demonstrations": folder / "demonstrations.parquet",
    }
    keys = common | {"model": folder / "hf", "run_dir": taught, "train.steps": 2}
    keys |= {"data.train": folder / "problems.parquet", "data.test": folder / "problems.parquet"} | demonstrations
    config = str(Path(__file__).parents[1] / "configs" / "qwen2.5-0.5b.yaml")
    overrides = [f"{key}={value}" for key, value in keys.items()]
    subprocess.run([sys.executable, "-P", "-m", "jaxgrpo.cli", "train", config, *overrides], check=True, stdout=sys.stderr)
    step = json.loads((taught / "metrics.jsonl").read_text().splitlines()[-1])
    return rollouts(load_config(str(taught / "config.yaml")), repeats) | {
        "step_s": step["step_s"],
        "step_rollout_s": step["rollout_s"],
        "response_length_mean": step["response_length_mean"],
        "truncated_fraction": step["truncated_fraction"],
    }


def rollouts(config, repeats: int) -> dict:
    """Seconds of rollouts with the same answers, graded as mathematics and as letters in turn, after one turn of each."""
    from jaxgrpo.train.checkpoint import load_params
    from jaxgrpo.train.job import prepare
    from jaxgrpo.train.sizes import config_sampling

    job = prepare(config)
    params = load_params(Path(config.run_dir) / "warm_start", job.abstract_params(), "")
    weights = job.engine.load_params(params)
    job.engine.compile(weights)
    seconds, waited = {"maths": [], "letters": []}, []
    with job.pool:
        for turn in range(repeats + 1):
            prompts = job.prompts.at(turn)
            letters = [
                dataclasses.replace(p, problem=dataclasses.replace(p.problem, data_source="stem__supergpqa", ground_truth="A"))
                for p in prompts
            ]
            for kind, asked in (("letters", letters), ("maths", prompts))[:: 1 if turn % 2 else -1]:
                samples, sampling = config.rollout.samples, config_sampling(config)
                graded = job.sample(weights, asked, stream="train", step=turn, samples=samples, sampling=sampling)
                if turn:
                    seconds[kind].append(graded.generate_s + graded.grade_s)
                    waited += [graded.grade_s] if kind == "maths" else []
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    pairs = [a - b for a, b in zip(seconds["maths"], seconds["letters"], strict=True)]
    return {
        "rollout_s": seconds,
        "median_rollout_s": median,
        "added_s": statistics.median(pairs),
        "waited_for_grades_s": statistics.median(waited),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", metavar="PROBLEMS", help="a prepared training file of at least 4,096 problems")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rollouts of each kind (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = problem_rows(arguments.problems, Repairs())
    prepare_cpu_devices(0)
    figures = throughput(rows[:COUNT])
    with tempfile.TemporaryDirectory() as folder:
        figures |= overhead(rows, Path(folder), arguments.repeats)
    figures["added_share_of_step"] = figures["added_s"] / figures["step_s"]
    from jaxgrpo.bench.machine import describe

    about = describe() | {"command": f"python benchmarks/grading.py {' '.join(sys.argv[1:])}"}
    text = json.dumps(about | figures, indent=1)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
