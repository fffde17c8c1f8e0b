"""Text files and folders that appear whole or not at all, whatever kills the writer."""

import glob
import os
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxgrpo import interruption
from jaxgrpo.storage import is_remote, naming, reached


def write_whole(path: Path, text: str) -> None:
    """Write a file by way of a temporary one; what is not Unicode in the text becomes question marks."""
    if is_remote(path):  # an object is whole by itself
        with reached(path):
            path.write_bytes(text.encode("utf-8", errors="replace"))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with naming(path):
        try:
            with open(temporary, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # of a disk that was full


def file_checksum(file: Path) -> str:
    """CRC-32 of a file's bytes, in hexadecimal."""
    return f"{zlib.crc32(file.read_bytes()):08x}"


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `out` when this ends well, and of which else nothing is left.

    What a SIGKILL leaves, beside `out` under a hidden name, is removed by the next call for the same `out` on this machine."""
    out = out.absolute()
    prefix = f".{out.name}.{socket.gethostname()}."
    for left in out.parent.glob(f"{glob.escape(prefix)}*.unfinished"):
        owner = left.name.removeprefix(prefix).partition(".")[0]
        if not owner.isdigit() or not _lives(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    unfinished = out.parent / f"{prefix}{os.getpid()}.unfinished"
    with interruption.undone(lambda: shutil.rmtree(unfinished, ignore_errors=True)):
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(out)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
