# ruff: noqa: SIM905
r"""Kinds of answers that need no algebra: words, option letters, clock times, numbers in another base, units.

Each rule of [`same`] returns right, wrong, or `None` if the answers are not of its kind.
"""

import re

from .notation import ascii_digits, unicode_to_latex


_TEXT = (
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|md|up)?|math(?:rm|bf|it|sf|tt|normal)"
    r"|mbox|hbox|operatorname|rm|emph|underline|boldsymbol|bm)"
)
_WRAP = re.compile(_TEXT + r"\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~|\s)+")
# Outer punctuation. Excludes a point before digits, a factorial and a prime, which carry meaning
_BEFORE = ' ,;:?"`*$#'
_AFTER = ' .,;:?"`*$'

_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}-\d{1,2}-\d{4}|\d{1,2}/\d{1,2}/\d{4}|\d{4}/\d{1,2}/\d{1,2}")
_LITERAL = re.compile(_DATE.pattern + r"|v?\d+(?:\.\d+){2,}|(?:\+?\d{1,3}-)?(?:\(?\d{3}\)?-?)?\d{3}-\d{4}")
_MOLECULE = re.compile(r"\d*(?:[A-Z][a-z]?\d*|\((?:[A-Z][a-z]?\d*)+\)\d*)+(?:\^\d*[+-])?")
_ELEMENTS = frozenset(
    (
        "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
        "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
        "Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu"
    ).split()
)
_PHRASE_SPACE = re.compile(r"(?<=\d)(?=r\s*\d)|(?<=\dr)(?=\d)|\s+", re.IGNORECASE)
_BETWEEN = re.compile(r"(?<![a-z\\_^])\d\s+((?:[^\W\d_]+[\s-]+){1,4})(?=[-+]?\d)")
# Words between numbers that are part of mathematics or of a list
_PHRASE_WORDS = frozenset(
    (
        "and or if for mod modulo times plus minus over choose divided multiplied by x e i pi sqrt cbrt sin cos tan cot "
        "sec csc log ln lg exp"
    ).split()
)

# Option letters
_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?:?\s+)?"
    r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Z])\s*\]|([A-Z])(?![A-Za-z0-9_^'(\\]))\s*",
    re.IGNORECASE,
)
_WHY = re.compile(r"[\s,;.:-]*(?:because|since|due to|is (?:the )?(?:correct|right|true))\b", re.IGNORECASE)
_DENIED = re.compile(r"[\s,;.:-]*(?:(?:is|was)\s+)?(?:not|wrong|false|incorrect|isn't|wasn't|cannot)\b", re.IGNORECASE)
_ANOTHER = re.compile(
    r"\(\s*[A-Z]\s*\)|\[\s*[A-Z]\s*\]|(?:^|[\s,;/|&])[A-Z]\s*[).:,/;]"
    r"|(?:\b(?:or|and|not)|[/,;&|+])\s*\(?[A-Z](?![A-Za-z0-9])"
    r"|^[\s,;/&|-]*[A-Z]\s*$"
)
_RUN = re.compile(r"[A-J]{2,10}")
_LISTED = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|;|&|\band\b|\s)\s*(?:\band\b\s*)?\(?[A-J]\)?){1,9}")

