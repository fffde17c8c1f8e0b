"""What one grading returns."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grade:
    """The outcome of grading one response.

    score: the reward, 0.0 to 1.0. error: None when the grader finished, right or wrong; otherwise one line that says
    what stopped it (a limit, a death, an exception), and then score is 0.0. Callers count errors as `grader_error`.
    figures: further measures by name, such as a Zebra table's `cell_accuracy`; empty where the grader has none.
    """

    score: float
    error: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
