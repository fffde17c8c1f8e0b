"""Where JAX keeps compiled programs between commands. They are code: what another user may write to is not read."""

import os
import stat
import sys
import warnings
from pathlib import Path

from jaxgrpo.storage import is_remote

DEFAULT = Path(".cache") / "jaxgrpo" / "xla"  # in the home directory


def keep_compiled_programs() -> None:
    """Where jax, imported later by this or a child process, finds programs that were compiled before. JAX_COMPILATION_CACHE_DIR
    moves the folder, JAX_ENABLE_COMPILATION_CACHE=false does without it, and so does a folder that others may write to."""
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "f", "n", "no", "off"):
        return
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / DEFAULT))
    if is_remote(folder):
        return
    why = unsafe(Path(folder))
    if why:
        _say(f"compiled programs are code, and {why}: {folder} is not used, programs are compiled anew")
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        _tell_where_programs_cannot_be_kept(folder)


def unsafe(folder: Path) -> str | None:
    """Why programs in this folder may be somebody else's; None where they are our own. Makes the folder, with mode 0700.

    A folder that cannot be made is no danger: JAX says itself that it cannot write there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        pass
    named, real, me = folder.absolute(), folder.resolve(), os.geteuid()
    for place in dict.fromkeys((real, *real.parents, named, *named.parents)):  # who may write above it can replace it
        try:
            about = place.lstat()
        except OSError:
            continue
        if about.st_uid != me and (about.st_uid != 0 or place == real):
            return f"{place} is of another user (uid {about.st_uid})"
        mode, link = stat.S_IMODE(about.st_mode), stat.S_ISLNK(about.st_mode)
        others = mode & (stat.S_IWOTH | stat.S_IWGRP) if place == real else mode & stat.S_IWOTH and not mode & stat.S_ISVTX
        if others and not link:
            return f"others may write to {place} (mode {mode:04o}; chmod go-w it, if all that lies there is yours)"
    return None


def _say(text: str) -> None:
    print(f"WARNING   {text}; JAX_COMPILATION_CACHE_DIR moves the folder", file=sys.stderr)


def _tell_where_programs_cannot_be_kept(folder: str) -> None:
    """JAX warns at every program, without the folder: one line, with it."""
    show, told = warnings.showwarning, []

    def show_warning(message, *rest, **named):
        if "persistent compilation cache entry" not in str(message):
            show(message, *rest, **named)
        elif not told:
            told.append(True)
            reason = str(message).partition(": ")[2]
            _say(f"compiled programs cannot be kept in or read from {folder} ({reason}): they are compiled anew")

    warnings.showwarning = show_warning
