r"""What words after a value mean: units, written one way whatever their spelling, and number words, which are values.

A unit only says what is counted, so a value with one equals the bare value; two different known units never agree.
Known units become \text{@name power ...}, such as \text{@hour-1.kilometer1} for km/h. Words that change a value
("million", "squared", "or more") are no units; neither is an upright letter that is none.
"""

import re

_NAMES = {
    "millimeter": "mm millimeters millimetre millimetres", "centimeter": "cm centimeters centimetre centimetres",
    "meter": "m meters metre metres", "kilometer": "km kilometers kilometre kilometres", "inch": "in inches",
    "foot": "ft feet", "yard": "yd yards", "mile": "mi miles", "acre": "acres", "hectare": "hectares ha",
    "gram": "g grams gm", "kilogram": "kg kilograms kgs", "milligram": "mg milligrams", "ton": "tons tonne tonnes",
    "pound": "lb lbs pounds", "ounce": "oz ounces", "second": "s sec secs seconds", "minute": "min mins minutes",
    "hour": "h hr hrs hours", "day": "days", "week": "weeks wk", "month": "months", "year": "yr yrs years",
    "liter": "L l liters litre litres", "milliliter": "ml mL milliliters millilitre millilitres", "gallon": "gal gallons",
    "dollar": "dollars USD", "cent": "cents", "euro": "euros EUR €", "sterling": "GBP £", "yen": "¥ JPY",
    "rupee": "rupees Rs ₹ INR", "yuan": "RMB CNY", "newton": "N newtons", "joule": "J joules", "kilojoule": "kJ kilojoules",
    "calorie": "cal calories", "kilocalorie": "kcal kilocalories", "watt": "W watts", "kilowatt": "kW kilowatts",
    "volt": "V volts", "ampere": "A amp amps amperes", "kelvin": "K kelvins", "coulomb": "C coulombs", "farad": "F farads",
    "hertz": "Hz", "kilohertz": "kHz", "pascal": "Pa pascals", "kilopascal": "kPa", "mole": "mol moles", "ohm": "ohms",
    "celsius": "", "fahrenheit": "", "radian": "rad radians", "mph": "", "kph": "kmh kmph", "kilowatthour": "kWh",
}  # fmt: skip
_UNITS = {spelling: name for name, others in _NAMES.items() for spelling in (name, *others.split())}
_COMPOUND = {"mph": {"mile": 1, "hour": -1}, "kph": {"kilometer": 1, "hour": -1}}
_WORDED_POWERS = {"squared": 2, "square": 2, "sq": 2, "sq.": 2, "cubed": 3, "cubic": 3, "cu": 3, "cu.": 3}
_MONEY = frozenset("dollar cent euro sterling yen rupee yuan".split())
_LETTERS = frozenset(spelling for spelling in _UNITS if len(spelling) == 1)
# read as units without \text{}: no letters that stand for variables
_BARE = frozenset(
    "mm cm km ft yd mi kg mg lb lbs oz sec secs min mins hr hrs ml mL kcal kJ kW kWh kPa kHz Hz mol mph kph kmh € £ ¥ ₹".split()
) | frozenset(spelling for spelling in _UNITS if len(spelling) > 3)
_NAME = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_ATOM = re.compile(
    rf"(?:(square|sq\.?|cubic|cu\.?)\s*)?({_NAME})(?![A-Za-z])\.?(?:\s*\^\s*\{{?\s*([+-]?\d)\s*\}}?|\s+(squared|cubed)|([23])(?!\d))?"
)
_JOIN = re.compile(r"\s*(/|per(?![a-zA-Z])|\\cdot(?![a-zA-Z])|-|)\s*")
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_QUOTIENT = re.compile(rf"\s*\\frac\s*{_GROUP}\s*{_GROUP}\s*")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_GAP = r"(?:\s|~|\\[,;:! ]|\\cdot(?![a-zA-Z]))*"
_START = re.compile(rf"(?<=[\d}}).!]){_GAP}(?=\\text\{{|\\frac|[A-Za-z€£¥₹])|(?<=[a-zA-Z]){_GAP}(?=\\text\{{)")
_SPACE = re.compile(r"\\[,;:! ]|~")
_CELSIUS = re.compile(r"\^\{\\circ\}\s*(?:\\text\{\s*([CF])\s*\}|([CF]))\s*\.?$")
_CELSIUS_WORDS = re.compile(r"(?:\^\{\\circ\}|\bdegrees?)\s*(celsius|fahrenheit)", re.IGNORECASE)
_MONEY_FIRST = re.compile(
    r"(-?)\s*(?:US)?(\\\$|€|£|¥|₹|\\pounds|\\text\{\s*(?:\\?\$|€|£|¥|₹|Rs\.?|USD|EUR|GBP)\s*\}|(?:Rs\.?|USD|EUR|GBP)(?=[\s\d]))"
    r"(?:\s|\\[,;:! ]|~)*(?=[\d.\\])([^$€£¥₹]*)$"
)
_MONEY_SIGNS = {"\\$": "dollar", "$": "dollar", "\\pounds": "sterling"}

