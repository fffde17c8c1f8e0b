"""What a problem is, what an encoded prompt is, and the one error that bad data raises."""

from dataclasses import dataclass, field

import numpy as np

from jaxgrpo.errors import UserError


class DataError(UserError):
    """Data that cannot be used. The message names the file, the row, the value and the remedy."""


@dataclass(frozen=True)
class Problem:
    """One verifiable problem: what the model is shown and what a grader needs to judge its response.

    index: identity of the problem in its file or stream (row number in the file, counted from 0).
    messages: chat messages, each a dict with `role` and `content`.
    data_source: selects the grader.
    ground_truth: handed to the grader as it is; a string except for structured answers.
    extra_info: further columns of the row (pass rates, split, ...).
    """

    index: int
    messages: tuple[dict, ...]
    data_source: str
    ground_truth: object
    extra_info: dict = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedPrompt:
    """A problem and its prompt as token ids: int32 [prompt_len], chat template and generation prompt applied."""

    problem: Problem
    tokens: np.ndarray
