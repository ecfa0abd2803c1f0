# ruff: noqa: RUF001, SIM905
r"""A common notation for answers: converts Unicode, plain text and LaTeX dialects to the LaTeX that latex2sympy reads.

Nothing is evaluated here, and every pattern is linear in the length of the text.
"""

import re
import unicodedata


# What may surround an answer, longest first
_SPACES = (r"\,", r"\;", r"\:", r"\!", r"\ ", r"\qquad", r"\quad", "~")
_BEFORE = (r"\displaystyle", r"\(", r"\[", *_SPACES, r"\$", "$", "*", "`", "#")
_DOLLARS = re.compile(r"\\?\$\s*[\d.]")
_AFTER = (r"\)", r"\]", r"\\", *_SPACES, "$", "*", "`", ".", ",", ";", "。")

# Characters without meaning: byte-order marks, joiners, soft hyphens, carriage returns
_INVISIBLE = dict.fromkeys([0xFEFF, 0x200B, 0x200C, 0x200D, 0x2060, 0xAD, 0x0D])
# Full-width forms, spaces, dashes and quotes
_ASCII = {
    **{0xFF01 + i: 0x21 + i for i in range(94)},
    **dict.fromkeys([0x3000, 0xA0, 0x2009, 0x200A, 0x202F, 0x2005, 0x2006, 0x2007, 0x2008], " "),
    **dict.fromkeys([0x2212, 0x2010, 0x2011, 0x2013, 0xFE63], "-"),
    0x00B0: r"^\circ",
    0x2019: "'",
    0x2032: "'",
    0x201C: '"',
    0x201D: '"',
}
_SYMBOLS = {
    "∞": r"\infty", "π": r"\pi", "∏": r"\prod", "∑": r"\sum", "∫": r"\int",
    "×": r"\times", "·": r"\cdot", "⋅": r"\cdot", "∙": r"\cdot", "∗": r"\cdot", "÷": r"\div", "∕": "/", "⁄": "/",
    "±": r"\pm", "∓": r"\mp", "≤": r"\le", "⩽": r"\le", "≦": r"\le", "≥": r"\ge", "⩾": r"\ge", "≧": r"\ge",
    "≠": r"\ne", "≈": r"\approx", "≅": r"\cong", "≡": r"\equiv", "∈": r"\in", "∉": r"\notin", "∪": r"\cup",
    "∩": r"\cap", "∖": r"\setminus", "∅": r"\emptyset", "⌀": r"\emptyset", "⊂": r"\subset", "⊆": r"\subseteq",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⟨": r"\langle", "⟩": r"\rangle", "⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil",
    "…": r"\ldots", "⋯": r"\cdots", "∠": r"\angle", "△": r"\triangle", "→": r"\to", "∣": "|", "‖": r"\|",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\epsilon", "ϵ": r"\epsilon",
    "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ϑ": r"\theta", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu",
    "ν": r"\nu", "ξ": r"\xi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\phi", "ϕ": r"\phi",
    "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega", "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda",
    "Π": r"\Pi", "Σ": r"\Sigma", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
}  # fmt: skip
_SYMBOL = re.compile(f"[{''.join(_SYMBOLS)}]")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+)|(?=[({]))")

# Arguments without braces: `\frac12` becomes `\frac{1}2`, then `\frac{1}{2}`
_CHOOSE = re.compile(r"\{\s*([^{}\\]{1,50}?)\s*\\choose\s*([^{}\\]{1,50}?)\s*\}")
_FIRST_ARGUMENT = re.compile(r"(\\[dtc]?frac|\\sqrt)\s*(\d)")
_SECOND_ARGUMENT = re.compile(r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)")

_LETTER = re.compile(r"\\(?:mathrm|text|operatorname|mathit|rm|textrm|mathnormal)\s*\{\s*([A-Za-z])\s*\}")
_STYLE = re.compile(
    r"\\(?:left|right)\s*\.|\\(?:displaystyle|textstyle|limits|nolimits|m?left|m?right|[bB]igg?[lrm]?)(?![A-Za-z])"
    r"|\\(?:hspace|vspace|phantom|hphantom|label|tag)\*?\s*\{[^{}]*\}"
)
_WRAPPER = re.compile(r"\\(?:boldsymbol|bm|mathbf|mathsf|mathit|underline|mathcal|pmb|emph)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|\\enspace|\\thinspace|~|\s)+")
_COMMANDS = {
    "varnothing": r"\emptyset ", "leqslant": r"\le ", "leq": r"\le ", "geqslant": r"\ge ", "geq": r"\ge ",
    "neq": r"\ne ", "lt": "<", "gt": ">", "lg": r"\log_{10} ", "tg": r"\tan ", "ctg": r"\cot ", "arctg": r"\arctan ",
    "dots": r"\ldots ", "dotsc": r"\ldots ", "degree": r"^\circ ", "textdegree": r"^\circ ", "lbrace": r"\{",
    "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "bmod": r"\bmod ", "cdotp": r"\cdot ", "ast": r"\cdot ", "land": r"\text{ and }", "lor": r"\text{ or }",
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "infinity": r"\infty ", "lparen": "(", "rparen": ")",
    "imath": "i ", "minus": "-", "smallsetminus": r"\setminus ", "backslash": r"\setminus ", "longrightarrow": r"\to ",
    "approxeq": r"\approx ", "thickapprox": r"\approx ", "simeq": r"\approx ", "thinspace": " ", "enspace": " ",
}  # fmt: skip
_COMMAND = re.compile(r"\\(" + "|".join(sorted(_COMMANDS, key=len, reverse=True)) + r")(?![A-Za-z])")
# Names that plain text has without a backslash
_FUNCTIONS = (
    "arcsin arccos arctan arcsec arccsc arccot sinh cosh tanh sin cos tan cot sec csc ln log exp sqrt cbrt abs "
    "floor ceil gcd lcm max min"
).split()
_LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega pi infty"
).split()
_NAME = re.compile(r"(?<![A-Za-z\\_])([A-Za-z]+)(?![A-Za-z])")
_INFINITY = {"infinity", "inf", "Infinity", "oo"}
_CALL = re.compile(r"(\\sqrt(?:\[[^\[\]]*\])?|\\cbrt|\\exp|\\abs|\\floor|\\ceil)\s*\(")
_GROUPED = {r"\cbrt": r"\sqrt[3]{", r"\exp": "e^{", r"\abs": "{|", r"\floor": r"{\lfloor ", r"\ceil": r"{\lceil "}
_CLOSED = {r"\abs": "|}", r"\floor": r"\rfloor }", r"\ceil": r"\rceil }"}
_PLAIN = re.compile(r"<=|>=|!=|=<|==|\*\*|\*|≤")
_PLAIN_TO = {"<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "==": "=", "**": "^", "*": r"\cdot "}
_POWER = re.compile(r"\^\s*([+-]?\d{2,}|[+-]\d|\()")
_EXPONENT_NUMBER = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?)(\d+)")
# 0.1\overline{6}, 0.\dot{1}4\dot{2}, 0.1(6), 0.333...
_DOT = r"(?:dot|overset\s*\{\s*\\?(?:cdot|dot|\.)\s*\})"
_REPEATING = re.compile(
    rf"(?<![\d.])(\d+)\.(\d*)(?:\\(?:overline|bar|{_DOT})\s*(?:\{{\s*(\d+)\s*\}}|(\d))"
    rf"(?:(\d*)\\{_DOT}\s*(?:\{{\s*(\d)\s*\}}|(\d)))?|\((\d+)\))(?!\d)"
)
_ENDLESS = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{3,60})\s*(?:\.{3}|\\[lc]?dots(?![A-Za-z]))")
_BLOCK = re.compile(r"(\d*?)(\d+?)\2{2,}|(\d*?)(\d{2,}?)\4+")
_MIXED = re.compile(
    r"(?<![\d.,/^_\\A-Za-z)}])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"
    r"|(?<![\d.,/^_\\A-Za-z)}])(\d+)(?:\s|\\ )+(\d+)\s*/\s*(\d+)(?![\d.])"
)
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:\{,\}|,\\!|\\[,;:! ])\d{3})+)(?!\d)")
# Thousands separated by spaces in plain text: groups of three digits, none of which is a mixed number's numerator
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,^_\\}])(?<!\d )([1-9]\d{0,2})((?:(?:\s|~)\d{3})+)(?!\d|[ ~]\d|\s*/)")
_DECIMAL_COMMA = re.compile(r"(\d)\{,\}(?=\d)")
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\))\s*(?:\^\s*\{\s*\\circ\s*\}|\^\s*\\circ)")


