"""What is known of values on sums with written-out steps ([`trl_credit.toy.arithmetic`]) without sampling.

The right completion of a sum is unique up to the text of its style. So a prefix that deviates from it cannot be right any
more, V = 0, and before that V is the probability that the policy writes the rest:

    V(prefix) = prod_t pi(rest_t | prefix, rest_<t)        over the tokens of the canonical rest and the end of sequence

This is exact in style `plain` but for luck: errors that cancel each other, so that the stated result is right in the end.
A language model may write a right solution in another way; then it is less than V, by the probability of those. In the
styles `letters` and `words` it is the mean of that product over the style's text, which is drawn here as the data have it,
and not from the policy.
"""

import random
import re
from dataclasses import dataclass

from ..toy.arithmetic import NEGATIVE_MARK, STYLES, WORDS, WORKED, solution_parts


# Text of each style in front of a step. Its length decides nothing
_STYLE_TEXT = {"plain": "", "copy": "", WORKED: "", "letters": r"[a-z]*", "words": r"[a-z ]*"}


@dataclass(frozen=True)
class Problem:
    """A prompt of the task: its style and the numbers to add."""

    style: str
    terms: tuple[int, ...]


def problem_of(prompt: str) -> Problem | None:
    """The problem that a prompt asks for, or `None` if the prompt is not of this task."""
    asked = re.fullmatch(r"Calculate (\d+(?: \+ \d+)+)\.\n", prompt, flags=re.ASCII)
    if asked is not None:
        return Problem(WORKED, tuple(map(int, asked[1].split(" + "))))
    marks = "".join(STYLES.values())
    match = re.fullmatch(rf"{NEGATIVE_MARK}?([{re.escape(marks)}]?)(\d+(?:\+\d+)+)=", prompt, flags=re.ASCII)
    if match is None:
        return None
    style = next(name for name, mark in STYLES.items() if mark == match[1])
    return Problem(style, tuple(map(int, match[2].split("+"))))


def _problem(prompt: str) -> Problem:
    problem = problem_of(prompt)
    if problem is None:
        raise ValueError(f"{prompt!r} is no sum of the arithmetic task, such as '~83+48+14='.")
    return problem


def _canonical_parts(problem: Problem, rng: random.Random) -> list[tuple[str, str]]:
    """The right completion as (text, role) parts, with one part of the role `style` in front of each step. The style's
    text is drawn from `rng`."""
    parts = []
    for text, role in solution_parts(list(problem.terms), rng, style=problem.style):
        if parts and role == parts[-1][1]:
            parts[-1] = (parts[-1][0] + text, role)
        else:
            parts.append((text, role))
    return parts


def _follow(problem: Problem, completion: str) -> tuple[int, list[tuple[str, str]]]:
    """Follows the completion as far as it is right: the number of its characters that are, and what is left of the
    canonical parts there. A part of the role `style` stays until the step's first character is written."""
    parts, place = _canonical_parts(problem, random.Random(0)), 0
    while parts:
        text, role = parts[0]
        if role == "style":
            end = re.compile(_STYLE_TEXT[problem.style]).match(completion, place).end()
            if end == len(completion):
                return end, parts
            place = end
        else:
            rest = completion[place : place + len(text)]
            same = next((i for i, (a, b) in enumerate(zip(rest, text, strict=False)) if a != b), len(rest))
            place += same
            if same < len(text):
                return place, [(text[same:], role), *parts[1:]]
        parts = parts[1:]
    return place, []


def first_mistake(prompt: str, completion: str, finished: bool = True) -> int | None:
    """Offset of the character with which a completion stops being able to be right; `None` if there is none.

    It is the first character that differs from the right completion, or the completion's length if it ended too early.
    What follows can only be right by luck ([`bookkeeping`]).

    Args:
        prompt: A prompt of the task.
        completion: The completion's text without the end of sequence.
        finished: Whether the completion ended there, or was cut.

    Raises:
        ValueError: The prompt is not of this task.
    """
    place, left = _follow(_problem(prompt), completion)
    if place < len(completion) or (left and finished):
        return place
    return None


def rest_parts(prompt: str, completion: str, rng: random.Random | None = None) -> list[tuple[str, str]] | None:
    """The canonical rest as (text, role) parts, see [`canonical_rest`]. The role `style` is text that decides nothing."""
    problem = _problem(prompt)
    place, left = _follow(problem, completion)
    if place < len(completion):
        return None
    if not any(role == "style" for _, role in left):
        return left
    # What is left, with the style's text drawn anew. The first step may have some of it already
    drawn = [text for text, role in _canonical_parts(problem, rng or random.Random(0)) if role == "style"]
    count = sum(role == "style" for _, role in left)
    texts = iter(drawn[len(drawn) - count :])
    parts = [(next(texts), role) if role == "style" else (text, role) for text, role in left]
    if parts[0][1] == "style":
        begun = completion[re.search(rf"{_STYLE_TEXT[problem.style]}\Z", completion).start() :]
        parts[0] = (_rest_of_style(problem.style, begun, parts[0][0]), "style")
    return [part for part in parts if part[0]]


def _rest_of_style(style: str, begun: str, drawn: str) -> str:
    """The rest of a style's text of which some is written."""
    if style == "letters":
        return drawn[len(begun) :]
    word = re.search(r"[a-z]*\Z", begun)[0]
    if not begun or not word:
        return "" if begun else drawn
    return next((whole[len(word) :] for whole in WORDS if whole.startswith(word)), "") + " "


def canonical_rest(prompt: str, completion: str, rng: random.Random | None = None) -> str | None:
    """The text that completes a prefix of a completion rightly; `None` if it already has a mistake.

    Args:
        prompt: A prompt of the task.
        completion: The prefix.
        rng: Draws the text of the styles `letters` and `words`. By default, always the same.

    Raises:
        ValueError: The prompt is not of this task.
    """
    parts = rest_parts(prompt, completion, rng)
    return None if parts is None else "".join(text for text, _ in parts)
