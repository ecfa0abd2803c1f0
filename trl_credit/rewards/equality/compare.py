"""The verdict on one answer, computed in a worker: [`verdict`]."""

import re
from dataclasses import dataclass
from fractions import Fraction

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse

from . import algebra, text
from .notation import ascii_digits, closing, latex, trim


_MAX_WORDS = 12  # limit for a solution that is a sentence without mathematics
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Comparison:
    """`correct` is `None` without a usable solution. `gold` and `answer` are forms for display and for votes."""

    correct: bool | None
    gold: str | None
    answer: str | None


def verdict(completion: str, solution: str) -> Comparison:
    r"""Compares an answer with a solution. Each is alone in `\boxed{...}`, or in a text where math-verify finds it."""
    gold = _inside(solution)
    if gold is None:
        gold = _found(solution, [])
        if gold is None and len(_WORD.findall(solution)) <= _MAX_WORDS and text.key(solution):
            gold = solution
    gold = None if gold is None else trim(gold, currency=True)
    if gold is None or not re.search(r"[^\W_]|\\|[^\x00-\x7f]", text.key(gold)):
        return Comparison(None, None, None)
    answer = _inside(completion)
    if answer is None:
        answer = _found(completion, _in_answers())
    if answer is None:
        return Comparison(False, gold, None)
    answer = trim(answer, currency=True)
    return Comparison(same(answer, gold), gold, answer)


def same(answer: str, gold: str, labels: bool = True) -> bool:
    """True if the answer is the solution. Both are [`trim`]med. `labels`: allow an option's letter in front."""
    answer, gold = (text.scaled(text.without_base_ten(part)) for part in (answer, gold))
    known = text.same(answer, gold)
    if known is not None:
        return known or (labels and _labelled(answer, gold))
    (gold_value, gold_unit), (answer_value, answer_unit) = text.without_unit(gold), text.without_unit(answer)
    if text.units_differ(gold_unit, answer_unit):
        return False
    try:
        if algebra.texts_equal(latex(gold_value), latex(answer_value)):
            return True
    except Exception:  # sympy raises many kinds; math-verify's timeout is not an Exception and passes through
        pass
    return labels and _labelled(answer, gold)


def _labelled(answer: str, gold: str) -> bool:
    """True for `(B) 204` against 204, and for B against a solution `(B) 204`."""
    bare = text.without_label(answer)
    wanted = text.without_label(gold)
    if wanted is not None:
        letter = text.option(text.unwrapped(gold))
        if letter is not None and text.unwrapped(answer).strip(" .:()[]").upper() == letter:
            return True
        if bare is not None and text.option(text.unwrapped(answer)) != letter:
            return False
        return same(bare or answer, wanted, labels=False)
    return bare is not None and same(bare, gold, labels=False)


def _inside(boxed: str) -> str | None:
    r"""Content of `\boxed{...}`, if the text is nothing else."""
    prefix = r"\boxed{"
    if (
        boxed.startswith(prefix)
        and closing(re.sub(r"\\.", "  ", boxed, flags=re.DOTALL), len(prefix) - 1, "{}") == len(boxed) - 1
    ):
        return boxed[len(prefix) : -1]
    return None


def _in_answers() -> list:
    """TRL's configuration for parsing completions."""
    return [
        LatexExtractionConfig(
            normalization_config=NormalizationConfig(units=True),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )
    ]


def _found(content: str, configuration: list) -> str | None:
    """The text that math-verify takes for the answer, as LaTeX."""
    if configuration:
        parsed = parse(content, configuration, extraction_mode="first_match", parsing_timeout=10)
    else:
        parsed = parse(content, parsing_timeout=10)
    return next((part for part in reversed(parsed) if isinstance(part, str)), None)


def shown(answer: str | None) -> str:
    """One form for equal numbers, followed by the text, in the format in which TRL logs what math-verify parsed."""
    if answer is None:
        return "[unparseable]"
    form = _form(answer)
    return f"[{form}, {answer!r}]" if form else f"[{answer!r}]"


def _form(answer: str) -> str:
    try:
        read = algebra.read(latex(text.without_unit(text.without_base_ten(answer))[0]))
        if isinstance(read, algebra.Relation) and set(read.signs) == {"="}:
            read = algebra.read(read.sides[-1])
        if isinstance(read, algebra.Number):
            return str(Fraction(read.value))
        if isinstance(read, str):
            return str(algebra.evaluate(algebra.expression(read))).replace("Upsilon", "I")
    except Exception:
        pass
    return ""


__all__ = ["Comparison", "ascii_digits", "same", "shown", "verdict"]