def ascii_digits(text: str) -> str:
    """Converts digits of all scripts, full-width forms and the degree sign to ASCII. Drops invisible characters."""
    if text.isascii():
        return text.replace("\r", "") if "\r" in text else text
    text = text.translate(_INVISIBLE).translate(_ASCII)
    return re.sub(r"[^\W\d_]|(\d)", lambda m: str(int(m[1])) if m[1] else m[0], text)


def trim(answer: str, currency: bool = False) -> str:
    """Strips the marks around an answer, and converts characters with an ASCII equivalent.

    `currency`: keep a dollar sign before a number."""
    answer = ascii_digits(answer).strip()
    while True:
        before = next((mark for mark in _BEFORE if answer.startswith(mark)), "")
        if currency and _DOLLARS.match(answer) and not (before == "$" and answer.count("$") > 1):
            before = ""
        after = next((mark for mark in _AFTER if answer[len(before) :].endswith(mark)), "")
        # Keep a currency sign, an empty delimiter and an ellipsis
        if (after == "$" and answer.endswith(r"\$")) or (after == "." and answer.endswith((r"\right.", ".."))):
            after = ""
        if before in (r"\(", r"\[") and answer.endswith(r"\right" + after[1:]):
            after = ""
        if not before and not after:
            return answer
        answer = answer[len(before) : len(answer) - len(after)].strip()


