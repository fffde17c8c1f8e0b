"""Which grader marks which data source. A new grader is one file and one row of GRADERS."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.reward import arithmetic, gsm8k, humaneval, maths, supergpqa, zebra


def _everything(response: str, ground_truth: object, extra_info: object) -> object:
    return [response, ground_truth, extra_info]


@dataclass(frozen=True)
class Grader:
    """A grader and the data sources it marks.

    prefixes: a data source belongs to the grader when it starts with one of them. trusted: the grader's time is linear
    in the text and nothing in it can hang, so it may run in the calling process. decisive: what of an item decides its
    grade, as plain data; items that agree in it are tried once when that fails.
    """

    prefixes: tuple[str, ...]
    grade: Callable[[str, object, object], float]
    trusted: bool = False
    runs_code: bool = False  # of the model, in the sandbox
    decisive: Callable[[str, object, object], object] = _everything
    figures: tuple[tuple[str, Callable[[str, object], float]], ...] = ()  # further measures of a response, beside its score


GRADERS = (
    Grader(("arithmetic",), arithmetic.grade, trusted=True),
    Grader(("math__", "aime", "amc"), maths.grade, decisive=maths.decisive),
    Grader(("openai/gsm8k", "gsm8k"), gsm8k.grade),
    Grader(("stem__supergpqa",), supergpqa.grade, trusted=True),
    Grader(("logic__zebra_puzzle",), zebra.grade, figures=(("cell_accuracy", zebra.cell_accuracy),)),
    Grader(("codegen__humaneval",), humaneval.grade, runs_code=True),
)


def known_data_sources() -> tuple[str, ...]:
    """The prefixes of data_source that have a grader."""
    return tuple(prefix for grader in GRADERS for prefix in grader.prefixes)


def grader_of(data_source: str) -> Grader:
    """The grader of `data_source`; UserError (a ValueError) that lists the known ones when there is none."""
    for grader in GRADERS:
        if isinstance(data_source, str) and data_source.startswith(grader.prefixes):
            return grader
    known = ", ".join(f"{prefix}*" for prefix in known_data_sources())
    raise UserError(f"no grader for data_source {data_source!r}; known: {known}")


def marked(data_source: str, response: str, ground_truth: object, extra_info: object) -> tuple[float, dict[str, float]]:
    """(score, further figures by name) of a response, graded in the calling process. A grader that fails raises."""
    grader = grader_of(data_source)
    value = float(grader.grade(response, ground_truth, extra_info))
    return value, {name: float(measure(response, ground_truth)) for name, measure in grader.figures}


def score(data_source: str, response: str, ground_truth: object, extra_info: object = None) -> float:
    """Reward of `response` in [0, 1], graded in the calling process and without limits; see `GraderPool` for those.

    data_source: chooses the grader by prefix. ground_truth: the reference answer in that data source's form.
    Raises ValueError for an unknown data source or a ground truth that cannot be used, TypeError when the response is
    not text. A grader that fails raises; it never returns a number then.
    """
    if not isinstance(response, str):
        raise TypeError(f"the response must be text, got {type(response).__name__}")
    return float(grader_of(data_source).grade(response, ground_truth, extra_info))
