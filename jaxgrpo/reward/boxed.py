r"""The answer of a response: the content of its last \boxed{...}."""

import re

# doubled backslashes happen in published data; "\\boxed{" holds "\boxed{" and needs no case of its own
_TOKEN = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")


def last_boxed(response: str) -> str | None:
    r"""Content of the last \boxed{...} of `response`, in one pass over the text; None when there is none.

    A box inside a box belongs to the outer one, whose inner wrappers are removed. A box that is opened after every
    complete one and never closed (a response cut at its length limit) means that no final answer was given: None.
    """
    opened: list[int | None] = []  # one entry per open brace: where the box's content starts, None for a plain brace
    last: tuple[int, int] | None = None
    for token in _TOKEN.finditer(response):
        text = token.group()
        if text.startswith("\\boxed"):
            opened.append(token.end())
        elif text == "{":
            opened.append(None)
        elif text == "}" and opened:
            start = opened.pop()
            if start is not None:
                last = start, token.start()
    if last is None or any(start is not None and start > last[1] for start in opened):
        return None
    return _unwrapped(response[last[0] : last[1]])


def _unwrapped(content: str) -> str:
    """`content` with the boxes inside it replaced by what they hold."""
    out: list[str] = []
    boxes: list[bool] = []
    position = 0
    for token in _TOKEN.finditer(content):
        text = token.group()
        out.append(content[position : token.start()])
        position = token.end()
        if text.startswith("\\boxed"):
            boxes.append(True)
            continue
        if text == "{":
            boxes.append(False)
        elif text == "}" and boxes and boxes.pop():
            continue
        out.append(text)
    out.append(content[position:])
    return "".join(out)


def after_thinking(response: str) -> str:
    """The part after the last </think>, where reasoning models put their answer; all of it when there is none."""
    return response.rpartition("</think>")[2]
