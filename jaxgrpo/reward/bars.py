r"""Bars around absolute values and norms as \lvert ... \rvert, because a bare | does not say whether it opens or closes."""

import re

_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|[bB]igg?l)\s*(?:\||\\\||\\[lr]?[vV]ert(?![a-zA-Z]))", r"\\lvert "),
        (r"\\(?:right|[bB]igg?r)\s*(?:\||\\\||\\[lr]?[vV]ert(?![a-zA-Z]))", r"\\rvert "),
        (r"\\lVert(?![a-zA-Z])", r"\\lvert "),
        (r"\\rVert(?![a-zA-Z])", r"\\rvert "),
        (r"\\(?:\||[vV]ert(?![a-zA-Z]))", "|"),
    )
)
_TOKEN = re.compile(r"\\[a-zA-Z]+\s*|\\.|\s+|.", re.DOTALL)
# after these a bar opens; after every other command it may close
_OPERATORS = frozenset(
    "cdot times div pm mp le leq ge geq lt gt ne neq in cup cap ln log sin cos tan exp left frac sqrt".split()
)


def paired(text: str) -> str:
    r"""`text` with each bar as \lvert or \rvert; as it was when they do not pair up, as in a set \{x | x>0\}."""
    if "|" not in text and "ert" not in text:
        return text
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    out: list[str] = []
    levels: list[int] = [0]  # bars open at each level of brackets
    operand = False  # whether what stands before can end a value
    for token in _TOKEN.findall(text):
        name = token[1:].strip() if token[0] == "\\" else ""
        if token.isspace():
            out.append(token)
            continue
        closes = name == "rvert" or (token == "|" and operand and levels[-1] > 0)
        if closes or token == "|" or name == "lvert":
            levels[-1] += -1 if closes else 1
            if levels[-1] < 0:
                return text
            operand = closes
            out.append(r"\rvert " if closes else r"\lvert ")
            continue
        if token in "([{" or name == "{":
            levels.append(0)
        elif token in ")]}" or name == "}":
            if levels.pop() or not levels:
                return text
        operand = name not in _OPERATORS and name not in ("{", ",", ";", " ") if name else token not in "+-*/=<>,;:^_([{&"
        out.append(token)
    return "".join(out) if levels == [0] else text
