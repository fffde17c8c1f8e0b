"""The safetensors format: 8 bytes of header length, a JSON header, then the bytes of the tensors.

Written out here because both directions need what the package does not offer: bfloat16 tensors mapped from disk as
NumPy arrays, and a writer that asks for one tensor at a time. Format: github.com/huggingface/safetensors#format.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxgrpo.model.config import ModelError
from jaxgrpo.storage import naming

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
LENGTH_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file; nothing is read until `open` is called."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as in the header: F32, BF16, F16, or one that `open` refuses
    offset: int  # bytes from the start of the file
    nbytes: int

    def open(self) -> np.ndarray:
        """The tensor as a read-only view of the file. The mapping ends with the last reference to the view."""
        return np.memmap(self.file, self.numpy_dtype, mode="r", offset=self.offset, shape=self.shape)

    @property
    def numpy_dtype(self) -> np.dtype:
        """ModelError for a dtype that is not a floating-point number of 16 or 32 bits, such as a quantised one."""
        if self.dtype not in DTYPES:
            raise ModelError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}; only {', '.join(DTYPES)} can be read. "
                "Use the unquantised weights, or store them as BF16."
            )
        return DTYPES[self.dtype]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises ModelError when the file is missing, its header is not one, or the tensors do not fill the file exactly.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            start = LENGTH_BYTES + length
            if start > size:
                raise ModelError(
                    f"{file}: truncated or not a safetensors file: its first 8 bytes announce a header of {length:,} "
                    f"bytes, the file has {size:,}. Fetch it again."
                )
            text = stream.read(length)
    except FileNotFoundError:
        raise ModelError(f"{file} does not exist; fetch the model's weight files again, all of them.") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error}); check the path and its permissions.") from None
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, name, fields, start) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: the safetensors header is corrupt ({error!r}). Fetch the file again.") from None
    _check_extent(file, tensors.values(), start, size)
    return tensors


def _entry(file: Path, name: str, fields: dict, start: int) -> StoredTensor:
    shape = tuple(int(n) for n in fields["shape"])
    first, last = (int(n) for n in fields["data_offsets"])
    if not 0 <= first <= last or min(shape, default=0) < 0:
        raise ValueError(f"tensor {name}: shape {shape}, data_offsets {first}, {last}")
    return StoredTensor(file, name, shape, str(fields["dtype"]), start + first, last - first)


def _check_extent(file: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """Offsets agree with shapes and dtypes, and the last one is the end of the file."""
    end = start
    for tensor in tensors:
        end = max(end, tensor.offset + tensor.nbytes)
        if tensor.dtype in DTYPES and tensor.nbytes != math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize:
            raise ModelError(
                f"{file}: the safetensors header is corrupt: tensor {tensor.name} of shape {tensor.shape} in "
                f"{tensor.dtype} is given {tensor.nbytes:,} bytes. Fetch the file again."
            )
    if end != size:
        problem = "truncated" if size < end else "longer than its header says"
        raise ModelError(f"{file}: {problem}: the tensors end at byte {end:,}, the file has {size:,}. Fetch it again.")


@dataclass(frozen=True)
class PendingTensor:
    """A tensor to be written; `read` produces it when its turn comes, so that only one is held at a time."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weight_file(file: Path, tensors: Iterable[PendingTensor]) -> None:
    """Write a safetensors file, one tensor in memory at a time, down to the disk. OSError as the system gives it."""
    tensors = list(tensors)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not name a framework
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with naming(file), file.open("wb") as stream:
        stream.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for tensor in tensors:
            value = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype)
            if value.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: {value.shape} where {tensor.shape} was announced")
            stream.write(value.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
