r"""Equality of mathematics. Lists, sets, tuples, intervals, matrices and relations are compared by parts, with sympy.

Exact expressions must be exactly equal; being close is not enough. A decimal is the number it writes. With at least
`DIGITS` significant digits, it also equals an exact number or a longer decimal that rounds or truncates to it.

Huge powers and factorials are not evaluated ([`TooLarge`]): such an answer is right only if written like the solution.
"""

import functools
import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify.grader import should_treat_as_complex

from . import text as texts
from .notation import closing, latex


DIGITS = 6
_MAX_BITS = 2e6
_MAX_PARTS = 200
_WHOLE = (sympy.factorial, sympy.binomial, sympy.factorial2)
_MAX_LENGTH = 2_000
_MAX_DEPTH = 60
_POINTS = 9  # three points positive, three of both signs, three of both signs and far from zero
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")

_NUMBER = re.compile(
    r"([+-]?)\s*(?:(\d+|[1-9]\d{0,2}(?:,\d{3})+)(?:\.(\d*))?|\.(\d+))"
    r"\s*(?:(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d)))?"
    r"\s*(\\%|%|\\text\s*\{\s*(?:percent|\\?%)\s*\}|percent)?"
)
_SIMPLE_FRACTION = re.compile(r"([+-]?)\s*(?:\\frac\s*\{\s*([+-]?\d+)\s*\}\s*\{\s*([+-]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
# Adjacent numbers are not a product, but a base, exponent or limit ends with its first token
_RUN_OF_NUMBERS = re.compile(r"(?<![\d.^_])\d[\d.]*\s+(?=\d)")
_CAPITAL_I = re.compile(r"(\\[A-Za-z]+)|I")
_AND = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:,\s*)?(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?\s*|\s*,\s*,\s*"
)
_OR = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\vee(?![A-Za-z]))\s*")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\in": "in",
    r"\notin": "notin", r"\equiv": "=",
}  # fmt: skip
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|in|notin|equiv)(?![A-Za-z])|[=<>]")
_SETS = re.compile(r"\\(?:cup|cap|setminus|mathbb)(?![A-Za-z])")
_OPEN, _CLOSE = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}, {")", "]", r"\}", r"\rangle"}
_BRACKET = re.compile(r"\\[{}]|\\[lr]angle(?![A-Za-z])|[(){}\[\]]")
_MATRIX = re.compile(
    r"\\begin\s*\{([pbvBV]?matrix|array|smallmatrix)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}", re.DOTALL
)
_SUM = re.compile(r"(?<=[\w)}])\s*[-+]\s*\w")
# A side that is a calculation rather than a name: xy, \\sin x, a/b. AB is the name of a segment
_CALCULATED = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|int|sum|prod|lim|[dt]?frac|cdot|times|div)(?![A-Za-z])|[*/^]"
    r"|(?<![A-Za-z\\])[a-z]\s*[a-z](?![A-Za-z])"
)
_REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?")


class TooLarge(Exception):  # noqa: N818
    """A number would exceed the memory or time available."""


class Unreadable(Exception):  # noqa: N818
    """The text cannot be parsed as mathematics."""


@dataclass(frozen=True)
class Number:
    """A number as written: its value, a decimal's significant digits, and the value of one unit in its last digit."""

    value: Fraction
    digits: int | None = None
    last: Fraction = Fraction(0)
    percent: bool = False


@dataclass(frozen=True)
class Parts:
    """A list or something in brackets.

    `kind` is "list", "set", "tuple" (with its brackets), "matrix" (rows) or "union" (inequalities)."""

    kind: str
    items: tuple
    brackets: str = ""


