r"""One spelling for every answer: LaTeX with no spaces, no markup, braced arguments, `\frac` for every fraction."""

import re
import unicodedata
from functools import lru_cache

from jaxgrpo.reward.bars import paired
from jaxgrpo.reward.units import money_last, written_out

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^{\circ}", "±": r"\pm ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "…": r"\ldots ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "℃": r"^{\circ}C", "℉": r"^{\circ}F", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
}  # fmt: skip

_COMMANDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\(?:display|text|script)style(?![a-zA-Z])", ""),
        (r"\\limits(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:text)?color(?:box)?\s*\{[^{}]*\}", ""),
        (r"\\(?:fbox|framebox|underline|ensuremath|boldsymbol|pmb)\s*\{", "{"),
        (r"\\imath(?![a-zA-Z])", "i "),
        (
            r"\\(?:text(?:bf|it|rm|sf|tt|up|sl|sc|md|normal)?|emph|math(?:rm|bf|it|sf|tt|up|normal)|mbox|hbox|bm|operatorname\*?)\s*\{",
            r"\\text{",
        ),
        (r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt|up|normal)|operatorname)\s+([a-zA-Z])", r"\\text{\1}"),
        (r"\{\\(?:rm|bf|it)(?![a-zA-Z])", r"\\text{"),
        (r"\\leq?(?:slant)?(?![a-zA-Z])", r"\\le "),
        (r"\\geq?(?:slant)?(?![a-zA-Z])", r"\\ge "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\neq?(?![a-zA-Z])", r"\\ne "),
        (r"\\(?:times|ast)(?![a-zA-Z])", r"\\cdot "),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:[lc]?dots[cbmio]?)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
        (r"\\R(?![a-zA-Z])|\\mathbf\{R\}", r"\\mathbb{R}"),
        (r"\\(?:degree|textdegree)(?:s)?(?![a-zA-Z])|\^\s*\\circ(?![a-zA-Z])|\^\{\s*\\circ\s*\}", r"^{\\circ}"),
        (r"\s*\\text\{\s*degrees?\s*\}|(?<=[\d}])\s*degrees?(?![a-zA-Z])", r"^{\\circ}"),
        (r"\s*\\text\{\s*(?:percent|per cent|pct\.?|\\?%)\s*\}|\s*(?<![a-zA-Z])(?:per ?cent|pct)(?![a-zA-Z])|\\?%", r"\\%"),
        (r",?\s*\\text\{\s*,?\s*(?:or|and)\s*\}|,?(?<=[\s\d)}\]])(?:or|and)(?=[\s\\(\[])", ","),
        (r"\\\$|\$|\\[\[\]()]", ""),
        (r"\\(?:arc)(sin|cos|tan)", r"\\arc\1 "),
    )
)
_MARKDOWN = re.compile(r"^\s*(\*\*|__|`)([^*_`]+)\1")
_CURRENCY = re.compile("[€£¥₹]")
_THOUSANDS_MARK = re.compile(r"\{,\}\s*|,\s*\\!\s*")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?:(?:\\,|\\;|\\ | )\d{3})+(?!\d)")
_SPACING = re.compile(r"\\[,!;:> ]|~|\\q?quad(?![a-zA-Z])|\\(?:newline|hfill)(?![a-zA-Z])")
_MIXED_WITH_SLASH = re.compile(r"(?<![\d.])(\d+)(?:\s+|\s*\\text\{\s*(?:and)?\s*\}\s*|\s*\+\s*(?=\d+/\d+$))(\d+)/(\d+)(?!\d)")
_COUNTED = (
    "units?|square units?|cubic units?|people|students?|ways|apples?|points?|times|girls|boys|books|coins|cups|eggs|pages|"
    "tickets|bags|items|grade|grades"
)
_PLAIN_UNIT = re.compile(rf"(?<=[\d}}])\s*({_COUNTED})(\^\{{?\d\}}?)?\s*\.?$")
_OTHER_SCRIPT_UNIT = re.compile(r"(?<=[\d}])\s*([\u0400-\u04ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)$")
_DOUBLED = re.compile(r"\\{2,}(?=[a-zA-Z{}%$!,;:|])")
_ENVIRONMENT = re.compile(r"\\begin")


def repair(text: str) -> str:
    r"""Undo doubled backslashes ("\\frac" -> "\frac"), without touching the row breaks of a matrix."""
    if r"\\begin" in text:
        return text.replace("\\\\", "\\")
    if _ENVIRONMENT.search(text):
        return text
    return _DOUBLED.sub(r"\\", text)


