"""Text files that appear whole or not at all, whatever kills the writer."""

import os
from pathlib import Path

from jaxgrpo.storage import is_remote, reached


def write_whole(path: Path, text: str) -> None:
    """Write a file by way of a temporary one; what is not Unicode in the text becomes question marks."""
    if is_remote(path):  # an object is whole by itself
        with reached(path):
            path.write_bytes(text.encode("utf-8", errors="replace"))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