@dataclass(frozen=True)
class Relation:
    """A chain of sides and the signs between them."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Sets:
    """An expression of sets: a union, a difference, the real numbers."""

    text: str


Form = Number | Parts | Relation | Sets | str


# Reading


@functools.lru_cache(maxsize=256)
def read(text: str) -> Form:
    """Parses an answer in [`latex`] notation into its parts."""
    text = text.strip().rstrip(".,;").strip()
    if not text or _depth(text) > _MAX_DEPTH:
        raise Unreadable("nothing, or too deep")
    number = read_number(text)
    if number is not None:
        return number
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return Parts("set", ())
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None:
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return Parts("matrix", tuple(tuple(cell.strip() for cell in row.split("&")) for row in rows))
    either = [part.strip() for part in _OR.split(text)]
    if len(either) > 1 and all(part and _INEQUALITY.search(part) for part in either):
        return Parts("union", tuple(either))
    listed = _AND.sub(",", text)
    items = split(listed, ",") or split(text, ";")
    if items is not None:
        return Parts("list", tuple(_each(items)))
    relation = _relation(text)
    if relation is not None:
        return relation
    bracketed = _bracketed(text)
    if bracketed is not None:
        return bracketed
    if _SETS.search(text):
        return Sets(text)
    if text.count(r"\pm") + text.count(r"\mp") == 1:
        sign, other = ("+", "-")
        return Parts("list", tuple(re.sub(r"\\[pm]{2}(?![A-Za-z])", s, text) for s in (sign, other)))
    return text


def read_number(text: str) -> Number | None:
    """Reads an integer, a decimal, a simple fraction, a power of ten or a percentage. `None` for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 5000:
        fraction = _SIMPLE_FRACTION.fullmatch(text) if len(text) <= 5000 else None
        if fraction is None:
            return None
        numerator, denominator = int(fraction[2] or fraction[4]), int(fraction[3] or fraction[5])
        if denominator == 0:
            return None
        value = Fraction(numerator, denominator)
        return Number(-value if fraction[1] == "-" else value)
    sign, whole, decimals, only, exponent, short, percent = match.groups()
    power = int(exponent or short or 0)
    if abs(power) > 5000:
        return None
    places = decimals if decimals is not None else only
    digits = (whole or "").replace(",", "") + (places or "")
    if not digits:
        return None
    last = Fraction(10) ** (power - len(places or "")) / (100 if percent else 1)
    value = int(digits) * last * (-1 if sign == "-" else 1)
    significant = len(digits.lstrip("0")) if places else None
    return Number(value, significant, last, bool(percent))


def split(text: str, separator: str) -> list[str] | None:
    """Splits at separators outside brackets. `None` if there is only one part, or brackets do not match."""
    if separator not in text:
        return None
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"\\[{{}}]|\\[lr]angle|[(){{}}\[\]]|{re.escape(separator)}", text):
        token = match[0]
        if token == separator:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        elif token in ("(", "[", "{", r"\{", r"\langle"):
            depth += 1
        else:
            depth -= 1
            if depth < 0:
                return None
    parts.append(text[start:])
    if depth or len(parts) < 2 or len(parts) > _MAX_PARTS or any(not part.strip() for part in parts):
        return None
    return parts


def _each(items: Sequence[str]) -> list[str]:
    return [item.strip() for item in items]


def _relation(text: str) -> Form | None:
    sides, signs, depth, start = [], [], 0, 0
    for match in re.finditer(_BRACKET.pattern + "|" + _RELATION.pattern, text):
        token = match[0]
        if token in ("(", "[", "{", r"\{", r"\langle"):
            depth += 1
        elif token in (")", "]", "}", r"\}", r"\rangle"):
            depth -= 1
        elif depth == 0:
            sides.append(text[start : match.start()].strip())
            signs.append(_RELATIONS[token])
            start = match.end()
    if not signs:
        return None
    sides.append(text[start:].strip())
    if sides[0] == "" and signs == ["="]:
        return read(sides[1])
    if sides[0] == "" and signs[0] in ("=", "~"):
        sides, signs = sides[1:], signs[1:]
    if any(not side for side in sides) or len(sides) > 20:
        raise Unreadable(text)
    return Relation(tuple(sides), tuple(signs)) if signs else None