@lru_cache(maxsize=16384)
def canonical(answer: str) -> str:
    r"""The one spelling of `answer` that all comparisons use. Text and units stay inside \text{...}.

    Two answers with the same canonical spelling are the same; two with different ones may still be equal.
    """
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", repair(answer))
    text = "".join(_CHARACTERS.get(character, character) for character in text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zs") else c for c in text)
    if _ENVIRONMENT.search(text):
        text = text.replace("\\\\", "\\cr ")  # a row break would otherwise read as an escaped space
    text = money_last(_MARKDOWN.sub(r"\2", _THOUSANDS_MARK.sub(",", text)))
    text = paired(text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"[.,;:]+\s*\}$", "}", text.strip().rstrip(".,;:").strip())
    text = _CURRENCY.sub("", written_out(_joined_thousands(text)))
    text = _OTHER_SCRIPT_UNIT.sub(r"\\text{\1}", _PLAIN_UNIT.sub(r"\\text{\1}\2", text))
    text = _MIXED_WITH_SLASH.sub(r"\1\\frac{\2}{\3}", _SPACING.sub(" ", text))
    text = _named_functions(text)
    text = _braced(_without_spaces(text))
    return _without_outer_braces(text)


def _joined_thousands(text: str) -> str:
    """Thousands separators are dropped where no bracket makes the comma a separator of elements."""
    text = _SPACED_THOUSANDS.sub(lambda number: re.sub(r"\D", "", number.group()), text)
    out: list[str] = []
    depth = position = 0
    while position < len(text):
        number = _THOUSANDS.match(text, position) if depth == 0 else None
        if number and not (position and (text[position - 1].isdigit() or text[position - 1] in ",.")):
            out.append(number.group().replace(",", ""))
            position = number.end()
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        out.append(text[position])
        position += 1
    return "".join(out)


def _named_functions(text: str) -> str:
    r"""Calculator spellings: sqrt(2), pi, infinity -> \sqrt{2}, \pi, \infty; exponents in parentheses -> in braces."""
    text = re.sub(r"\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt", r"\\sqrt", text)
    text = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", text)
    text = re.sub(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty ", text)
    text = re.sub(r"\+\s*\\infty", r"\\infty", text)
    text = re.sub(r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan)(?![a-zA-Z])", r"\\\1 ", text)
    return re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)


def _without_spaces(text: str) -> str:
    # a space between a command and a letter ends the command; between two digits it separates two numbers
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\x00", text.strip())
    text = re.sub(r"(?<=\d)\s+(?=\d)", "\x00", text)
    return re.sub(r"\s+", "", text).replace("\x00", " ")


def _braced(text: str) -> str:
    r"""Braces around every argument of ^ _ \sqrt and \frac: "\frac43" -> "\frac{4}{3}", "2^10" -> "2^{10}"."""
    text = re.sub(r"\^([+-]?\d+)", r"^{\1}", text)  # more than TeX takes, and what writers of "2^10" mean
    text = re.sub(r"([\^_])([0-9a-zA-Z]|\\[a-zA-Z]+)", r"\1{\2}", text)
    text = re.sub(r"\^\{\\prime\}", "'", text)
    text = re.sub(r"(\\(?:overline|bar|dot)) ?(\d)", r"\1{\2}", text)
    text = re.sub(r"\\dot\{(\d)\}(\d*)\\dot\{(\d)\}", r"\\overline{\1\2\3}", text)
    text = re.sub(r"(\\sqrt(?:\[[^\]]*\])?) ?(\d+|[a-zA-Z]|\\[a-zA-Z]+)", r"\1{\2}", text)
    out: list[str] = []
    position = 0
    for match in re.finditer(r"\\frac", text):
        if match.start() < position:
            continue
        out.append(text[position : match.end()])
        position = match.end()
        for _ in range(2):
            argument, position = _argument(text, position)
            out.append(argument)
    out.append(text[position:])
    return "".join(out)


def _argument(text: str, position: int) -> tuple[str, int]:
    """The next argument of a command, in braces, and where it ends; nothing at the end of the text."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position == len(text) or text[position] == "}":
        return "", position
    if text[position] == "{":
        end = closing(text, position)
        inside = text[position + 1 : end]
        return "{" + (_braced(inside) if "\\frac" in inside else inside) + "}", end + 1
    token = re.compile(r"\\[a-zA-Z]+ ?|.", re.DOTALL).match(text, position)
    return "{" + token.group().strip() + "}", token.end()


def closing(text: str, position: int) -> int:
    """Index of the bracket that closes the one at `position`; the last index when it is never closed."""
    depth = 0
    for index in range(position, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return len(text) - 1


def _without_outer_braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return text


def depth(text: str) -> int:
    """How deeply brackets are nested in `text`."""
    deepest = level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest
