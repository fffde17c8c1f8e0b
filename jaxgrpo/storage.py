"""Where runs lie: a local folder, or an object store by its gs:// address. Paths of both kinds have pathlib's methods.

On an object store there is no appending, no renaming and no locking: a file appears whole when it is written, and is written
anew to change. Metadata goes through fsspec (the `gcs` extra); the bytes of checkpoints through TensorStore's own client.
"""

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from jaxgrpo import interruption
from jaxgrpo.errors import UserError

REMOTE = ("gs://",)


class StorageError(UserError):
    """A location that cannot be reached; the message gives it, the cause and the remedy."""


def is_remote(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(REMOTE)


def location(path: str | os.PathLike) -> Path:
    """The path object of a local or gs:// path. StorageError where the client for the store is not installed."""
    if not is_remote(path):
        return Path(path)
    os.environ.setdefault("EPATH_USE_TF", "false")
    try:
        import gcsfs  # noqa: F401 (fsspec finds it by itself; without it, its message names no remedy)
    except ImportError:
        raise StorageError(f"{path} needs the Google Cloud Storage client: pip install 'jaxgrpo[gcs]'.") from None
    import logging

    from etils import epath

    for library in ("gcsfs", "google.auth"):  # they warn at every call: of the bucket's type, of a machine without an account
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is raised here
    return epath.Path(os.fspath(path))


def absolute(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()


@contextmanager
def reached(path: str | os.PathLike):
    """Turns what a store's client raises into one StorageError; local paths keep their own errors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        cause = str(error).partition("\n")[0][:200] or type(error).__name__
        raise StorageError(
            f"{path} cannot be used ({cause}): see that the bucket exists and that this machine may read and write it."
        ) from error


@contextmanager
def naming(path: str | os.PathLike):
    """An OSError of what is written inside names `path`: of a full disk the system names no file, and a library in Rust raises
    an error of its own."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files of a local or remote folder into another one."""
    target.mkdir(parents=True, exist_ok=True)
    for child in sorted(source.iterdir(), key=lambda child: child.name == "config.json"):  # last: a torn copy looks torn
        if child.is_dir():
            copy_tree(child, target / child.name)
        else:
            with naming(target / child.name):
                (target / child.name).write_bytes(child.read_bytes())


def complete_steps(checkpoints: Path) -> list[Path]:
    """The complete steps in a checkpoints folder, the newest first; on an object store, where nothing can be renamed, Orbax
    marks what is committed."""
    steps = [child for child in checkpoints.iterdir() if child.name.isdigit()] if checkpoints.is_dir() else []
    whole = [s for s in steps if (s / "params").is_dir() and (not is_remote(s) or (s / "commit_success.txt").exists())]
    return sorted(whole, key=lambda step: int(step.name), reverse=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file and force it to disk; an object is written anew. A line torn by a kill is ended first."""
    if is_remote(path):
        with reached(path):
            path.write_bytes((path.read_bytes() if path.exists() else b"") + line.encode() + b"\n")
        return
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def move(source: Path, target: Path) -> None:
    """Move a file or a folder to a place where nothing is; an object store copies within itself and then deletes."""
    if not is_remote(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    from etils.epath import backend

    store, folder = backend.fsspec_backend.fs(source), source.is_dir()  # epath's own client, whose lists of files stay true
    store.copy(os.fspath(source), os.fspath(target), recursive=folder)
    store.rm(os.fspath(source), recursive=folder)


@contextmanager
def written_locally(path: Path):
    """A folder to fill: `path` itself where it is local, else one that is copied there afterwards."""
    if not is_remote(path):
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="jaxgrpo-"))
    with interruption.undone(lambda: shutil.rmtree(folder, ignore_errors=True)):
        yield folder
        with reached(path):
            copy_tree(folder, path)


def local_copy(path: Path) -> Path:
    """`path` itself, or a copy of a remote folder in a temporary one that lasts until the process ends."""
    if not is_remote(path):
        return path
    folder = Path(tempfile.mkdtemp(prefix="jaxgrpo-"))
    interruption.undone_at_exit(lambda: shutil.rmtree(folder, ignore_errors=True))
    with reached(path):
        copy_tree(path, folder)
    return folder