def _bracketed(text: str) -> Form | None:
    """Content of the pair of brackets that encloses the whole text."""
    opening = next((mark for mark in (r"\{", r"\langle", "(", "[", "{") if text.startswith(mark)), None)
    if opening is None:
        return None
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in ("(", "[", "{", r"\{", r"\langle") else -1
        if depth == 0:
            if match.end() != len(text):
                return None
            inner, end = text[len(opening) : match.start()].strip(), match[0]
            break
    else:
        return None
    if opening == "{":
        return read(inner) if inner else None
    if opening == r"\{":
        if end != r"\}":
            return None
        condition = re.fullmatch(r"([A-Za-z])(?:\s*\\in\s*[^|:]*)?\s*(?:\||:)(.*)", inner)
        if condition:
            return read(condition[2].strip())
        return Parts("set", tuple(_each(split(_AND.sub(",", inner), ",") or split(inner, ";") or [inner])))
    items = split(inner, ",") or split(inner, ";")
    if items is None:
        return read(inner) if inner and end == _OPEN[opening] else None
    if opening == r"\langle":
        opening, end = "(", ")"
    return Parts("tuple", tuple(_each(items)), opening + end)


# Comparing


def equal(gold: Form, answer: Form) -> bool:
    """True if the answer is the solution. Both were [`read`]."""
    if any(isinstance(form, Parts) and form.kind == "union" for form in (gold, answer)):
        one, other = _set(gold), _set(answer)
        return one == other or one.symmetric_difference(other).is_empty is True
    if isinstance(answer, Relation) and not isinstance(gold, Relation):
        return _value_equals(gold, answer)
    if isinstance(gold, Relation) and not isinstance(answer, Relation):
        return _relation_has(gold, answer)
    if isinstance(gold, Relation):
        return _relations_equal(gold, answer)
    if isinstance(gold, Parts) and isinstance(answer, Parts):
        return _parts_equal(gold, answer)
    if isinstance(gold, (Parts, Sets)) or isinstance(answer, (Parts, Sets)):
        return _mixed_equal(gold, answer)
    return scalars_equal(gold, answer)


def texts_equal(gold: str, answer: str, strict: bool = False) -> bool:
    """[`equal`] for parts of answers, which may have units or be words."""
    known = texts.same(answer, gold)
    if known is not None:
        return known
    (gold, gold_unit), (answer, answer_unit) = texts.without_unit(gold), texts.without_unit(answer)
    if texts.units_differ(gold_unit, answer_unit, strict):
        return False
    return equal(read(gold), read(answer))


def _parts_equal(gold: Parts, answer: Parts) -> bool:
    if "matrix" in (gold.kind, answer.kind):
        return (
            gold.kind == answer.kind
            and [len(row) for row in gold.items] == [len(row) for row in answer.items]
            and all(
                texts_equal(one, other)
                for one, other in zip(itertools.chain(*gold.items), itertools.chain(*answer.items), strict=True)
            )
        )
    if "tuple" in (gold.kind, answer.kind):
        brackets = {part.brackets for part in (gold, answer) if part.kind == "tuple"}
        if "set" in (gold.kind, answer.kind) or len(gold.items) != len(answer.items):
            return _mixed_equal(gold, answer) if "set" in (gold.kind, answer.kind) else False
        if len(brackets) > 1 and (len(gold.items) == 2 or not brackets <= {"()", "[]"}):
            return False
        if gold.kind != answer.kind and brackets != {"()"}:
            return False
        return all(texts_equal(one, other) for one, other in zip(gold.items, answer.items, strict=True))
    return _same_elements(gold.items, answer.items)


def _same_elements(gold: Sequence[str], answer: Sequence[str]) -> bool:
    """Compares as sets, ignoring order and repetition. With an ellipsis, compares element by element in order."""
    if any(r"\ldots" in item or r"\cdots" in item or "..." in item for item in (*gold, *answer)):
        return len(gold) == len(answer) and all(
            texts_equal(one, other) for one, other in zip(gold, answer, strict=True)
        )
    if len(gold) * len(answer) > 2_500:
        gold, answer = sorted(gold), sorted(answer)
        return len(gold) == len(answer) and all(
            texts_equal(one, other) for one, other in zip(gold, answer, strict=True)
        )
    table = [[_quietly(one, other) for other in answer] for one in gold]
    return (
        all(any(row) for row in table) and all(any(column) for column in zip(*table, strict=True))
        if table
        else not answer
    )


def _quietly(gold: str, answer: str) -> bool:
    try:
        return texts_equal(gold, answer, strict=True)
    except (Unreadable, TooLarge):
        return False


