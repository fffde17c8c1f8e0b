"""What hosts tell each other, as bytes: plain data in msgpack, never pickle: whoever reaches the store may write there."""

import msgpack
import numpy as np

_TUPLE, _INTEGER = 1, 2  # of our own in msgpack: what it would make a list, and what 64 bits do not hold
_DEEPEST = 64


class MessageError(ValueError):
    """Bytes that no host of this job can have sent."""


def packed(value) -> bytes:
    """None, bool, int, float, str, bytes, NumPy scalars, and lists, tuples and dicts of these. TypeError for anything else."""
    return msgpack.packb(_known(value, 0), use_bin_type=True)


def unpacked(data: bytes):
    """What `packed` was given; NumPy scalars come as Python's. MessageError where it is no such message."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=_extension)
    except RecursionError:
        raise MessageError("nested too deeply") from None
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"{type(error).__name__}: {str(error)[:200]}") from None


def _known(value, depth: int):
    if depth > _DEEPEST:
        raise TypeError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | float | str | bytes):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_INTEGER, str(value).encode())
    if isinstance(value, list):
        return [_known(one, depth + 1) for one in value]
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, packed(list(value)))
    if isinstance(value, dict):
        return {_known(key, depth + 1): _known(one, depth + 1) for key, one in value.items()}
    raise TypeError(f"hosts exchange plain data, not {type(value).__name__}")


def _extension(code: int, data: bytes):
    if code == _TUPLE:
        return tuple(unpacked(data))
    if code == _INTEGER and len(data) < 4000:
        return int(data)
    raise ValueError(f"unknown kind {code}")
