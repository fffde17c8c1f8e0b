"""What a process is at: two live lines on a terminal, elsewhere a line whenever 30 s went by without one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

EVERY_S = 30.0
_REFRESH = 4  # times a second, on a terminal
_BLANK = "  "


@dataclass
class _Doing:
    what: str
    since: float = field(default_factory=time.monotonic)
    done: tuple[int, int, str] | None = None  # so many of so many things


class Activity:
    """A context manager; says nothing on a quiet console. `headline`: the line of what was finished last, kept in view."""

    def __init__(self, console: Console, every_s: float = EVERY_S):
        self.console, self.every_s, self.headline = console, every_s, ""
        self.on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._under_way: list[_Doing] = []
        self._said = time.monotonic()
        self._ended = threading.Event()
        self._live = self._thread = None

    def __enter__(self) -> "Activity":
        if self.console.quiet:
            return self
        if self.on_terminal:
            self._live = Live(console=self.console, get_renderable=self._lines, refresh_per_second=_REFRESH, transient=True)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._beat, name="activity", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the live lines; the terminal's cursor is hidden until then."""
        self._ended.set()
        if self._live:
            self._live.stop()
        if self._thread:
            self._thread.join()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """While this lasts, `what` is under way; inside another one, as a part of that."""
        entry = _Doing(what)
        self._under_way.append(entry)
        try:
            yield
        finally:
            self._under_way.remove(entry)

    def count(self, done: int, total: int, of: str = "") -> None:
        """How far the innermost thing under way has come."""
        if self._under_way:
            self._under_way[-1].done = done, total, of

    def say(self, text: str) -> None:
        self._said = time.monotonic()
        self.console.print(text, markup=False)

    def line(self) -> str:
        """What is under way, how far it has come, and for how long; empty where there is nothing."""
        under_way = list(self._under_way)
        if not under_way:
            return ""
        last = under_way[-1]
        parts = [": ".join(entry.what for entry in under_way)]
        if last.done:
            done, total, of = last.done
            parts.append(f"{done:,} of {total:,} {of}".rstrip())
        return ", ".join([*parts, f"{time.monotonic() - last.since:.0f} s"])

    def _lines(self) -> Text:
        lines = [line for line in (self.headline, self.line()) if line]
        return Text("\n".join(lines), overflow="fold")

    def _beat(self) -> None:
        while not self._ended.wait(min(1.0, self.every_s / 4)):
            if time.monotonic() - self._said >= self.every_s and (line := self.line()):
                self.say(f"running   {line}")


def fitted(parts: list[tuple[int, str]], width: int | None) -> str:
    """The texts of (rank, text) in one line of at most `width` columns: those of the highest rank go first, none is cut, and
    those of rank 0 stay. None: as wide as it takes."""
    kept = list(parts)
    while width is not None and len(_BLANK.join(text for _, text in kept)) > width:
        last = max(rank for rank, _ in kept)
        if last == 0:
            break
        kept.remove(next(part for part in reversed(kept) if part[0] == last))
    return _BLANK.join(text for _, text in kept)