_CLOCK = re.compile(
    r"(?:at\s+)?([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?|(noon|midnight|hours|h|o'clock))?",
    re.IGNORECASE,
)
_BASES = {
    name: base
    for base, name in enumerate(
        ("two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split(), 2
    )
} | {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16, "bin": 2}
_BASE = re.compile(r"\(?\s*([0-9A-Fa-f]+)\s*\)?_(?:\{?\s*(\d{1,2})\s*\}?|\{?\s*\(?([a-z]+)\)?\s*\}?)")
_IN_BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?\s*\(?(?:in\s)?base[\s-](?:(\d{1,2})|([a-z]+))\)?", re.IGNORECASE)

_FUNCTION_NAMES = frozenset(
    (
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth log ln lg exp sqrt "
        "cbrt abs floor ceil gcd lcm max min mod det inf infty pi theta alpha beta gamma delta epsilon lambda mu "
        "rho sigma phi psi omega tau frac infinity Infinity oo cm mm km kg if or and"
    ).split()
)
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|_\s*\{[^{}]*\}|\\[A-Za-z]+|\\.")
_LETTERS = re.compile(r"[^\W\d_]+\d*")
_PRODUCT = re.compile(r"[b-df-hj-np-tv-z]{2,4}|a?b?c?")

_UNIT_WORDS = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "g": "g gram grams gm", "kg": "kg kilogram kilograms kgs", "mg": "mg milligram milligrams",
    "lb": "lb lbs pound pounds", "oz": "oz ounce ounces", "t": "t ton tons tonne tonnes",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "year years yr yrs",
    "l": "l L liter liters litre litres", "ml": "ml mL milliliter milliliters millilitre millilitres",
    "gal": "gal gallon gallons", "usd": "dollar dollars usd USD", "cent": "cent cents", "eur": "euro euros eur EUR",
    "degree": "degree degrees deg", "rad": "rad radian radians", "hz": "hz Hz hertz", "n": "N newton newtons",
    "j": "J joule joules", "w": "W watt watts", "v": "V volt volts", "pa": "Pa pascal pascals", "k": "K kelvin",
    "celsius": "C celsius Celsius", "fahrenheit": "F fahrenheit Fahrenheit", "mph": "mph",
    "khz": "kHz kilohertz", "mhz": "MHz megahertz", "ghz": "GHz gigahertz", "rpm": "rpm",
    "mol": "mol mole moles", "mmol": "mmol millimole millimoles", "bit": "bit bits", "byte": "byte bytes",
    "kilobyte": "KB kB kilobyte kilobytes", "megabyte": "MB megabyte megabytes", "gigabyte": "GB gigabyte gigabytes",
    "kilobit": "kb kbit kilobit kilobits", "megabit": "Mb Mbit megabit megabits",
    "gigabit": "Gb Gbit gigabit gigabits", "jpy": "yen JPY", "gbp": "GBP", "kj": "kJ kilojoule kilojoules",
    "cal": "cal calorie calories", "kcal": "kcal kilocalorie kilocalories", "kw": "kW kilowatt kilowatts",
    "kwh": "kWh", "kn": "kN kilonewton kilonewtons", "mv": "mV millivolt millivolts", "kv": "kV kilovolt kilovolts",
    "ampere": "amp amps ampere amperes", "ma": "mA milliampere milliamperes", "ohm": "ohm ohms",
    "kpa": "kPa kilopascal kilopascals", "atm": "atm", "nm": "nm nanometer nanometers nanometre nanometres",
    "dm": "dm decimeter decimeters decimetre decimetres", "ms": "ms millisecond milliseconds",
    "microsecond": "microsecond microseconds", "ns": "ns nanosecond nanoseconds", "hectare": "ha hectare hectares",
    "acre": "acre acres", "decade": "decade decades", "century": "century centuries",
    "quart": "qt quart quarts", "pint": "pt pint pints", "cup": "cup cups",
    "kmh": "kmh kph", "rs": "rs Rs rupee rupees", "percent": "percent",
}  # fmt: skip
_UNIT = {word: unit for unit, words in _UNIT_WORDS.items() for word in words.split()}
_FILLERS = frozenset("of the a an in is are total altogether each per".split())
_PLURAL = re.compile(r"(?<=[a-z]{2})ies$|(s|x|z|ch|sh)es$|(?<=[^s])s$")
_IRREGULAR = {"children": "child", "men": "man", "women": "woman", "feet": "foot", "mice": "mouse", "people": "person"}
_PER = re.compile(r"\s*(?:/|\bper\b)\s*")
_SQUARE = re.compile(r"^(?:(square|sq\.?)|(cubic|cu\.?))\s+")
_TAIL = re.compile(
    r"(?P<value>.*(?:[\d})\]!%]|\\(?:pi|circ)|(?<![A-Za-z])[A-Za-z](?=[\s\\~])))(?P<gap>\s*)"
    r"(?:(?:\\[ ,;:!]|~|\\quad)\s*)*"
    r"(?:(?:\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{(?P<wrapped>[^{}]*)\}"
    r"(?P<more>[^{}+=*<>()]{0,40}?(?:\\(?:text|mathrm)\s*\{[^{}]*\})?)?)"
    r"|(?P<bare>[A-Za-z]+(?:[ /][A-Za-z]+){0,3}))"
    r"\s*(?:\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<sign>[²³]))?\s*\.?",
    re.DOTALL,
)
# Words after a number that are not units
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE_WORD = re.compile("|".join(_SCALES), re.IGNORECASE)
_SCALED = re.compile(rf"((?:\\?\$|[€£¥₹])?\s*[-+]?[\d.,]+)\s*({'|'.join(_SCALES)})\b(.*)", re.IGNORECASE)
_NO_UNITS = frozenset(
    "squared cubed factorial times minus plus negative mod more less fewer greater or half halves third thirds quarter "
    "quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth "
    "hundredths thousandth thousandths dozen hundred thousand million billion trillion".split()
)
_PLAIN_NUMBER = re.compile(
    r"[-+]?[\d.,]+(?:\\%|%|\^\s*\{?\s*\\circ\s*\}?)?|[-+]?\\[dt]?frac\s*\{\d+\}\s*\{\d+\}|[-+]?\d+\s*/\s*\d+"
)
_CURRENCY = {
    "\\$": "usd",
    "$": "usd",
    "€": "eur",
    "£": "gbp",
    "¥": "jpy",
    "₹": "rs",
    r"\pounds": "gbp",
    r"\euro": "eur",
}


