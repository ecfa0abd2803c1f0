"""Completions whose deciding tokens are known by construction.

Each has one thing wrong, and what follows is computed from it. A planted error is at a random position. Tasks:

    planted_error   a chain of sums; the one wrong digit is the deciding token
    filler_words    the same, with words between the steps that decide nothing
    style           the same, with random letters between the steps: the most uncertain tokens decide nothing
    altered_copy    the prompt is copied with one fact altered
    length          the same problem at about 1, 2 and 4 times the length: `length_1x`, `length_2x`, `length_4x`
    own_error       wrong completions that the scored policy itself sampled ([`own_errors`])
    own_error_style the same, with random letters between the steps

Each item comes with siblings, right and wrong completions of the same prompt, for the methods whose credit depends on a
group. Only the item itself is scored.

There are two renderings: `compact` is the format that the quickstart's embedded model was trained on
([`trl_credit.toy.arithmetic`]), `text` is English for any model. A longer completion has more terms in `compact` (2, 3
and 5), and more irrelevant sentences in `text`. The policy's own errors are available in `compact` only.

A planted digit is drawn uniformly, not from the policy, so by construction it is the most surprising token. This
favours surprisal and methods that follow it. In training, errors are the policy's own, as in `own_error`.

The planted token is in the middle on average, so credit that is linear in the position scores at chance. A function
that knew the format could exclude some positions (no result is wrong in the first word).
[`trl_credit.bench.scores.position_profile`] measures how much that is worth.
"""

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._util.text import nearest
from ..toy.arithmetic import WORDS, _misread, make_problem, prompt_of, solution_parts


RENDERINGS = ("compact", "text")
# Terms, and sentences of padding, of each variant of the task `length`
LENGTHS = {"length_1x": (2, 0), "length_2x": (3, 5), "length_4x": (5, 15)}
# The style of the quickstart's task in which each variant asks for completions
OWN_ERRORS = {"own_error": "plain", "own_error_style": "letters"}
TASKS = {
    "planted_error": ("planted_error",),
    "filler_words": ("filler_words",),
    "style": ("style",),
    "altered_copy": ("altered_copy",),
    "length": tuple(LENGTHS),
    "own_error": ("own_error",),
    "own_error_style": ("own_error_style",),
}
# Words and letters precede each step but do not follow the last. With this share of errors in the second of two steps,
# the error is in the middle on average
LATE_STEP = 0.3
# What an item's group holds besides it: right and wrong completions of its prompt
RIGHT_SIBLINGS, WRONG_SIBLINGS = 3, 4
Parts = list[tuple[str, str]]

_NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana")
_COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "purple")
_THINGS = ("kites", "books", "boats", "lamps", "cups", "coats", "bells", "chairs")
_ASIDES = (
    "It is a calm day.",
    "The tea is warm.",
    "A bird sits on the roof.",
    "This pen writes well.",
    "The street is quiet.",
    "Rain may come later.",
    "The window is open.",
    "Somebody plays the piano.",
)