def unicode_to_latex(text: str) -> str:
    """Converts Unicode mathematics to LaTeX: roots, fractions, exponents, relations, Greek and math alphabets."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)
    text = _SYMBOL.sub(lambda m: _SYMBOLS[m[0]] + " ", text)
    text = "".join(_compatible(character) for character in text)
    text = _ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)
    return text


def _compatible(character: str) -> str:
    """Converts a one-character fraction or a letter of a mathematical alphabet to ASCII."""
    if character.isascii():
        return character
    plain = unicodedata.normalize("NFKC", character)
    if "\u2044" in plain and unicodedata.category(character) == "No":
        numerator, denominator = plain.split("\u2044")
        return rf"\frac{{{numerator or 1}}}{{{denominator}}}" if denominator else character
    return plain if "\U0001d400" <= character <= "\U0001d7ff" else _SYMBOLS.get(plain, character)


def latex(text: str) -> str:
    """Converts a [`trim`]med answer to the LaTeX that the comparison reads."""
    text = unicode_to_latex(text)
    text = _STYLE.sub(" ", text)
    for _ in range(3):  # may be nested
        text = _WRAPPER.sub(r"{\1}", _LETTER.sub(r" \1 ", text))
    text = _COMMAND.sub(lambda m: _COMMANDS[m[1]], text)
    text = _THOUSANDS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _SPACED_THOUSANDS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _DECIMAL_COMMA.sub(r"\1.", text)
    text = _SPACE.sub(" ", text).strip()
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _SECOND_ARGUMENT.sub(r"\1{\2}", _FIRST_ARGUMENT.sub(r"\1{\2}", text))
    text = _PLAIN.sub(lambda m: _PLAIN_TO[m[0]], text)
    text = _exponent_number(text)
    text = _REPEATING.sub(_repeating, text)
    text = _ENDLESS.sub(_endless, text)
    text = _MIXED.sub(_mixed, text)
    text = _NAME.sub(_name, text)
    text = _calls(text)
    text = _powers(text)
    return _trigonometric_degrees(text)


def _exponent_number(text: str) -> str:
    """Converts a number as programs and JSON write it: 1e-07, 2.04E2. `2e-3` may mean 2e minus 3, and is kept."""
    match = _EXPONENT_NUMBER.fullmatch(text)
    if match is None:
        return text
    sign, number, exponent_sign, exponent = match.groups()
    if exponent_sign and len(exponent) < 2 and "." not in number and number != "1":
        return text
    return rf"{sign}{number}\times 10^{{{exponent_sign.replace('+', '')}{exponent.lstrip('0') or '0'}}}"


def _repeating(match: re.Match) -> str:
    whole, fixed, first, short, between, last, other, round_ = match.groups()
    start = first or short
    period = round_ or (start + (between or "") + (last or other or ""))
    return _periodic(whole, fixed, period)


def _periodic(whole: str, fixed: str, period: str) -> str:
    denominator = (10 ** len(period) - 1) * 10 ** len(fixed)
    numerator = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _endless(match: re.Match) -> str:
    """0.333... if the last block appears three times, or twice for a block of two or more digits."""
    block = _BLOCK.fullmatch(match[2])
    if block is None:
        return match[0]
    fixed, period = (block[1], block[2]) if block[2] else (block[3], block[4])
    return _periodic(match[1], fixed, period)


def _mixed(match: re.Match) -> str:
    whole, numerator, denominator = match.groups()[:3] if match[1] else match.groups()[3:]
    if int(denominator) == 0:
        return match[0]
    return rf"\frac{{{int(whole) * int(denominator) + int(numerator)}}}{{{denominator}}}"


def _name(match: re.Match) -> str:
    name = match[1]
    if name in _INFINITY:
        return r"\infty "
    return rf"\{name} " if name in _FUNCTIONS or name in _LETTERS else name


def closing(text: str, start: int, pair: str = "()") -> int:
    """Position where the bracket that opens at `start` closes. -1 if it does not."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == pair[0]) - (text[position] == pair[1])
        if depth == 0:
            return position
    return -1


