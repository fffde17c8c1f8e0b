"""Problems, prompts and their order: data files, the built-in task, tokenizers. Imports neither jax nor torch."""

from jaxgrpo.data.arithmetic import (
    DATA_SOURCE,
    build_tokenizer,
    heldout_problems,
    training_problem,
    training_problems,
    warmup_examples,
)
from jaxgrpo.data.chat import load_tokenizer, save_tokenizer, unknown_ids
from jaxgrpo.data.files import encode_prompts, load_demonstrations, load_problems
from jaxgrpo.data.order import PromptOrder
from jaxgrpo.data.problem import DataError, EncodedPrompt, Problem

__all__ = [
    "DATA_SOURCE",
    "DataError",
    "EncodedPrompt",
    "Problem",
    "PromptOrder",
    "build_tokenizer",
    "encode_prompts",
    "heldout_problems",
    "load_demonstrations",
    "load_problems",
    "load_tokenizer",
    "save_tokenizer",
    "training_problem",
    "training_problems",
    "unknown_ids",
    "warmup_examples",
]
