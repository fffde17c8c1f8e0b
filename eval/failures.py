"""Answers that were not graded because their grader failed, told to a person in one line."""

_LONGEST = 160  # characters of a cause
_EXCERPT = 60  # of an answer


def failure_line(failed: int, answers: int, question: int, error: str, response: str) -> str:
    """How many of the answers, and one of them: its problem, what stopped the grader, and the answer's two ends."""
    cause = "".join(c if c.isprintable() else "?" for c in " ".join(error.split()))
    text = " ".join(response.split())
    text = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}"
    return (
        f"the grader failed on {failed:,} of {answers:,} answers ({failed / answers:.0%}), which earn 0; one of them: problem "
        f"{question}, {cause if len(cause) <= _LONGEST else cause[: _LONGEST - 3] + '...'}, answer {text!r}"
    )
