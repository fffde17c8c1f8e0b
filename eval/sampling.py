"""One pass over a set of problems: sample, grade, keep every outcome. Training and `jaxgrpo eval` both use it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxgrpo.data import EncodedPrompt
from jaxgrpo.reward import Grade, GraderPool
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.sampling import Sampling, sample_keys
from jaxgrpo.rollout.scheduler import Request, Response, generate
from jaxgrpo.whole_file import write_whole


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
    figures: dict[str, float] = field(default_factory=dict)  # further measures of the grader

    def record(self) -> dict:
        row = {key: getattr(self, key) for key in ("question", "sample", "response", "score", "tokens", "truncated")}
        return row | self.figures | ({"grader_error": self.error} if self.error else {})


@dataclass(frozen=True)
class Graded:
    """Responses and grades [prompt][sample], and the seconds spent decoding and, after that, waiting for grades."""

    responses: list[list[Response]]
    grades: list[list[Grade]]
    generate_s: float
    grade_s: float
    by_host_s: list[float] = field(default_factory=list)  # generate_s of every host


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
    samples: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new: int,
    generate: Callable = generate,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Graded:
    """Sample responses to every prompt. Grading starts as each one ends, while others are still being decoded.

    samples: the numbers of the samples to draw, for each prompt; what a sample says depends on its number, not on which others
    are drawn. generate: what makes them, with the signature of the scheduler's. on_outcome: sees each one soon after its grade
    is there, in the order in which they end.
    """
    requests = [
        Request(
            prompt.tokens,
            sample_keys(seed, stream, step, np.full(len(numbers), prompt.problem.index), np.asarray(numbers)),
            sampling,
            max_new,
        )
        for prompt, numbers in zip(prompts, samples, strict=True)
    ]
    ended: dict[tuple[int, int], Response] = {}
    grades: dict[tuple[int, int], Grade] = {}

    def collect(arrived: dict[tuple[int, int], Grade]) -> None:
        grades.update(arrived)
        if on_outcome:
            for (p, s), grade in arrived.items():
                on_outcome(_outcome(prompts[p], samples[p][s], ended[p, s], grade, tokenizer))

    def grade(response: Response) -> None:
        problem = prompts[response.request].problem
        text = response_text(response, tokenizer)
        key = (response.request, response.sample)
        ended[key] = response
        pool.submit(key, (problem.data_source, text, problem.ground_truth, problem.extra_info))
        if on_outcome:
            collect(pool.finished())

    start = time.perf_counter()
    responses = generate(engine, weights, requests, on_finish=grade)
    decoded = time.perf_counter()
    collect(pool.drain())
    table = [[grades[p, s] for s in range(len(numbers))] for p, numbers in enumerate(samples)]
    return Graded(responses, table, decoded - start, time.perf_counter() - decoded)


def as_message(graded: Graded) -> list:
    """One host's answers as plain data, for the others."""
    responses = [
        [(r.request, r.sample, np.int64(r.tokens).tobytes(), np.float64(r.logps).tobytes(), r.finish) for r in group]
        for group in graded.responses
    ]
    grades = [[(grade.score, grade.error, grade.figures) for grade in group] for group in graded.grades]
    return [responses, grades, graded.generate_s, graded.grade_s]


def from_message(message: list) -> Graded:
    """What `as_message` was given. ValueError where it cannot have been one."""
    responses, grades, generate_s, grade_s = message
    return Graded(
        [[_response(*one) for one in group] for group in responses],
        [[Grade(float(score), error, dict(figures)) for score, error, figures in group] for group in grades],
        float(generate_s),
        float(grade_s),
    )


def _response(request: int, sample: int, tokens: bytes, logps: bytes, finish: str) -> Response:
    response = Response(request, sample, np.frombuffer(tokens, np.int64).tolist(), np.frombuffer(logps).tolist(), finish)
    if len(response.tokens) != len(response.logps):
        raise ValueError(f"{len(response.tokens)} tokens with {len(response.logps)} log-probabilities")
    return response


def dealt_together(parts: list[Graded]) -> Graded:
    """What several hosts made of the prompts that were dealt out to them in turn, in the prompts' order.

    The seconds are the slowest host's: the others waited for it."""
    count = sum(len(part.responses) for part in parts)
    places = [(place % len(parts), place // len(parts)) for place in range(count)]
    responses = [parts[host].responses[at] for host, at in places]
    for place, group in enumerate(responses):
        for response in group:
            response.request = place
    by_host_s = [part.generate_s for part in parts]
    return Graded(
        responses,
        [parts[host].grades[at] for host, at in places],
        max(by_host_s),
        max(part.grade_s for part in parts),
        by_host_s,
    )


def outcomes(prompts: list[EncodedPrompt], graded: Graded, tokenizer) -> list[Outcome]:
    """Outcomes in the order (problem, sample), where the samples of each prompt are numbered from 0."""
    return [
        _outcome(prompt, response.sample, response, grade, tokenizer)
        for prompt, group, marks in zip(prompts, graded.responses, graded.grades, strict=True)
        for response, grade in zip(group, marks, strict=True)
    ]


def _outcome(prompt: EncodedPrompt, sample: int, response: Response, grade: Grade, tokenizer) -> Outcome:
    text = response_text(response, tokenizer)
    truncated = response.finish == "length"
    return Outcome(
        prompt.problem.index, int(sample), text, grade.score, len(response.tokens), truncated, grade.error, grade.figures
    )


def response_text(response: Response, tokenizer) -> str:
    """What a response says, without the stop token that ended it. Other special tokens stay: `4<pad>` is not 4."""
    said = response.tokens[:-1] if response.finish == "stop" else response.tokens
    return tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def pass_at_1(results: list[Outcome]) -> float:
    """The mean score: with k samples a problem this is avg@k, the unbiased estimate of Pass@1."""
    return float(np.mean([outcome.score for outcome in results]))


def write_records(path: Path, records: list[dict]) -> None:
    """One JSON line per outcome."""
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_records(path: Path) -> list[dict]:
    """The outcomes of a file; a line torn by a kill or garbled is left out, an absent file has none."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= {"question", "sample", "score"}:
            records.append(record)
    return records
