"""The fenced blocks of code in a model's answer, as Markdown and its careless writers have them; one pass over the text.

A fence is three or more backticks or tildes. CommonMark's rules come first: a block ends at a line that holds nothing but a
fence of its kind, at least as long, indented by at most three columns more. Besides these, a fence may open behind text, hold
code in its own line, or close behind code or before text, as long as no triple-quoted string of the block is open there.
"""

import re
from dataclasses import dataclass

_RUN = re.compile(r"`{3,}|~{3,}")
_INFO = re.compile(r"\{?\.?([\w.+#-]*)\}?:?")
_CODE = re.compile(r"(?:async[ \t]+)?def[ \t]|class[ \t]|import[ \t]|from[ \t]|return\b|@\w")
_PYTHON = re.compile(r"code|i?py(?:thon)?[\d.]*")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+")
_MARKDOWN = ("", "markdown", "md")


@dataclass
class Block:
    """A complete fenced block: its language in lower case ("" without one) and its text, which ends with a newline."""

    language: str
    text: str


@dataclass
class _Open:
    """A block that is being read. column: of its fence; indent: of lines that are indented with it; quotes: triple, so far."""

    fence: str
    language: str
    column: int
    indent: int
    lines: list[str]
    quotes: int = 0

    def add(self, line: str) -> None:
        self.quotes += line.count('"""') + line.count("'''")
        self.lines.append(line)

    def block(self) -> Block:
        first = next((line for line in self.lines if line.strip()), "")
        indent = self.indent if _blank(first) >= self.indent else 0  # code is not always indented with its fence
        lines = [line[min(_blank(line), indent) :] for line in self.lines]
        margin = min((_blank(line) for line in lines if line.strip()), default=0)
        return Block(self.language, "".join(f"{line[margin:]}\n" for line in lines))


def blocks(text: str) -> list[Block]:
    """The complete blocks of `text` in their order; one that is never closed is none. Any kind of line end; tabs stay."""
    found: list[Block] = []
    opened: _Open | None = None
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        fences = [run for run in _RUN.finditer(line) if opened is None or _closes(run.group(), opened.fence)]
        if opened is not None:
            end = _end(line, fences, opened)
            if end is None:
                opened.add(line)
                continue
            if line[: end.start()].strip():
                opened.add(line[: end.start()])
            found.append(opened.block())
            opened = None
            if not _PYTHON.fullmatch(line[end.end() :].strip().lower()):
                continue
            fences = [end]  # the fence that should have closed the block before was forgotten
        opened = _opening(line, fences, found)
    return found


def python(text: str) -> list[str]:
    """The texts of the blocks that are Python's or name no language; those inside of a block of Markdown too."""
    texts = []
    for block in blocks(text):
        inner = blocks(block.text) if block.language in _MARKDOWN and _RUN.match(block.text) else []
        texts += [b.text for b in inner or [block] if not b.language or _PYTHON.fullmatch(b.language)]
    return texts


def _closes(run: str, fence: str) -> bool:
    return run[0] == fence[0] and len(run) >= len(fence)


def _end(line: str, fences: list[re.Match], opened: _Open) -> re.Match | None:
    """The fence that ends the block in this line."""
    if not fences:
        return None
    first, last = fences[0], fences[-1]
    before, after = line[: first.start()], line[last.end() :]
    in_string = opened.quotes % 2 == 1
    if not before.strip():
        alone = len(fences) == 1 and not after.strip()
        return first if alone and len(before) <= opened.column + 3 or not in_string else None
    quotes = before.count('"""') + before.count("'''")
    return first if len(fences) == 1 and not after.strip() and not in_string and quotes % 2 == 0 else None


def _opening(line: str, fences: list[re.Match], found: list[Block]) -> _Open | None:
    """The block that begins in this line. Those that begin and end in it are added to `found`."""
    position = 0
    while position < len(fences):
        start = fences[position]
        close = next((i for i in range(position + 1, len(fences)) if _closes(fences[i].group(), start.group())), None)
        if close is None:
            return _multiline(line, start)
        word, _, code = line[start.end() : fences[close].start()].strip().partition(" ")
        tagged = _PYTHON.fullmatch(word.lower())
        found.append(Block("python", f"{code.strip()}\n") if tagged else Block("", f"{word} {code}\n"))
        position = close + 1
    return None


def _multiline(line: str, start: re.Match) -> _Open | None:
    before, info = line[: start.start()], line[start.end() :].strip()
    tag = _INFO.match("" if _CODE.match(info) else info)
    code = info[tag.end() :].lstrip()
    code = code if _CODE.match(code) else ""
    item = not before.strip() or _LIST_ITEM.fullmatch(before)
    if not item and not code and not _INFO.fullmatch(info):
        return None  # a sentence about fences
    opened = _Open(start.group(), tag[1].lower(), len(before), len(before) if item else 0, [])
    if code:
        opened.add(code)
    return opened


def _blank(line: str) -> int:
    """The columns before the first character that is no blank."""
    return len(line) - len(line.lstrip(" \t"))