@dataclass(frozen=True)
class Item:
    """A completion with known deciding characters.

    Args:
        prompt: Its prompt.
        completion: Its text.
        spans: Start and end (exclusive) of each run of deciding characters in `completion`.
        finished: Append the end-of-sequence token, to the siblings too.
        siblings: Other completions of its prompt, each with whether it is right.
        columns: What a dataset would say of the problem: its `answer`, and a right `solution`.
    """

    prompt: str
    completion: str
    spans: tuple[tuple[int, int], ...]
    finished: bool = True
    siblings: tuple[tuple[str, bool], ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Problem:
    """A prompt, its answer, and a function that writes a solution in parts, right or with one error."""

    prompt: str
    answer: str
    solve: Callable[[random.Random, bool], Parts]
    finished: bool = True


def variants(tasks: list[str] | None = None) -> list[str]:
    """Variants of the given tasks, or of all.

    Raises:
        ValueError: Unknown task.
    """
    names = []
    for task in TASKS if tasks is None else tasks:
        known = [*TASKS, *LENGTHS]
        if task not in known:
            raise ValueError(f"Unknown task {task!r}. {nearest(task, known)}")
        names += TASKS.get(task, (task,))
    return list(dict.fromkeys(names))


def make_items(variant: str, num_items: int, seed: int = 0, rendering: str = "compact") -> list[Item]:
    """Makes `num_items` items of a variant, deterministically by seed.

    Raises:
        ValueError: Unknown variant or rendering, a variant that is sampled from a policy, or fewer than one item.
    """
    if variant not in variants():
        raise ValueError(f"Unknown variant {variant!r}. {nearest(variant, variants())}")
    if variant in OWN_ERRORS:
        raise ValueError(f"The items of {variant!r} are sampled from a policy, by `sample_own_errors`.")
    if rendering not in RENDERINGS:
        raise ValueError(f"Unknown rendering {rendering!r}. {nearest(rendering, RENDERINGS)}")
    if num_items < 1:
        raise ValueError(f"The number of items must be at least 1, got {num_items}.")
    task = "length" if variant in LENGTHS else variant  # variants of `length` share their terms
    make = _compact if rendering == "compact" else _text
    return [_item(make, variant, f"{seed}/{task}/{i}") for i in range(num_items)]


def _item(make: Callable[[str, random.Random], _Problem], variant: str, seed: str) -> Item:
    rng = random.Random(seed)
    problem = make(variant, rng)
    text, spans = "", []
    for part, role in problem.solve(rng, True):
        if role == "error":
            spans.append((len(text), len(text) + len(part)))
        text += part

    rng = random.Random(f"{seed}/siblings")  # of their own, so that the item does not depend on them

    def written(wrong: bool) -> str:
        return "".join(part for part, _ in problem.solve(rng, wrong))

    siblings = [(written(wrong), not wrong) for wrong in [False] * RIGHT_SIBLINGS + [True] * WRONG_SIBLINGS]
    columns = {"answer": problem.answer, "solution": written(False)}
    return Item(problem.prompt, text, tuple(spans), problem.finished, tuple(siblings), columns)


def _compact(variant: str, rng: random.Random) -> _Problem:
    if variant in LENGTHS:
        terms, style = make_problem(rng, 5)[: LENGTHS[variant][0]], "plain"
    elif variant in ("planted_error", "altered_copy"):
        terms = make_problem(rng, rng.randint(*((3, 5) if variant == "planted_error" else (4, 5))))
        style = "copy" if variant == "altered_copy" else "plain"
    else:
        terms, style = make_problem(rng, 3), "words" if variant == "filler_words" else "letters"

    def solve(rng: random.Random, wrong: bool) -> Parts:
        if variant == "altered_copy":
            # Cut after the copy: the rest is correct given the copy, and would make early positions a good guess
            parts = solution_parts(terms, rng, style=style, wrong_copy=wrong)
            return parts[: parts.index((":", "step"))]
        step = rng.randrange(len(terms) - 1) if style == "plain" else int(rng.random() < LATE_STEP)
        return solution_parts(terms, rng, {step} if wrong else set(), style)

    return _Problem(prompt_of(terms, style), str(sum(terms)), solve, finished=variant != "altered_copy")


def _misread_parts(number: int, rng: random.Random) -> tuple[int, Parts]:
    wrong = _misread(number, rng)
    right, text = str(number), str(wrong)
    place = next(i for i, (a, b) in enumerate(zip(right, text, strict=True)) if a != b)
    return wrong, [(text[:place], "step"), (text[place], "error"), (text[place + 1 :], "step")]


def _text(variant: str, rng: random.Random) -> _Problem:
    if variant == "altered_copy":
        return _copied_facts(rng)
    terms = make_problem(rng, rng.randint(3, 5) if variant == "planted_error" else 3)
    steps = len(terms) - 1

    def solve(rng: random.Random, wrong: bool) -> Parts:
        place = rng.randrange(steps)  # of the error, if there is one
        asides = [""] * (steps + 1)
        if variant == "filler_words":
            asides = ["".join(rng.choice(WORDS) + ", " for _ in range(rng.randint(1, 3))) for _ in asides]
        elif variant == "style":
            asides = ["(" + "".join(rng.choice(string.ascii_lowercase) for _ in range(6)) + ") " for _ in asides]
        elif variant in LENGTHS:
            number = LENGTHS[variant][1]
            before = round(rng.random() * number)  # makes early and late errors equally likely
            for i in range(number):
                slot = rng.randint(0, place) if i < before else rng.randint(place + 1, steps)
                asides[slot] += rng.choice(_ASIDES) + " "
        parts: Parts = [("Step by step: ", "step")]  # as long as the text that follows only the last step
        total = terms[0]
        for i, term in enumerate(terms[1:]):
            parts += [(asides[i], "style"), (f"{total} + {term} = ", "step")]
            total += term
            if i == place and wrong:
                total, written = _misread_parts(total, rng)
            else:
                written = [(str(total), "step")]
            parts += [*written, (". ", "step")]
        return [*parts, (asides[-1], "style"), (f"The answer is {total}.", "step")]

    prompt = f"What is {' + '.join(map(str, terms))}? Add the numbers one at a time."
    return _Problem(prompt, str(sum(terms)), solve)


def _copied_facts(rng: random.Random) -> _Problem:
    names = rng.sample(_NAMES, 4)
    facts = [[name, "has", rng.randint(10, 99), rng.choice(_COLOURS), rng.choice(_THINGS)] for name in names]

    def solve(rng: random.Random, wrong: bool) -> Parts:
        altered, kind = rng.randrange(len(facts)), rng.choice((2, 3, 4))
        parts: Parts = []
        for i, fact in enumerate(facts):
            for place, word in enumerate(fact):
                if not wrong or (i, place) != (altered, kind):
                    parts.append((str(word), "step"))
                elif kind == 2:
                    parts += _misread_parts(word, rng)[1]
                else:
                    others = [other for other in (_COLOURS if kind == 3 else _THINGS) if other != word]
                    parts.append((rng.choice(others), "error"))
                parts.append((" " if place < 4 else ".", "step"))
            parts.append((" " if i < len(facts) - 1 else "", "step"))
        return parts

    listed = " ".join(" ".join(map(str, fact)) + "." for fact in facts)
    return _Problem(f"Copy these sentences exactly: {listed}", listed, solve)


def prompt_for(item: Item, tokenizer: Any, rendering: str) -> str | list[dict[str, str]]:
    """The prompt in the form for this tokenizer: messages if it has a chat template, else text."""
    if rendering == "compact":
        return item.prompt
    if getattr(tokenizer, "chat_template", None):
        return [{"role": "user", "content": item.prompt}]
    return item.prompt + "\n\n"


def tokens_and_labels(item: Item, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Token ids of the item's completion, and for each whether it overlaps a deciding span.

    Raises:
        ValueError: The tokenizer does not report the characters of its tokens, or no token covers a deciding one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for; use a fast tokenizer."
        )
    encoded = tokenizer(item.completion, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    labels = [
        any(begin < stop and start < end for start, stop in item.spans) for begin, end in encoded["offset_mapping"]
    ]
    if not any(labels):
        raise ValueError(f"No token of the tokenizer stands for the deciding part of {item.completion!r}.")
    if item.finished and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        labels.append(False)
    return ids, labels