def _mixed_equal(gold: Form, answer: Form) -> bool:
    """Compares a set with an interval or set expression, and a set of one element with that element."""
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Parts) and one.kind == "set" and len(one.items) == 1 and isinstance(other, (Number, str)):
            element = read(one.items[0])
            return equal(element, other) if one is gold else equal(other, element)
    if isinstance(answer, Parts) and answer.kind == "list" and isinstance(gold, (Number, str)):
        # The same answer, repeated
        return all(equal(gold, read(item)) for item in answer.items)
    if (isinstance(gold, Parts) and gold.kind in ("list", "matrix")) or (
        isinstance(answer, Parts) and answer.kind in ("list", "matrix")
    ):
        return False
    one, other = _set(gold), _set(answer)
    if one == other:
        return True
    return one.symmetric_difference(other).is_empty is True


def _set(form: Form) -> sympy.Set:
    """Converts to a sympy set: an interval, a finite set, an expression of these, or the solutions of inequalities."""
    if isinstance(form, Parts) and form.kind == "union":
        return sympy.Union(*(_set(read(item)) for item in form.items))
    if isinstance(form, Relation) and not set(form.signs) & {"=", "~", "in", "notin"}:
        return _solution_set(form)
    if isinstance(form, Parts) and form.kind == "set":
        return sympy.FiniteSet(*(constant(item) for item in form.items))
    if isinstance(form, Parts) and form.kind == "tuple" and len(form.items) == 2:
        start, end = (constant(item) for item in form.items)
        if not (start.is_extended_real and end.is_extended_real):
            raise Unreadable("no interval")
        return sympy.Interval(start, end, form.brackets[0] == "(", form.brackets[1] == ")")
    if isinstance(form, Sets):
        return _set_expression(form.text)
    if isinstance(form, str) and _REALS.fullmatch(form):
        return sympy.S.Reals
    raise Unreadable("no set")


def _set_expression(text: str) -> sympy.Set:
    for command, function in (
        (r"\cup", lambda parts: sympy.Union(*parts)),
        (r"\cap", lambda parts: sympy.Intersection(*parts)),
        (r"\setminus", lambda parts: functools.reduce(sympy.Complement, parts)),
    ):
        parts = split(text, command)
        if parts is not None:
            return function([_set_expression(part.strip()) for part in parts])
    if _REALS.fullmatch(text.strip()):
        return sympy.S.Reals
    for name, numbers in (
        ("Z", sympy.S.Integers),
        ("N", sympy.S.Naturals),
        ("Q", sympy.S.Rationals),
        ("C", sympy.S.Complexes),
    ):
        if re.fullmatch(rf"\\mathbb\s*\{{?\s*{name}\s*\}}?", text.strip()):
            return numbers
    form = read(text)
    if isinstance(form, Sets) and form.text == text.strip():
        raise Unreadable(text)
    return _set(form)


# Relations


def _is_name(side: str) -> bool:
    """True if a side names a quantity (x, f(x), A_1, m+n, \\angle ABC) and is not a formula with numbers."""
    plain = re.sub(r"_\s*(?:\{[^{}]*\}|[A-Za-z0-9])|\([^()]*\)", "", side)
    return (
        not re.search(r"\d", plain)
        and bool(re.search("[A-Za-z]", plain))
        and not re.search(r"\\(?:pi|infty|sqrt)(?![A-Za-z])", plain)
    )


def _has_letters(side: str) -> bool:
    return bool(
        re.search(
            r"(?<![A-Za-z\\])[A-Za-z]|\\(?:theta|alpha|beta|gamma|phi|lambda|mu|angle|triangle)",
            re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])", " ", side),
        )
    )


