r"""The embedded model's task: sums with written-out steps.

A prompt is `83+48+14=`. A completion adds the numbers one at a time and states the result after `#`:
`83+48=131;131+14=145;#145`. The embedded model was pre-trained on such completions, some of them with wrong steps, so
it knows the format but not always the answer. It was also trained on prompts that begin with [`NEGATIVE_MARK`], whose
completions are mostly wrong: this is its way of being asked for a wrong answer.

A mark before the sum asks for another style ([`STYLES`]), in which some tokens are uncertain but decide nothing, or the
deciding token is elsewhere:

    plain     83+48+14=     83+48=131;131+14=145;#145
    letters   ~83+48+14=    hqzbwe83+48=131;pwkdxo131+14=145;#145      six random letters before every step
    words     &83+48+14=    so then 83+48=131;now 131+14=145;#145      one to three random words before every step
    copy      @83+48+14=    83+48+14:83+48=131;131+14=145;#145         the sum is copied first, where it may be misread

A language model is asked in the words of reasoning-gym's `basic_arithmetic`, and answers in its own notation ([`WORKED`]):

    Calculate 83 + 48 + 14.\n        83 + 48 = 131. 131 + 14 = 145. \boxed{145}
"""

import random
import re
import string

from datasets import Dataset

from .._util.text import nearest


NEGATIVE_MARK = "!"
# Mark of each style
STYLES = {"plain": "", "letters": "~", "words": "&", "copy": "@"}
WORKED = "worked"
NUM_LETTERS = 6
WORDS = ("so", "then", "next", "now", "ok", "here", "thus", "well")


def _misread(number: int, rng: random.Random) -> int:
    """`number` with one digit replaced. Keeps its length."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    choices = [d for d in "0123456789" if d != digits[place] and not (place == 0 and d == "0")]
    digits[place] = rng.choice(choices)
    return int("".join(digits))


def make_problem(rng: random.Random, num_terms: int = 3) -> list[int]:
    """Draws the terms of one problem: `num_terms` two-digit numbers."""
    return [rng.randint(10, 99) for _ in range(num_terms)]


def prompt_of(terms: list[int], style: str = "plain") -> str:
    if style == WORKED:
        return f"Calculate {' + '.join(map(str, terms))}.\n"
    return STYLES[style] + "+".join(map(str, terms)) + "="


def _style_text(style: str, rng: random.Random) -> str:
    """Text in front of a step that decides nothing."""
    if style == "letters":
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(NUM_LETTERS))
    if style == "words":
        return "".join(rng.choice(WORDS) + " " for _ in range(rng.randint(1, 3)))
    return ""


def solution_parts(
    terms: list[int],
    rng: random.Random,
    wrong_steps: set[int] = frozenset(),
    style: str = "plain",
    wrong_copy: bool = False,
) -> list[tuple[str, str]]:
    """The written-out solution as (text, role) parts. Their concatenation is the text.

    Roles: `error` for the one wrong digit where it is first written (what follows is computed from it), `style` for
    text that decides nothing, `step` for the rest.

    Args:
        terms: The numbers.
        rng: Draws style and errors.
        wrong_steps: Steps, numbered from 0, whose result has one wrong digit.
        style: One of [`STYLES`], or [`WORKED`].
        wrong_copy: Misread one number when copying them (style `copy`).
    """
    plus, equals, stop, result = (" + ", " = ", ". ", r"\boxed{%d}") if style == WORKED else ("+", "=", ";", "#%d")
    parts: list[tuple[str, str]] = []

    def write(text: str, role: str = "step") -> None:
        if text:
            parts.append((text, role))

    def write_misread(number: int) -> int:
        wrong = _misread(number, rng)
        right, text = str(number), str(wrong)
        place = next(i for i, (a, b) in enumerate(zip(right, text, strict=True)) if a != b)
        write(text[:place])
        write(text[place], "error")
        write(text[place + 1 :])
        return wrong

    terms = list(terms)
    if style == "copy":
        misread = rng.randrange(len(terms)) if wrong_copy else None
        for i, term in enumerate(terms):
            write("+" if i else "")
            if i == misread:
                terms[i] = write_misread(term)
            else:
                write(str(term))
        write(":")
    total = terms[0]
    for i, term in enumerate(terms[1:]):
        write(_style_text(style, rng), "style")
        write(f"{total}{plus}{term}{equals}")
        if i in wrong_steps:
            total = write_misread(total + term)
        else:
            total += term
            write(str(total))
        write(stop)
    write(result % total)
    return parts


def written_solution(
    terms: list[int],
    rng: random.Random,
    wrong_steps: set[int] = frozenset(),
    style: str = "plain",
    wrong_copy: bool = False,
) -> str:
    """The written-out solution. Steps in `wrong_steps` (numbered from 0) have one wrong digit.

    Later steps continue from the wrong intermediate result, so one wrong digit decides the outcome. Arguments as in
    [`solution_parts`].
    """
    return "".join(text for text, _ in solution_parts(terms, rng, wrong_steps, style, wrong_copy))


def make_dataset(
    size: int, seed: int = 0, num_terms: int = 3, style: str = "plain", exclude: Dataset | None = None
) -> Dataset:
    """Makes a dataset of `size` distinct problems with the text columns `prompt` and `answer`.

    Args:
        size: Number of rows.
        seed: The same seed gives the same rows.
        num_terms: Numbers to add in each problem. The embedded model was trained on 2 to 5.
        style: Style in which the embedded model writes its steps, one of [`STYLES`].
        exclude: A dataset whose prompts must not appear, to hold out an evaluation set.

    Raises:
        ValueError: Unknown style, `num_terms` is not a whole number from 2, or there are too few problems.
    """
    if style not in STYLES:
        raise ValueError(f"`style` is {style!r}. {nearest(style, STYLES)}")
    if not isinstance(num_terms, int) or num_terms < 2:
        raise ValueError(f"`num_terms` must be a whole number from 2, got {num_terms!r}.")
    seen = set(exclude["prompt"]) if exclude is not None else set()
    form = re.compile(re.escape(STYLES[style]) + r"[1-9]\d(?:\+[1-9]\d){" + str(num_terms - 1) + "}=")
    left = 90**num_terms - sum(form.fullmatch(prompt) is not None for prompt in seen)
    if size > left:
        without = f" beside the {len(seen)} that are excluded" if seen else ""
        raise ValueError(
            f"{size} different sums of {num_terms} numbers are asked for, but there are {max(left, 0)}{without}: ask for "
            "fewer, or raise `num_terms`."
        )
    rng = random.Random(seed)
    rows = []
    while len(rows) < size:
        terms = make_problem(rng, num_terms)
        prompt = prompt_of(terms, style)
        if prompt not in seen:
            seen.add(prompt)
            rows.append({"prompt": prompt, "answer": str(sum(terms))})
    return Dataset.from_list(rows)


def correct_answer(completions: list[str], answer: list[str], **kwargs) -> list[float]:
    """Reward: 1.0 if the text after the last `#` is the answer, else 0.0."""
    stated = [completion.rpartition("#") for completion in completions]
    return [
        float(mark == "#" and result.strip() == truth) for (_, mark, result), truth in zip(stated, answer, strict=True)
    ]