_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15, "lakh": 5, "crore": 7}
_POWERS |= {"mln": 6, "bn": 9, "万": 4, "萬": 4, "亿": 8, "億": 8, "千": 3, "百": 2, "만": 4, "억": 8}
_POWERS |= {"тысяч": 3, "тыс": 3, "миллион": 6, "млн": 6, "миллиард": 9, "млрд": 9}
_PARTS = "half halve third fourth fifth sixth seventh eighth ninth tenth".split()
_VALUES = {word: rf"10^{{{power}}}" for word, power in _POWERS.items()} | {"dozen": "12"}
_VALUES |= {word: rf"\frac{{1}}{{{max(2, n + 1)}}}" for n, word in enumerate(_PARTS)}
_VALUES |= {"hundredth": r"\frac{1}{100}", "thousandth": r"\frac{1}{1000}", "millionth": r"\frac{1}{10^{6}}"}
_VALUE = "|".join(sorted(_VALUES, key=len, reverse=True))
_LONG_VALUE = "|".join(word for word in _VALUE.split("|") if len(word) > 3 or not word.isascii())
_ENDING = r"(?:s|а|ов|и|)"
_NUMBER_WORD = re.compile(
    r"(?<=[\d}).])(?:\s|~|\\[,;:! ])*(?:"
    rf"\\text\{{\s*({_VALUE}){_ENDING}(?![A-Za-z-])\.?([^{{}}]*)\}}|({_LONG_VALUE}){_ENDING}(?![A-Za-z-]))"
)
_AND_A_HALF = re.compile(r"(?<=\d)\s*(?:\\text\{\s*and\s+(?:a|one)?[\s-]*half\s*([^{}]*)\}|and\s+(?:a|one)\s+half)")
_SUFFIX = "st|nd|rd|th"
_ORDINAL = re.compile(
    rf"(?<=\d)\s*(?:\^\s*\{{\s*\\text\{{\s*(?:{_SUFFIX})\s*\}}\s*\}}|\^\s*\\text\{{\s*(?:{_SUFFIX})\s*\}}|\\text\{{\s*\^?(?:{_SUFFIX})(?![a-zA-Z])([^{{}}]*)\}})"
)
_PLAIN_ORDINAL = re.compile(rf"(\d+)(?:({_SUFFIX})|\s*\^\s*\{{\s*({_SUFFIX})\s*\}})(?![a-zA-Z])")
_ANY_WORD = re.compile(r"\\text|\\frac\s*\{\s*[a-zA-Z]|(?<![\\A-Za-z])[^\W\d_]{2}|[€£¥₹]|(?<=\d)\s*/?[A-Za-z]|\\circ")
_POWER_INSIDE = re.compile(r"\\text\{([^{}]*)\^\{([^{}]*)\}")
# what does not count gets a mark while its words are still apart
_AFTER_VALUE = re.compile(r"(?<=[\w}).!])((?:\s|~|\\[,;:! ])*)\\text\{([^{}]*\s[^{}]*[^{}\s][^{}]*)\}")
_EMPTY = re.compile(r"\\text\{\s*\}")
_LETTER = re.compile(r"\\text\{\s*([A-Za-z])\s*\}")
# words after a number that make it another number, or no number at all
_CHANGING = frozenset(
    "squared cubed factorial plus minus times divided multiplied over root pi e i or more less fewer greater least most "
    "at than not no half quarter quarters gross mil mille cien ciento cientos docena docenas tausend hundert dutzend "
    "permille approximately about nearly almost between to two three four five six seven eight nine ten eleven twelve "
    "twenty thirty doubled tripled halved twice thrice negative reciprocal inverse is are was wrong incorrect false "
    "forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million millions billion billions "
    "trillion dozen dozens third thirds fourth fourths fifth fifths tenth tenths percent power".split()
)
_FOREIGN_NUMBER = re.compile(r"mil+i?[oóõ]\w*|mil+iard\w*|bil+i?[oóõ]\w*", re.IGNORECASE)


def money_last(text: str) -> str:
    r"""`text` as it was typed, with a currency in front of a value behind it, and "and a half" as a fraction."""
    text = _MONEY_FIRST.sub(_money_last, text, count=1)
    return _AND_A_HALF.sub(lambda match: r"\frac{1}{2}" + (rf"\text{{ {match[1]}}}" if match[1] else ""), text)


def written_out(text: str) -> str:
    r"""`text` with number words as factors, ordinals as numbers and its unit, if it is known, as one \text{@...}."""
    if not _ANY_WORD.search(text):
        return text
    while (pulled := _POWER_INSIDE.sub(r"\\text{\1}^{\2}\\text{", text)) != text:
        text = pulled
    text = _EMPTY.sub("", text)
    text = _ORDINAL.sub(lambda match: rf"\text{{{match[1]}}}" if match[1] else "", text)
    text = _PLAIN_ORDINAL.sub(_without_suffix, text)
    for _ in range(3):  # five hundred thousand million
        text = _NUMBER_WORD.sub(_factor, text)
    text = _CELSIUS.sub(lambda match: r"\text{celsius}" if "C" in match.groups() else r"\text{fahrenheit}", text)
    text = _with_known_unit(_CELSIUS_WORDS.sub(lambda match: match[1].casefold(), text))
    text = _AFTER_VALUE.sub(lambda match: match[0] if counts(match[2]) else rf"{match[1]}\text{{!{match[2]}}}", text)
    return _LETTER.sub(r" \1", text)


