"""Imports google-jetstream 0.2.2 without TensorFlow: the only file that touches a dependency.

- The package imports `seqio` (which imports TensorFlow) and `tiktoken` for tokenizers that nothing here uses. Stand-ins for
  both lie in `sys.modules` while one of its modules is imported and are gone afterwards, or transformers would believe that
  tiktoken is installed.
- Importing its orchestrator sets the root logger to DEBUG with a handler on stdout: level and handlers are restored.
- Its orchestrator calls `jax.tree_map`, which jax no longer has; without it the first request kills the process.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from types import ModuleType

import jax

from jaxgrpo.rollout.jetstream_package import VERSION, require_jetstream
from jaxgrpo.rollout.settings import EngineError

_LOCK = RLock()


def jetstream_module(name: str) -> ModuleType:
    """A module of the package by its name below `jetstream`, such as "core.orchestrator". JetStreamMissing if not installed."""
    with _LOCK, _stand_ins(), _root_logger_kept():
        try:
            module = importlib.import_module(f"jetstream.{name}")
        except ModuleNotFoundError as error:
            require_jetstream("JetStream's interface")
            raise EngineError(
                f"google-jetstream {VERSION} cannot be imported ({error}), although it is installed: install it again."
            ) from error
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map
    return module


@contextmanager
def _stand_ins() -> Iterator[None]:
    """`seqio` and `tiktoken` with the names that the package imports, unless the real ones are already loaded."""
    stand_ins = {
        "seqio": {},
        "seqio.vocabularies": {"Vocabulary": type("Vocabulary", (), {}), "SentencePieceVocabulary": _missing("seqio")},
        "tiktoken": {"Encoding": _missing("tiktoken")},
        "tiktoken.load": {"load_tiktoken_bpe": _missing("tiktoken")},
    }
    placed = []
    for name, members in stand_ins.items():
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(members)
            placed.append(name)
    for package, module in (("seqio", "vocabularies"), ("tiktoken", "load")):
        if package in placed:
            setattr(sys.modules[package], module, sys.modules[f"{package}.{module}"])
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]


def _missing(package: str) -> type:
    """A class that refuses to be made."""

    def refuse(self, *_, **__):
        raise EngineError(f"{package} is not part of this set-up; give the engine a Hugging Face tokenizer.")

    return type("Missing", (), {"__init__": refuse})


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