def _value_equals(gold: Form, answer: Relation) -> bool:
    """Compares `x = 5`, `204 = x`, `2 + 3 = 5`, `x \\in [1, 2]` or `-1 < x < 3` with a value or a set."""
    signs = set(answer.signs)
    if signs == {"in"} and len(answer.sides) == 2 and _is_name(answer.sides[0]):
        return isinstance(gold, (Parts, Sets, str)) and equal(gold, read(answer.sides[1]))
    if signs <= {"=", "~"}:
        sides = list(answer.sides)
        if _is_name(sides[-1]) and _has_letters(sides[-1]) and not _has_letters(sides[0]):
            sides.reverse()
        values = [side for side in sides[:-1] if not _has_letters(side)] if isinstance(gold, (Number, str)) else []
        target = sides[-1]
        if any(_has_letters(side) and not _is_name(side) for side in sides[:-1]):
            return False
        if "~" in signs and values:
            # A rounded value follows the exact one
            exact = answer.sides[answer.signs.index("~")]
            return _quietly_form(gold, exact) and _rounds(exact, answer.sides[-1])
        if not all(_rounds(value, target) for value in values):
            return False
        return equal(gold, read(texts.without_unit(target)[0])) or any(_quietly_form(gold, value) for value in values)
    if signs & {"=", "~", "in", "notin"}:
        return False
    if isinstance(gold, (Sets, Parts)) and (not isinstance(gold, Parts) or gold.kind in ("tuple", "set")):
        one, other = _set(gold), _solution_set(answer)
        return one == other or one.symmetric_difference(other).is_empty is True
    return False


def _quietly_form(gold: Form, answer: str) -> bool:
    try:
        return equal(gold, read(texts.without_unit(answer)[0]))
    except (Unreadable, TooLarge):
        return False


def _rounds(one: str, other: str) -> bool:
    """True if two sides of an equation are equal, or one is a decimal and the other rounds to its digits."""
    first, second = (read(texts.without_unit(side)[0]) for side in (one, other))
    if not isinstance(first, (Number, str)) or not isinstance(second, (Number, str)):
        return False
    return scalars_equal(first, second, digits=1)


def _relation_has(gold: Relation, answer: Form) -> bool:
    """Compares a relation as solution with an answer that is none: `x = 5` with 5, `x \\le 3` with an interval."""
    signs = set(gold.signs)
    if signs == {"in"} and len(gold.sides) == 2 and _is_name(gold.sides[0]):
        return equal(read(gold.sides[1]), answer)
    if signs <= {"=", "~"}:
        # The line x + y = 3 is not 3
        if not _is_name(gold.sides[0]) or _SUM.search(gold.sides[0]) or _CALCULATED.search(gold.sides[0]):
            return False
        return equal(read(texts.without_unit(gold.sides[-1])[0]), answer)
    if signs & {"=", "~", "in", "notin"}:
        return False
    if isinstance(answer, Sets) or (isinstance(answer, Parts) and answer.kind in ("tuple", "set")):
        one, other = _solution_set(gold), _set(answer)
        return one == other or one.symmetric_difference(other).is_empty is True
    return False


def _relations_equal(gold: Relation, answer: Relation) -> bool:
    if set(gold.signs) == {"in"} and set(answer.signs) == {"in"}:
        return texts.key(gold.sides[0]) == texts.key(answer.sides[0]) and equal(
            read(gold.sides[-1]), read(answer.sides[-1])
        )
    inequalities = {"<", ">", "<=", ">=", "!="}
    if "in" in gold.signs and set(answer.signs) <= inequalities:
        return equal(read(gold.sides[-1]), answer)
    if "in" in answer.signs and set(gold.signs) <= inequalities:
        return equal(gold, read(answer.sides[-1]))
    if set(gold.signs) <= {"=", "~"} and set(answer.signs) <= {"=", "~"}:
        return _equations_equal(gold, answer)
    if not (set(gold.signs) <= inequalities and set(answer.signs) <= inequalities):
        return False
    one, other = _constraints(gold), _constraints(answer)
    if len(one) == len(other) and all(any(_same_constraint(a, b) for b in other) for a in one):
        return True
    try:
        first, second = _solution_set(gold), _solution_set(answer)
    except Unreadable:
        return False
    if _variable(gold) != _variable(answer):
        return False
    return first == second or first.symmetric_difference(second).is_empty is True


def _equations_equal(gold: Relation, answer: Relation) -> bool:
    if texts.key(gold.sides[0]) == texts.key(answer.sides[0]) and _is_name(gold.sides[0]):
        values = [side for side in answer.sides[1:-1] if not _has_letters(side)]
        return texts_equal(gold.sides[-1], answer.sides[-1]) and all(_rounds(side, answer.sides[-1]) for side in values)
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    if (
        _is_name(gold.sides[0])
        and not _has_letters(gold.sides[-1])
        and texts.key(gold.sides[0]) == texts.key(answer.sides[1])
    ):
        return texts_equal(gold.sides[1], answer.sides[0])
    one, other = (_difference(*relation.sides) for relation in (gold, answer))
    return _proportional(one, other, positive=False)