def _money_last(match: re.Match) -> str:
    sign = re.sub(r"\\text\{\s*|\s*\}|\.", "", match[2])
    return f"{match[1]}{match[3]}\\text{{ {_MONEY_SIGNS.get(sign) or _UNITS[sign]}}}"


def _without_suffix(match: re.Match) -> str:
    number = int(match[1][-2:])
    right = "th" if 10 < number < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return match[1] if right in (match[2], match[3]) else match[0]


def _factor(match: re.Match) -> str:
    rest = rf"\text{{ {match[2].strip()}}}" if match[2] and match[2].strip() else ""
    return rf"\cdot {_VALUES[match[1] or match[3]]}" + rest


def _with_known_unit(text: str) -> str:
    for start in _START.finditer(text):
        tail = text[start.end() :]
        upright = r"\text{" in tail
        factors = _factors(_SPACE.sub(" ", _TEXT.sub(r" \1 ", tail)).strip().removesuffix("."), upright)
        if factors:
            return text[: start.start()] + r"\text{@" + factors + "}"
    return text


def _factors(tail: str, upright: bool) -> str:
    """The canonical product of units that `tail` is; "" when it is something else. Prices keep what they are per last."""
    quotient = _QUOTIENT.fullmatch(tail)
    parts = [quotient[1], quotient[2]] if quotient else [tail]
    total: dict[str, int] = {}
    read: list[str] = []
    priced = ""
    for sign, part in zip((1, -1), parts, strict=False):
        position, inverse, part = 0, 1, part.strip()
        while True:
            atom = _ATOM.match(part, position)
            if not atom:
                return ""
            prefix, spelling, power, word, digit = atom.groups()
            read.append(spelling)
            worded = _WORDED_POWERS.get(word) or _WORDED_POWERS.get(prefix) or 1
            exponent = int(power or digit or worded)
            name = _UNITS[spelling]
            for base, own in _COMPOUND.get(name, {name: 1}).items():
                total[base] = total.get(base, 0) + sign * inverse * own * exponent
            position = atom.end()
            if position == len(part):
                break
            join = _JOIN.match(part, position)
            if join.end() == join.start():
                return ""
            if join[1] == "per" and set(total) <= _MONEY and not priced:
                priced = _joined(total)
            inverse = -1 if join[1] in ("/", "per") else inverse
            position = join.end()
    speed = quotient or "/" in tail
    bare = any(spelling in _BARE for spelling in read) or (speed and read in (["m", "s"], ["m", "h"], ["mi", "h"]))
    return (priced + "|" if priced else "") + _joined(total) if upright or bare else ""


def _joined(total: dict[str, int]) -> str:
    return ".".join(f"{name}{power}" for name, power in sorted(total.items()) if power)


def differ(first: str, second: str) -> bool:
    """Whether both are known units, degrees or percent, and not the same; any other unit, or none, contradicts nothing."""
    if first == second or not all(unit[:1] in ("@", "°", "%") and unit for unit in (first, second)):
        return False
    if "°" in (first, second):
        return not {first, second} <= {"°", "@celsius1", "@fahrenheit1", "@kelvin1", "@radian1"}
    spellings = [set(unit.removeprefix("@").split("|")) for unit in (first, second)]
    return not spellings[0] & spellings[1]


def counts(word: str) -> bool:
    """Whether the content of a \\text{...} after a value only says what is counted, so that the value stands without it."""
    if word.startswith("@"):
        return True
    words = re.findall(r"[^\W\d_]+", word)
    if not words or re.search(r"[^\w\s.,'()/-]|\d", word):
        return False
    if any(part.casefold() in _CHANGING or part in _VALUES or _FOREIGN_NUMBER.fullmatch(part) for part in words):
        return False
    return len(words) > 1 or words[0] in _UNITS or not _is_product(words[0])


def _is_product(word: str) -> bool:
    """Whether letters without a vowel, or one or two, are symbols rather than a word."""
    return word.isascii() and (len(word) < 3 or not re.search("[aeiouyAEIOUY]", word))


def as_symbol(unit: str, other: str) -> str:
    """The letter that the unit @meter1 is written with, where `other` holds that letter as a symbol; else ""."""
    name = unit.removeprefix("@").removesuffix("1")
    symbols = re.sub(r"\\[A-Za-z]+", " ", other)
    return next((letter for letter in sorted(_LETTERS) if unit[:1] == "@" and _UNITS[letter] == name and letter in symbols), "")