def _calls(text: str) -> str:
    """Converts calls in plain text, such as sqrt(3) and abs(x), to LaTeX with braces. At most 50, as each is a scan."""
    for _ in range(50):
        match = _CALL.search(text)
        if match is None:
            break
        end = closing(text, match.end() - 1)
        if end < 0:
            break
        name = match[1]
        start, finish = _GROUPED.get(name, name + "{"), _CLOSED.get(name, "}")
        text = f"{text[: match.start()]}{start}{text[match.end() : end]}{finish}{text[end + 1 :]}"
    return text


def _powers(text: str) -> str:
    """Puts braces around exponents in plain text: x^10, x^-1, x^(1/2)."""
    position = 0
    for _ in range(100):
        match = _POWER.search(text, position)
        if match is None:
            break
        if match[1] == "(":
            end = closing(text, match.end() - 1)
            if end < 0:
                break
            inner = text[match.end() : end]
            text = f"{text[: match.start()]}^{{{inner}}}{text[end + 1 :]}"
        else:
            text = f"{text[: match.start()]}^{{{match[1]}}}{text[match.end() :]}"
        position = match.start() + 2
    return text


def _trigonometric_degrees(text: str) -> str:
    r"""Converts degrees to radians in an expression with trigonometric functions: `\sin 70^\circ`."""
    if not _TRIG.search(text):
        return text
    return _DEGREES.sub(
        lambda m: rf"{m[1]}\cdot \frac{{\pi}}{{180}}" if m[1] == ")" else rf"({m[1]}\cdot\frac{{\pi}}{{180}})", text
    )