def unwrapped(text: str) -> str:
    r"""Removes `\text{...}` and similar commands, and collapses spaces."""
    text = text.replace("{:}", ":").replace("{,}", ",")
    for _ in range(4):
        text, count = _WRAP.subn(r" \1 ", text)
        if not count:
            break
    return _SPACE.sub(" ", text).strip()


def key(text: str) -> str:
    """Key that is equal for equal text. Folds spaces, outer punctuation and text commands, and nothing else."""
    text = unwrapped(unicode_to_latex(ascii_digits(text))).lstrip(_BEFORE).rstrip(_AFTER)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-z])", "", text)
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    # A space counts only between two words or two numbers
    text = re.sub(r" (?=[^\w\\]|_)|(?<=[^\w]) ", "", text)
    return text


def same(answer: str, gold: str) -> bool | None:
    """True or False if this can be decided without algebra, else `None`. Both are [`trim`]med."""
    gold_key, answer_key = key(gold), key(answer)
    if gold_key and answer_key == gold_key:
        return True
    for rule in (_constant, _literal, _options, _formula, _clock, _base, _word_set, _phrase):
        result = rule(answer, gold)
        if result is not None:
            return result
    # Case counts in mathematics (R is not r), but not in text
    return bool(gold_key) and answer_key.casefold() == gold_key.casefold() if is_text(gold) else None


def _constant(answer: str, gold: str) -> bool | None:
    """The imaginary unit `i` is not the option `I`."""
    return False if (unwrapped(answer), unwrapped(gold)) == ("i", "I") else None


def _literal(answer: str, gold: str) -> bool | None:
    """Dates, telephone numbers, addresses and versions look like arithmetic, but are compared as text."""
    one, other = (unwrapped(part).strip(_BEFORE).rstrip(".") for part in (answer, gold))
    one, other = (re.sub(r"[{}]", "", part) for part in (one, other))
    if not _LITERAL.fullmatch(one) and not _LITERAL.fullmatch(other):
        return None
    if _DATE.fullmatch(one) and _DATE.fullmatch(other):
        one, other = (re.sub(r"(?<!\d)0+(?=\d)", "", part) for part in (one, other))
    return one == other


def _formula(answer: str, gold: str) -> bool | None:
    r"""Chemical formulas: `H₂O`, `H_2O` and `\ce{H2O}` are equal, `NO2` and `N2O` are not. Case counts."""
    one, other = (_molecule(part) for part in (answer, gold))
    if other.casefold() in ("no", "yes"):
        return None
    if _is_formula(other) or (_is_formula(one) and len(other) == 2 and other in _ELEMENTS):
        return one == other
    return None


def _molecule(text: str) -> str:
    text = unwrapped(unicode_to_latex(re.sub(r"\\ce\s*(?=\{)", r"\\text", text)))
    return re.sub(r"\\(?:left|right)(?![A-Za-z])|[\s_{}$]", "", text)


def _is_formula(text: str) -> bool:
    """At least two capitals, and either only elements or counts, which no product has after its letters."""
    if len(text) > 100 or not _MOLECULE.fullmatch(text) or len(re.findall("[A-Z]", text)) < 2:
        return False
    return bool(re.search(r"[A-Za-z]\d", text)) or all(
        symbol in _ELEMENTS for symbol in re.findall("[A-Z][a-z]?", text)
    )


