"""Values as they were typed: YAML files and `key=value`, in which only keys that are no text are read as YAML.

YAML 1.1 takes `off`, `yes`, `1.10`, `12:30`, `null`, `~`, `0x10` and dates for something else than text. Files are therefore
read with every scalar as its own text, and `typed` gives a value the type of its key. A leading `~/` is the home directory.
"""

import os
from typing import Any, Literal, get_args, get_origin

import yaml


class _TextLoader(yaml.SafeLoader):
    """Every scalar is a string; `<<` still merges."""


_TextLoader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", yaml.SafeLoader.yaml_implicit_resolvers["<"][0][1])]}


def read_text(text: str) -> Any:
    """Mappings, lists and strings of a YAML text; an empty one is None. yaml.YAMLError."""
    return yaml.load(text, _TextLoader)  # noqa: S506 (a SafeLoader)


def split_override(override: str) -> tuple[str, str] | None:
    """(key, value) of `key=value`; quotes around the whole value are no part of it. None for anything else."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        return None
    if value[:1] in ("'", '"') and value[-1:] == value[:1]:
        try:
            unquoted = yaml.safe_load(value)
        except yaml.YAMLError:
            unquoted = None
        value = unquoted if isinstance(unquoted, str) else value
    return key, value


def typed(value: Any, hint: Any) -> Any:
    """A value read by `read_text` or `split_override`, for a key of the type `hint`; other values stay. yaml.YAMLError."""
    if _is_text(hint):
        return from_home(value) if isinstance(value, str) else value
    if get_origin(hint) is tuple and _is_text(get_args(hint)[0]):
        value = read_text(value) if isinstance(value, str) and value else value
        return [typed(item, str) for item in value] if isinstance(value, list | tuple) else value
    if isinstance(value, list):
        return [typed(item, object) for item in value]
    return yaml.safe_load(value) if isinstance(value, str) and value else value


def from_home(path: str) -> str:
    """`path` with the home directory for a leading `~/`."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) is Literal and isinstance(get_args(hint)[0], str))
