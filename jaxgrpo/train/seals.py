"""What protects a JSON object on disk from damage: a checksum in it. Imports no jax."""

import json
import zlib
from pathlib import Path

MARK, SEAL = "sealed", "crc32"  # keys of a JSON object: that it has a checksum, and that


def sealed(content: dict) -> dict:
    """A JSON object with its checksum in it."""
    return {MARK: True} | content | {SEAL: _checksum(content)}


def is_sound(content: dict) -> bool | None:
    """Whether an object is as it was sealed; None where it never was. With one of the two keys the other was damaged."""
    if MARK not in content and SEAL not in content:
        return None
    return content.get(MARK) is True and content.get(SEAL) == _checksum(unsealed(content))


def intact(content: dict) -> dict:
    """An object without its checksum. ValueError where it does not agree; one from before there were any passes."""
    if is_sound(content) is False:
        raise ValueError("its checksum does not agree with its content")
    return unsealed(content)


def read_json_entry(file: Path) -> dict:
    """A JSON entry of a checkpoint's step as it was saved. ValueError where it is damaged, OSError where it cannot be read."""
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return intact(content)


def unsealed(content: dict) -> dict:
    return {key: value for key, value in content.items() if key not in (MARK, SEAL)}


def _checksum(content: dict) -> str:
    """Of an object's content, however it is laid out in the file."""
    as_read = json.loads(json.dumps(content))
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"
