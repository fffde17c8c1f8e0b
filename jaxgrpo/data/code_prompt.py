"""What precedes the function that a HumanEval problem asks for: its tests use helpers which only the prompt defines."""

import json
import re

SOURCE = "codegen__humaneval"

_CHECKED = re.compile(r"^check\((\w+)\)\s*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_CODE = re.compile(r"^(?:from|import|def|async|class|@|[A-Za-z_]\w*[ \t]*=)", re.MULTILINE)


def code_before(messages: list[dict], ground_truth: object) -> dict[str, str]:
    """{"prefix": the code in front of the function under test, "signature": its head}, from the last user message.

    Empty where the tests name no function or the prompt does not define it.
    """
    asked = [message["content"] for message in messages if message["role"] == "user"]
    try:
        truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        name = _CHECKED.findall(truth["functional"])[-1]
    except (ValueError, TypeError, KeyError, IndexError):  # the grader says what is wrong with it
        return {}
    prompt = asked[-1].replace("\r\n", "\n") if asked else ""
    heads = list(re.finditer(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{name}\b", prompt, re.MULTILINE))
    if not heads:
        return {}
    before, after = prompt[: heads[-1].start()], prompt[heads[-1].start() :]
    fences = list(_FENCE.finditer(before))
    if fences:
        before = before[fences[-1].end() + 1 :]
    if len(fences) % 2 == 0:  # the code does not stand in a block of its own
        first = _CODE.search(before)
        before = before[first.start() :] if first else ""
    closing = _FENCE.search(after) if len(fences) % 2 else None
    after = after[: closing.start()] if closing else after
    margin = len(after) - len(after.lstrip(" \t"))
    if margin:
        before, after = (re.sub(rf"^[ \t]{{0,{margin}}}", "", text, flags=re.MULTILINE) for text in (before, after))
    decorators = re.search(r"(?:^@[^\n]*\n)*\Z", before, re.MULTILINE).start()
    prefix = before[:decorators]
    return {"prefix": prefix if prefix.strip() else "", "signature": before[decorators:] + after}