def _phrase(answer: str, gold: str) -> bool | None:
    """Words between numbers, as in `5 out of 8` and `3 R 2`, are not a product."""
    one, other = (_PHRASE_SPACE.sub(" ", unwrapped(part)).casefold() for part in (answer, gold))
    inside = _BETWEEN.findall(other)
    if not any(_PHRASE_WORDS.isdisjoint(words.split()) for words in inside):
        return None
    one, other = (re.sub(r"\bremainder(?: of)?\b", "r", part) for part in (one, other))
    one, other = (_LETTERS.sub(lambda m: _UNIT.get(m[0], m[0]), part) for part in (one, other))
    return key(one) == key(other)


def _options(answer: str, gold: str) -> bool | None:
    plain, given = unwrapped(gold).strip(" .,:$*"), unwrapped(ascii_digits(answer)).strip(" .,:;$*")
    given = re.sub(r"\{\s*([A-J]?)\s*\}", r"\1", given)
    single = re.fullmatch(r"\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]|([A-Z])\)?", plain)
    if single:
        letter = single[1] or single[2] or single[3]
        if letter > "J":
            return None
        return option(given) == letter
    if _RUN.fullmatch(plain) and len(set(plain)) == len(plain):
        listed = _listed(given)
        if listed is None:
            return False  # without falling back to `key`
        return sorted(listed) == sorted(plain) if list(plain) == sorted(plain) else listed == list(plain)
    golds = _listed(plain)
    if golds is not None:
        listed = list(given) if _RUN.fullmatch(given) else _listed(given)
        return listed is not None and set(listed) == set(golds)
    return None


_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")


def _word_set(answer: str, gold: str) -> bool | None:
    r"""Compares a solution `\{red, blue\}` with words in any order. Without braces, order counts."""

    def words(text: str) -> set[str]:
        inner = _SET.fullmatch(text)
        parts = re.split(r",|;|\band\b", inner[1] if inner else text)
        return {key(part).casefold() for part in parts if key(part)}

    gold, answer = unwrapped(gold).strip(), unwrapped(answer).strip()
    if not _SET.fullmatch(gold) or not words(gold) or not all(map(_WORDS.fullmatch, words(gold))):
        return None
    return words(answer) == words(gold)


def _listed(text: str) -> list[str] | None:
    """Letters in a list of options such as `A, B and D`."""
    inner = text.replace("\\{", "").replace("\\}", "").strip(" {}")
    if inner.startswith("(") and inner.endswith(")") and inner.count("(") == 1:
        inner = inner[1:-1]
    return re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", inner) if _LISTED.fullmatch(inner.strip()) else None


def option(text: str) -> str | None:
    """The one option that an answer names, perhaps with text or a reason: `(B) 4`, `B: blue`, `B because C is wrong`.

    `None` if it names none or several: `D/H`, `A or B`, `(A) 3 (B) 4`.
    """
    match = _LABEL.match(text)
    if match is None:
        return None
    bracketed = match[1] or match[2]
    letter = (bracketed or match[3]).upper()
    rest = text[match.end() :]
    if not rest.strip(" .):"):
        return letter
    if match[3] and not match[3].isupper():
        return None
    if _DENIED.match(rest):
        return None
    if _WHY.match(rest):
        return letter
    if not bracketed and not re.match(r"\s*[.:)]|\s+-|\s*-\s|\s*,\s+\D", rest):
        return None
    return None if _ANOTHER.search(re.sub(r"^\s*[.:)-]+", " ", rest)) else letter


_LABELLED = re.compile(r"(?:\(\s*[A-J]\s*\)|[A-J]\s*[:)]|[A-J]\.\s)\s*(?=\S)")
_SAID = re.compile(
    r"(?:(?:so|thus|hence|therefore)\s*,?\s*)?(?:the\s+)?(?:final\s+)?answer\s*(?:is|=|:)+\s*", re.IGNORECASE
)


def without_label(text: str) -> str | None:
    r"""Removes an option's letter or words in front of an answer: `\textbf{(B)} 204`, `the answer is 204`."""
    plain = unwrapped(text)
    match = _LABELLED.match(plain) or _SAID.match(plain)
    if match is None or _ANOTHER.search(plain[match.end() :]):
        return None
    rest = plain[match.end() :].strip()
    return rest or None


