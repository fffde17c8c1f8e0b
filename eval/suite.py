"""One pass over a set of problems: sample, grade, keep every outcome. Training and `jaxgrpo eval` both use it."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgrpo.data import EncodedPrompt
from jaxgrpo.reward import Grade, GraderPool
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.sampling import Sampling, sample_keys
from jaxgrpo.rollout.scheduler import Request, Response, generate


@dataclass(frozen=True)
class Outcome:
    """One response to one problem."""

    question: int  # Problem.index
    sample: int
    response: str
    score: float
    tokens: int
    truncated: bool
    error: str | None = None  # set when the grader failed; the score is 0 then

    def record(self) -> dict:
        row = {key: getattr(self, key) for key in ("question", "sample", "response", "score", "tokens", "truncated")}
        return row | ({"grader_error": self.error} if self.error else {})


@dataclass(frozen=True)
class Graded:
    """Responses and grades [prompt][sample], and the seconds spent decoding and, after that, waiting for grades."""

    responses: list[list[Response]]
    grades: list[list[Grade]]
    generate_s: float
    grade_s: float


def sample_and_grade(
    engine: Engine,
    weights,
    prompts: list[EncodedPrompt],
    *,
    tokenizer,
    pool: GraderPool,
    stream: str,
    seed: int,
    step: int,
    samples: int,
    sampling: Sampling,
    max_new: int,
    generate: Callable = generate,
) -> Graded:
    """Sample `samples` responses to every prompt. Grading starts as each one ends, while others are still being decoded.

    generate: what makes them, with the signature of the scheduler's.
    """
    requests = [
        Request(
            p.tokens,
            sample_keys(seed, stream, step, np.full(samples, p.problem.index), np.arange(samples)),
            sampling,
            max_new,
        )
        for p in prompts
    ]

    def grade(response: Response) -> None:
        problem = prompts[response.request].problem
        text = tokenizer.decode(response.tokens, skip_special_tokens=True)
        item = (problem.data_source, text, problem.ground_truth, problem.extra_info)
        pool.submit((response.request, response.sample), item)

    start = time.perf_counter()
    responses = generate(engine, weights, requests, on_finish=grade)
    decoded = time.perf_counter()
    grades = pool.drain()
    table = [[grades[(p, s)] for s in range(samples)] for p in range(len(prompts))]
    return Graded(responses, table, decoded - start, time.perf_counter() - decoded)


def outcomes(prompts: list[EncodedPrompt], graded: Graded, tokenizer) -> list[Outcome]:
    """Outcomes in the order (problem, sample)."""
    return [
        Outcome(
            prompt.problem.index,
            response.sample,
            tokenizer.decode(response.tokens, skip_special_tokens=True),
            grade.score,
            len(response.tokens),
            response.finish == "length",
            grade.error,
        )
        for prompt, group, marks in zip(prompts, graded.responses, graded.grades, strict=True)
        for response, grade in zip(group, marks, strict=True)
    ]


def pass_at_1(results: list[Outcome]) -> float:
    """The mean score: with k samples a problem this is avg@k, the unbiased estimate of Pass@1."""
    return float(np.mean([outcome.score for outcome in results]))


def write_outcomes(path: Path, results: list[Outcome]) -> None:
    """One JSON line per outcome; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(outcome.record(), ensure_ascii=False) + "\n" for outcome in results)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
