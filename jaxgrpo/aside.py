"""What would be written over is moved out of the way first, never deleted: to FOLDER/before-1, before-2 and so on."""

import filecmp
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

from jaxgrpo import storage

PREFIX = "before-"


def move_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move those of the files and folders `names` in `folder` that hold anything to a new folder in it; returns that folder, or
    None where nothing was moved. A name may lie deeper (`checkpoints/6`)."""
    with storage.reached(folder):
        held = [] if not folder.is_dir() else [name for name in names if _holds_anything(folder / name)]
        if not held:
            return None
        taken = {child.name for child in folder.iterdir()}
        number = next(n for n in range(1, len(taken) + 2) if f"{PREFIX}{n}" not in taken)
        target = folder / f"{PREFIX}{number}"
        for name in held:
            storage.move(folder / name, target / name)
    return target


@contextmanager
def replacing(folder: Path, names: Iterable[str], say: Callable[[str], None]):
    """While files of a local folder are written anew: those of these names that were there, and that do not come out the same,
    are moved aside and told."""
    moved = move_aside(folder, names)
    try:
        yield
    finally:
        if moved:
            for old in sorted(moved.iterdir()):
                if (folder / old.name).is_file() and filecmp.cmp(old, folder / old.name, shallow=False):
                    old.unlink()
            left = [file.name for file in sorted(moved.iterdir())]
            if left:
                say(f"moved     {', '.join(left)} of an earlier call to {moved}")
            else:
                moved.rmdir()


def _holds_anything(path: Path) -> bool:
    if path.is_dir():
        return any(_holds_anything(child) for child in path.iterdir())
    return path.exists()