def _clock(answer: str, gold: str) -> bool | None:
    want = clock(gold)
    if want is None:
        return None
    got = clock(answer)
    if got is None:
        return False
    if want[1] is None or got[1] == want[1]:
        return got[0] == want[0] or (want[1] is not None and _minutes(got) == _minutes(want))
    # An answer may give an afternoon time in 24 hours
    return got[1] is None and got[0][0] > 12 and _minutes(got) == _minutes(want)


def clock(text: str) -> tuple[tuple[int, int, int], str | None] | None:
    """Hours, minutes and seconds as written, and "a" or "p" (am, pm)."""
    match = _CLOCK.fullmatch(unwrapped(ascii_digits(text)).strip(" $*"))
    if match is None:
        return None
    return (int(match[1]), int(match[2]), int(match[3] or 0)), match[4].lower() if match[4] else None


def _minutes(time: tuple[tuple[int, int, int], str | None]) -> tuple[int, int, int]:
    (hour, minute, second), half = time
    return (hour % 12 + 12 * (half == "p") if half else hour, minute, second)


def in_base(text: str) -> tuple[str, int] | None:
    r"""Digits and base of `1011_2`, `(1A3)_{16}`, `1011_{\text{two}}` or `1011 (base 2)`."""
    plain = unwrapped(text).replace(r"\(", "").replace(r"\)", "").strip(" $*.")
    plain = re.sub(r"\{ ?([^{}]*?) ?\}", r"{\1}", plain).replace(" _", "_").replace(r"\_", "_")
    match = _BASE.fullmatch(plain) or _IN_BASE.fullmatch(plain)
    if match is None:
        return None
    base = int(match[2]) if match[2] else _BASES.get(match[3].lower(), 0)
    digits = match[1].upper()
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in digits):
        return None
    return digits.lstrip("0") or "0", base


def _base(answer: str, gold: str) -> bool | None:
    want, got = in_base(gold), in_base(answer)
    if want is None and got is None:
        return None
    if want is not None and want[1] != 10:
        if got is None:
            plain = unwrapped(answer).strip(" $*.").upper()
            return bool(re.fullmatch("[0-9A-F]+", plain)) and (plain.lstrip("0") or "0") == want[0]
        return got == want
    if got is not None and got[1] != 10:
        return False  # not in the base that was asked for
    return None


def scaled(text: str) -> str:
    """Converts `5 million` to a power of ten."""
    if not _SCALE_WORD.search(text):
        return text
    match = _SCALED.fullmatch(unwrapped(text))
    return rf"{match[1]}\cdot 10^{{{_SCALES[match[2].lower()]}}}{match[3]}" if match else text


def without_base_ten(text: str) -> str:
    """Removes the base of a number if it is ten."""
    found = in_base(text) if "_" in text or "base" in text else None
    return found[0] if found is not None and found[1] == 10 else text


def is_text(gold: str) -> bool:
    """True if a solution is words and not a product of variables: `no`, `the sequence is bounded`, `ACB`."""
    value, _ = without_unit(gold)
    plain = re.sub(_TEXT + r"\s*\{\s*(?:and|or|,|if|for|mod)\s*\}", ",", value)
    for match in _WRAP.finditer(plain):
        if re.search(r"[^\W\d_]{2,}", match[1]) and match[1].strip().lower() not in ("and", "or"):
            return True
    plain = _COMMAND.sub(" ", unwrapped(plain))
    words = [
        word for word in _LETTERS.findall(plain) if len(word) >= 2 and word.rstrip("0123456789") not in _FUNCTION_NAMES
    ]
    words = [word for word in words if not (len(word) == 2 and word[1].isdigit())]
    if not words:
        return False
    if re.search(r"[\d+*/^=<>|()\[\]]", re.sub(r"[^\W\d_]+\d+", "", plain)):
        # In a formula, adjacent letters are a product
        return any(len(re.sub(r"\d", "", word)) > 4 or not word.isascii() for word in words)
    return not all(_PRODUCT.fullmatch(word) for word in words)