def _difference(left: str, right: str) -> sympy.Expr:
    return expression(left) - expression(right)


def _constraints(relation: Relation) -> list[tuple[str, sympy.Expr]]:
    """Each constraint as (">", ">=" or "!=", expression), with the expression compared to zero."""
    found = []
    for left, sign, right in zip(relation.sides, relation.signs, relation.sides[1:], strict=False):
        if sign in ("<", "<="):
            left, right, sign = right, left, sign.replace("<", ">")
        found.append((sign, _difference(left, right)))
    return found


def _same_constraint(one: tuple[str, sympy.Expr], other: tuple[str, sympy.Expr]) -> bool:
    return one[0] == other[0] and _proportional(one[1], other[1], positive=one[0] != "!=")


def _proportional(one: sympy.Expr, other: sympy.Expr, positive: bool) -> bool:
    """True if one is the other times a nonzero constant, which must be positive with `positive`."""
    if not one.free_symbols or _names(one) != _names(other):
        return False
    ratio = None
    for first, second in _samples(one, other):
        if _is_zero(first) or _is_zero(second):
            if _is_zero(first) != _is_zero(second):
                return False
            continue
        if ratio is None:
            ratio = first, second
        elif not constants_equal(first * ratio[1], second * ratio[0]):
            return False
    return ratio is not None and (not positive or bool((ratio[0] * ratio[1]).evalf(20) > 0))


def _variable(relation: Relation) -> str:
    names = {symbol.name for side in relation.sides for symbol in expression(side).free_symbols}
    if len(names) != 1:
        raise Unreadable("not one variable")
    return names.pop()


def _solution_set(relation: Relation) -> sympy.Set:
    """The real numbers for which a relation in one variable holds."""
    x = sympy.Symbol("x", real=True)
    _variable(relation)
    sides = [expression(side) for side in relation.sides]
    sides = [side.xreplace(dict.fromkeys(side.free_symbols, x)) for side in sides]
    found = sympy.S.Reals
    relations = {"<": sympy.Lt, ">": sympy.Gt, "<=": sympy.Le, ">=": sympy.Ge, "!=": sympy.Ne}
    for left, sign, right in zip(sides, relation.signs, sides[1:], strict=False):
        one = relations[sign](left, right)
        found = found.intersect(
            one.as_set() if one not in (True, False) else (sympy.S.Reals if one else sympy.S.EmptySet)
        )
    return found


# Scalars


def scalars_equal(gold: Number | str, answer: Number | str, digits: int = DIGITS) -> bool:
    """Compares exactly, except for decimals with at least `digits` significant digits."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _numbers_equal(gold, answer, digits)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Number) and one.digits is not None:
            return _decimal_equals(one, expression(other), digits)
    one, other = (
        sympy.Rational(part.value.numerator, part.value.denominator) if isinstance(part, Number) else expression(part)
        for part in (gold, answer)
    )
    return expressions_equal(one, other)


def _numbers_equal(one: Number, other: Number, digits: int) -> bool:
    if one.percent == other.percent:
        return _close(one, other, digits)
    percent, plain = (one, other) if one.percent else (other, one)
    as_written = Number(percent.value * 100, percent.digits, percent.last * 100)
    return _close(percent, plain, digits) or _close(as_written, plain, digits)


def _close(one: Number, other: Number, digits: int) -> bool:
    if one.value == other.value:
        return True
    for short, long in ((one, other), (other, one)):
        longer = long.digits is None or long.last < short.last
        if short.digits is not None and short.digits >= digits and longer and _fits(short, long.value):
            return True
    return False


def _fits(decimal: Number, value: Fraction) -> bool:
    """True if the value, rounded or truncated to the decimal's last digit, is that decimal."""
    scaled, written = abs(value) / decimal.last, abs(decimal.value) / decimal.last
    if (value < 0) != (decimal.value < 0):
        return False
    return written in (math.floor(scaled), math.floor(scaled + Fraction(1, 2)))


