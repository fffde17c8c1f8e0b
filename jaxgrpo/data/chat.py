"""Tokenizers with a chat template: the built-in one, a local Hugging Face directory, or a hub id."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from jaxgrpo.data.arithmetic import build_tokenizer
from jaxgrpo.data.problem import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of that name: "arithmetic" is the built-in task's, else a local directory or a hub id "org/name".

    Raises DataError if it cannot be loaded or has no chat template.
    """
    if name == "arithmetic":
        return build_tokenizer()
    from transformers import AutoTokenizer

    local = os.path.isdir(name)
    if local and not any(os.path.exists(os.path.join(name, file)) for file in _VOCABULARY_FILES):
        # transformers would hand back an empty vocabulary without a word
        raise DataError(f"{name} holds no tokenizer ({', '.join(_VOCABULARY_FILES)}); copy the model's tokenizer files there")
    if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise DataError(f"there is no directory {name}; give a local directory with a tokenizer or a hub id org/name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # the hub client and the tokenizer parser have no common base class for their failures
        remedy = "fetch its files again" if local else "check the name and the network, or give a local directory"
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the tokenizer {name} cannot be loaded ({type(error).__name__}: {reason}); {remedy}") from error
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer {name} has no chat template; add chat_template.jinja to its directory "
            "(the one of the instruct model of the same family will do)"
        )
    return tokenizer