def without_unit(text: str) -> tuple[str, str | None]:
    r"""Splits a value from its unit, in canonical form: `35 \text{ cm}` is `35` and `cm`, `\$18` is `18` and `usd`."""
    text = text.strip()
    for sign, unit in _CURRENCY.items():
        if text.startswith(sign) and len(text) > len(sign):
            value, words = without_unit(text[len(sign) :])
            return value, f"?{unit} {words[1:]}" if words and words.startswith("?") else unit
        if text.endswith(sign) and len(text) > len(sign):
            return text[: -len(sign)].strip(), unit
    match = _TAIL.fullmatch(text) if len(text) <= 300 else None
    if match is None:
        return _without_degrees(text)
    value = match["value"].strip()
    if match["bare"] is not None:
        bare = match["bare"]
        known = all(word in _UNIT for word in re.split(r"[ /]", bare) if word not in ("per", "square", "cubic", "sq"))
        words = list(re.split(r"[ /]", bare))
        if any(word in _NO_UNITS or (word in _FUNCTION_NAMES and word not in _UNIT) for word in words) or words[
            0
        ].lower() in (
            "or",
            "and",
            "e",
            "i",
        ):
            return text, None
        # Letters after a number may be a product (5m, 2xy). A word is not, nor is a unit after a space
        number = _PLAIN_NUMBER.fullmatch(value)
        if len(bare) == 1 and not (known and match["gap"] and number):
            return text, None
        if not known and not (number and len(max(words, key=len)) >= 3):
            return text, None
        if known and len(bare) <= 2 and not number and not match["gap"]:
            return text, None
        unit = bare
    else:
        unit = match["wrapped"] + (unwrapped(match["more"]) if match["more"] else "")
        plain = unit.strip()
        if re.search(r"[\d=<>+]", unit) or not re.search(r"[^\W\d_]", unit) or plain.lower() in ("and", "or"):
            return text, None
        if _NO_UNITS.intersection(plain.lower().split()):
            return text, None
        if len(plain) == 1 and plain.isascii() and plain not in _UNIT:
            return text, None
    value = re.sub(r"(?:\\[ ,;:!]|~|\\q?quad|\s)+$", "", value)
    power = match["power"] or {"²": "2", "³": "3"}.get(match["sign"] or "")
    return _without_degrees(value)[0], _unit(unit, power)


_ANGLE_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def _without_degrees(text: str) -> tuple[str, str | None]:
    if _ANGLE_FUNCTION.search(text):
        return text, None
    stripped = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$", "", text)
    return (stripped, "degree") if stripped != text and stripped else (text, None)


def _unit(words: str, power: str | None) -> str:
    words = _SPACE.sub(" ", words).strip(" .-")
    exponent = power or ""
    prefix = _SQUARE.match(words)
    if prefix:
        exponent = "2" if prefix[1] else "3"
        words = words[prefix.end() :]
    parts = []
    for part in _PER.split(words):
        inner = re.fullmatch(r"([A-Za-z]+)\s*\^?\{?([23])\}?", part)
        unit = _UNIT.get(part) or _UNIT.get(part.lower())
        if inner and inner[1] in _UNIT:
            unit = _UNIT[inner[1]] + inner[2]
        parts.append(unit or "?" + part.lower())
    return "/".join(parts) + (exponent if exponent != "1" else "")


def units_differ(one: str | None, other: str | None, strict: bool = False) -> bool:
    """True if both units are known and differ (35 cm, 35 m). `strict`: also if other words differ (3 cats, 3 dogs)."""
    if strict and one and other:
        return one.rstrip("s") != other.rstrip("s")
    if one is None or other is None or one == other:
        return False
    if "?" not in one + other:
        return True
    first, second = _qualifiers(one), _qualifiers(other)
    return any(a and b and not (a <= b or b <= a) for a, b in zip(first, second, strict=True))


def _qualifiers(unit: str) -> tuple[set[str], set[str]]:
    """The units and the other words, in the singular, of a phrase such as `?km north`."""
    units, others = set(), set()
    words = [word for word in re.findall(r"[^\W\d_]+|\d", unit) if word not in _FILLERS]
    for word in words:
        if word in _UNIT or word in _UNIT_WORDS:
            units.add(_UNIT.get(word, word))
        else:
            others.add(_IRREGULAR.get(word) or _PLURAL.sub(lambda m: "y" if m[0] == "ies" else m[1] or "", word))
    return units, others
