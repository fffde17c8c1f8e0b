"""Problems, prompts and their order: data files, the built-in arithmetic task, tokenizers. Imports neither jax nor torch."""

from jaxgrpo.data.order import PromptOrder
from jaxgrpo.data.problem import DataError, EncodedPrompt, Problem

__all__ = ["DataError", "EncodedPrompt", "Problem", "PromptOrder"]
