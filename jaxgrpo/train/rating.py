"""`jaxgrpo data rate`: how often a model solves each problem of a file, in a file that `jaxgrpo data prepare` sorts by it.

The answers lie beside that file, as those of `jaxgrpo eval` do: the same command goes on after a kill and asks nothing twice.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console

from eval.run import Questions
from jaxgrpo.config import EVALUATION_KEYS, ConfigError, replace
from jaxgrpo.data import Problem, encode_prompts
from jaxgrpo.data.files import problem_rows, write_parquet
from jaxgrpo.data.prepare import RATE, RATED_BY, SOURCES
from jaxgrpo.data.prompts import Template, in_template
from jaxgrpo.data.repair import Repairs
from jaxgrpo.train.dataset import check_gradable
from jaxgrpo.train.evaluation import answer, warn_of_failures
from jaxgrpo.train.inference import find, tokenizer_of

KEYS = tuple(key for key in EVALUATION_KEYS if key not in ("eval.samples", "eval.limit", "eval.data"))
SAMPLES = "pass_rate_samples"
NAME = "problems"


def rate(source: str, model: str, out: str | None, samples: int, template: Template, overrides: list[str]) -> Path:
    """Answer every problem of `source` `samples` times with `model` and write its rows with the share of right answers.

    Rows stay as they are in the source; the template is put around the questions only to ask them. A prompt that is too long is
    not asked and has no rate. ConfigError for samples and names that cannot be meant, DataError for a source that cannot be
    used or graded. Returns the path of the file.
    """
    if samples < 1:
        raise ConfigError(f"--samples {samples} is below 1: give how many answers each problem gets, such as 16.")
    path = Path(out or f"{_stem(source)}-rated.parquet")
    if path.suffix != ".parquet":
        raise ConfigError(f"--out {path} does not end in .parquet: the rated problems are written to such a file.")
    if path.resolve() == Path(source).resolve():
        raise ConfigError(f"--out {path} is the source itself: choose another file.")
    console = Console(highlight=False, soft_wrap=True)
    name = SOURCES.get(source, source)
    rows = problem_rows(name, Repairs())
    problems = [
        Problem(
            index,
            tuple(in_template(row["prompt"], template, row["data_source"], f"{name}, row {index}")),
            row["data_source"],
            row["reward_model"]["ground_truth"],
            row["extra_info"],
        )
        for index, row in enumerate(rows)
    ]
    served = find(model, overrides, keys=KEYS)
    served = dataclasses.replace(served, config=replace(served.config, {"eval.samples": samples}))
    check_gradable(problems, served.config.reward.sandbox)
    tokenizer = tokenizer_of(served)
    limit = served.config.data.max_prompt_tokens
    prompts, overlong = encode_prompts(problems, tokenizer, max_tokens=limit, overlong="drop")
    asked = [Questions(NAME, path.stem, prompts, overlong)]
    folder_of = lambda _: str(path.with_name(f"{path.stem}.answers"))  # noqa: E731
    served, folder = answer(served, asked, folder_of, tokenizer, console, template=template.text)
    records = folder.outcomes(NAME)
    write_parquet(path, rated(rows, records, served.name, samples))
    tell(records, samples, console)
    console.print(f"wrote     {path}; next: jaxgrpo data prepare {path} OUT_DIR", markup=False)
    return path


def rated(rows: list[dict], records: list[dict], model: str, samples: int) -> list[dict]:
    """Rows with the mean score of their answers, None for those that were not asked, and who gave how many."""
    scores: dict[int, list[float]] = {}
    for record in records:
        scores.setdefault(record["question"], []).append(record["score"])
    means = [float(np.mean(scores[index])) if index in scores else None for index in range(len(rows))]
    return [row | {RATE: mean, RATED_BY: model, SAMPLES: samples} for row, mean in zip(rows, means, strict=True)]


def tell(records: list[dict], samples: int, console: Console) -> None:
    """How hard the problems are, and whether the graders could judge."""
    right = Counter()
    for record in records:
        right[record["question"]] += record["score"]
    solved = np.array(list(right.values())) / samples
    console.print(
        f"rated     {len(solved):,} problems, {samples} answers each: mean pass rate {solved.mean():.3f}, "
        f"{(solved == 0).sum():,} never solved, {(solved == 1).sum():,} always"
    )
    warn_of_failures(records, NAME, console)


def _stem(source: str) -> str:
    return Path(source.partition(":")[0]).stem
