"""What would be written over is moved out of the way first, never deleted: to FOLDER/before-1, before-2 and so on."""

from collections.abc import Iterable
from pathlib import Path

from jaxgrpo import storage

PREFIX = "before-"


def move_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move those of the files and folders `names` in `folder` that hold anything to a new folder in it; returns that folder, or
    None where nothing was moved. A name may lie deeper (`checkpoints/6`)."""
    with storage.reached(folder):
        held = [name for name in names if _holds_anything(folder / name)]
        if not held:
            return None
        taken = {child.name for child in folder.iterdir()}
        number = next(n for n in range(1, len(taken) + 2) if f"{PREFIX}{n}" not in taken)
        target = folder / f"{PREFIX}{number}"
        for name in held:
            storage.move(folder / name, target / name)
    return target


def _holds_anything(path: Path) -> bool:
    if path.is_dir():
        return any(_holds_anything(child) for child in path.iterdir())
    return path.exists()