def _decimal_equals(decimal: Number, value: sympy.Expr, digits: int) -> bool:
    if value.free_symbols:
        return False
    value = evaluate(value)
    exact = sympy.Rational(decimal.value.numerator, decimal.value.denominator)
    if value.is_Rational:
        return _close(decimal, Number(Fraction(int(value.p), int(value.q))), digits)
    if decimal.digits < digits:
        return constants_equal(value, exact)
    number = value.evalf(decimal.digits + 30)
    if not number.is_Float:
        return False
    return _fits(decimal, Fraction(str(number)))


@functools.lru_cache(maxsize=256)
def expression(text: str) -> sympy.Expr:
    """Reads LaTeX with latex2sympy, unevaluated. Decimals become exact.

    Raises:
        Unreadable: The text cannot be parsed, or is not an expression.
        TooLarge: The expression contains a number that is too large.
    """
    number = read_number(text.strip())
    if number is not None:
        return sympy.Rational(number.value.numerator, number.value.denominator)
    if len(text) > _MAX_LENGTH or "'" in text:
        raise Unreadable("too long, or with a prime, which the parser leaves out")
    if _RUN_OF_NUMBERS.search(text):
        raise Unreadable("numbers side by side")
    # The parser would read `I` as the imaginary unit too
    if r"\Upsilon" in text:
        raise Unreadable("the letter that stands for I")
    text = _CAPITAL_I.sub(lambda m: m[1] or r"\Upsilon ", text)
    try:
        parsed = latex2sympy(
            normalize_latex(text, _NORMALIZATION),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except Exception as error:
        raise Unreadable(text) from error
    if not isinstance(parsed, sympy.Expr):
        raise Unreadable(text)
    floats = parsed.atoms(sympy.Float)
    _check_size(parsed)
    if floats:
        parsed = parsed.xreplace({number: sympy.Rational(str(number)) for number in floats})
    return parsed


def constant(text: str) -> sympy.Expr:
    """Evaluates an expression without variables."""
    value = evaluate(expression(texts.without_unit(text)[0]))
    if value.free_symbols:
        raise Unreadable(text)
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _check_size(parsed: sympy.Basic) -> None:
    """Raises [`TooLarge`] if evaluation would take too much memory or time."""
    _bits(parsed)


def _bits(node: sympy.Basic) -> float:
    """Estimates the base-2 logarithm of a bound on the absolute values in an expression. Symbols count as small."""
    if isinstance(node, sympy.Rational):
        return max(abs(int(node.p)).bit_length(), int(node.q).bit_length(), 1)
    if isinstance(node, sympy.Float):
        return max(abs(float(sympy.log(abs(node), 2))) if node and node.is_finite else 1, 1)
    if not node.args:
        return 3.0
    inner = [_bits(argument) for argument in node.args]
    if isinstance(node, sympy.Pow):
        exponent = inner[1] if not isinstance(node.exp, sympy.Rational) else math.log2(abs(node.exp) + 1)
        bits = (
            inner[0] * 2.0 ** min(exponent, 60)
            if node.base is not sympy.E or exponent > 20
            else 2.0 ** min(exponent, 60) * 1.5
        )
    elif isinstance(node, (sympy.factorial, sympy.gamma, sympy.factorial2, sympy.subfactorial)):
        bits = 2.0 ** min(inner[0], 60) * max(inner[0], 1)
    elif isinstance(node, sympy.binomial):
        bits = 2.0 ** min(min(inner), 60) * 2 * max(inner)
    elif isinstance(node, sympy.exp):
        bits = 1.5 * 2.0 ** min(inner[0], 60)
    elif isinstance(node, (sympy.Sum, sympy.Product)):
        for _, *limits in node.limits:
            if (
                len(limits) == 2
                and all(limit.is_number for limit in limits)
                and not abs(limits[1] - limits[0]) <= 2_000
            ) and limits[1] is not sympy.oo:
                raise TooLarge("terms")
        bits = max(inner) * 2_000
    elif isinstance(node, sympy.Mul):
        bits = sum(inner)
    else:
        bits = max(inner) + len(inner)
    if bits > _MAX_BITS:
        raise TooLarge(f"2^{bits:.3g}")
    return bits


def evaluate(value: sympy.Expr) -> sympy.Expr:
    """Evaluates the expression."""
    _check_size(value)
    return value.doit()


def expressions_equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    """Compares exactly. Expressions with variables are equal if they agree at random points."""
    if one == other and not one.has(sympy.nan, sympy.zoo):
        return True
    one, other = evaluate(one), evaluate(other)
    one, other = _imaginary(one, other)
    if one == other:
        return not (one.has(sympy.nan) or one.has(sympy.zoo))
    if not one.free_symbols and not other.free_symbols:
        return constants_equal(one, other)
    compared = 0
    for first, second in _samples(one, other):
        if not constants_equal(first, second):
            return False
        compared += 1
    return compared >= 2


def _imaginary(one: sympy.Expr, other: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Substitutes the imaginary unit for `i`."""
    return tuple(
        part.subs({symbol: sympy.I for symbol in part.free_symbols if symbol.name == "i"}).doit()
        for part in (one, other)
    )


def _names(value: sympy.Expr) -> set[str]:
    return {symbol.name for symbol in value.free_symbols}


def _samples(one: sympy.Expr, other: sympy.Expr):
    """Pairs of values at random rational points: all variables positive, then both signs where both values are real."""
    names = sorted(_names(one) | _names(other))
    generator = random.Random(0)
    is_complex = one.has(sympy.I) or other.has(sympy.I)
    whole = one.has(*_WHOLE) or other.has(*_WHOLE)  # factorials need whole numbers
    for point in range(_POINTS):
        values = {
            name: sympy.Integer(generator.randrange(3, 40) + point)
            if whole
            else sympy.Rational(generator.randrange(11, 400), 101)
            * (generator.choice((1, -1)) if point >= 3 else 1)
            * (53 if point >= 6 else 1)
            for name in names
        }
        try:
            pair = [
                evaluate(part.subs({symbol: values[symbol.name] for symbol in part.free_symbols}))
                for part in (one, other)
            ]
        except TooLarge:
            if point < 6:
                raise
            continue
        if any(value.has(sympy.nan) or value.has(sympy.zoo) for value in pair):
            continue
        if point >= 3 and not is_complex and any(_is_complex(value) for value in pair):
            continue
        yield pair


def _is_complex(value: sympy.Expr) -> bool:
    real = value.is_extended_real
    if real is not None:
        return not real
    number = value.evalf(20)
    return bool(abs(sympy.im(number)) > 1e-12) if number.is_number else True


def _is_zero(value: sympy.Expr) -> bool:
    if value.is_Rational:
        return value == 0
    number = value.evalf(30)
    return number == 0 or (number.is_number and bool(abs(number) < 1e-20) and sympy.simplify(value) == 0)


def constants_equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    """Compares rational numbers exactly, others to 60 and then to 400 digits, relative to their size."""
    if one == other:
        return not (one.has(sympy.nan) or one.has(sympy.zoo))
    if one.is_Rational and other.is_Rational:
        return False
    if (
        not one.is_number
        or not other.is_number
        or any(not part.is_finite and part.is_finite is not None for part in (one, other))
    ):
        return False
    for digits in (60, 400):
        first, second = (part.evalf(digits, maxn=2 * digits + 100) for part in (one, other))
        if not (_is_numeric(first) and _is_numeric(second)):
            return False
        size = max(abs(first), abs(second))
        if size == 0:
            return True
        gap = abs(first - second)
        if min(abs(first), abs(second)) < sympy.Float(10) ** -50 and size < sympy.Float(10) ** -50:
            # Near zero, digits are lost
            return sympy.simplify(one - other) == 0
        if gap > size * sympy.Float(10, 30) ** (10 - digits):
            return False
    return True


def _is_numeric(value: sympy.Expr) -> bool:
    return (
        bool(value.is_number)
        and not value.has(sympy.nan, sympy.zoo, sympy.oo)
        and all(part.is_Float or part.is_Integer or part.is_Rational for part in value.as_real_imag())
    )


__all__ = ["DIGITS", "TooLarge", "Unreadable", "closing", "equal", "latex", "read", "texts_equal"]
