"""Tokenizers with a chat template: the built-in one, a local Hugging Face directory, or a hub id."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgrpo.data.arithmetic import build_tokenizer
from jaxgrpo.data.problem import DataError
from jaxgrpo.tokenizer_files import NAMED_TOKENS, TOKENIZER_PATTERNS, VOCABULARY_FILES, token_text, write_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of that name: "arithmetic" is the built-in task's, else a local directory or a hub id "org/name".

    Where there is a tokenizer.json its ids are taken as they are: transformers would set it up anew by the rules of the class
    or of the model that stands beside it. Raises DataError if it cannot be loaded or has no chat template.
    """
    if name == "arithmetic":
        return build_tokenizer()
    local = os.path.isdir(name)
    if local and not any(os.path.exists(os.path.join(name, file)) for file in VOCABULARY_FILES):
        # transformers would hand back an empty vocabulary without a word
        raise DataError(f"{name} holds no tokenizer ({', '.join(VOCABULARY_FILES)}); copy the model's tokenizer files there")
    if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?", name):
        raise DataError(f"there is no directory {name}; give a local one with a tokenizer or a hub id org/name[@revision]")
    try:
        directory = Path(name) if local else _download(name)
        tokenizer = _exact(directory) if (directory / "tokenizer.json").exists() else _converted(directory)
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


def unknown_ids(tokenizer: PreTrainedTokenizerBase, vocab: int) -> tuple[tuple[int, int], ...]:
    """The ids of a model's padded vocabulary that its tokenizer does not know, as ranges (first, end) in order.

    They decode to nothing. Raises DataError for a tokenizer with ids that the model does not have.
    """
    known = sorted(set(tokenizer.get_vocab().values()))
    if not known or known[-1] >= vocab:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} has {len(known)} tokens, the last with id {known[-1] if known else None}, "
            f"the model a vocabulary of {vocab}: set data.tokenizer to the model's own"
        )
    edges = [-1, *known, vocab]
    return tuple((before + 1, after) for before, after in itertools.pairwise(edges) if after > before + 1)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer so that `load_tokenizer` and every transformers from 4.57 on read the same ids."""
    core = tokenizer.backend_tokenizer.to_str(pretty=True)
    (directory / "tokenizer.json").write_text(core, encoding="utf-8")
    named = {key: getattr(tokenizer, key) for key in NAMED_TOKENS}
    settings = {key: value for key, value in named.items() if value is not None} | {"clean_up_tokenization_spaces": False}
    write_settings(directory, json.loads(core), settings)
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = templates.get("default", next(iter(templates.values())))
    (directory / "chat_template.jinja").write_text(templates, encoding="utf-8")


def _exact(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.json, its chat template and the names of its special tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    settings = {**_object(directory / "special_tokens_map.json"), **_object(directory / "tokenizer_config.json")}
    named = {key: text for key in NAMED_TOKENS if (text := token_text(settings.get(key))) is not None}
    unknown = {key: text for key, text in named.items() if core.token_to_id(text) is None}
    for key, text in unknown.items():
        _LOG.warning("%s: %s %r is not in tokenizer.json and is left out.", directory, key, text)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        name_or_path=str(directory),
        chat_template=_chat_template(directory, settings),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **{key: text for key, text in named.items() if key not in unknown},
    )
    # Its own copy may have special tokens added that tokenizer.json does not mark as such, which split other text.
    tokenizer._tokenizer = core
    return tokenizer


def _chat_template(directory: Path, settings: dict) -> str | dict[str, str] | None:
    """That of chat_template.jinja, else of tokenizer_config.json: one, or several by name."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    return {part["name"]: part["template"] for part in template} if isinstance(template, list) else template


def _converted(directory: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of older files without tokenizer.json, as transformers sets it up."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def _download(name: str) -> Path:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    files = ["config.json", *VOCABULARY_FILES, *TOKENIZER_PATTERNS]
    return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=files))


def _object(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
