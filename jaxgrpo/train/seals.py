"""What protects a JSON object on disk from damage: a checksum in it. Imports no jax."""

import json
import zlib

MARK, SEAL = "sealed", "crc32"  # keys of a JSON object: that it has a checksum, and that


def sealed(content: dict) -> dict:
    """A JSON object with its checksum in it."""
    return {MARK: True} | content | {SEAL: _checksum(content)}


def is_sound(content: dict) -> bool | None:
    """Whether an object is as it was sealed; None where it never was. With one of the two keys the other was damaged."""
    if MARK not in content and SEAL not in content:
        return None
    return content.get(MARK) is True and content.get(SEAL) == _checksum(unsealed(content))


def unsealed(content: dict) -> dict:
    return {key: value for key, value in content.items() if key not in (MARK, SEAL)}


def _checksum(content: dict) -> str:
    """Of an object's content, however it is laid out in the file."""
    as_read = json.loads(json.dumps(content))
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"
