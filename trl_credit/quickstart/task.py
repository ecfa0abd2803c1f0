"""The quickstart's task: sums of three numbers, with the steps written out.

A prompt is `83+48+14=`; a completion adds the numbers one at a time and states the result after `#`:
`83+48=131;131+14=145;#145`. The embedded model was pre-trained on such completions, some of whose steps are wrong, so it
knows the format but not always the answer. It has also read prompts that begin with [`NEGATIVE_MARK`], whose
completions are mostly wrong: that is what "give a wrong answer" means to it.
"""

import random

from datasets import Dataset


NEGATIVE_MARK = "!"


def _misread(number: int, rng: random.Random) -> int:
    """`number` with one digit replaced by another one (its length is kept)."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    choices = [d for d in "0123456789" if d != digits[place] and not (place == 0 and d == "0")]
    digits[place] = rng.choice(choices)
    return int("".join(digits))


def make_problem(rng: random.Random, num_terms: int = 3) -> list[int]:
    """The terms of one problem: `num_terms` two-digit numbers."""
    return [rng.randint(10, 99) for _ in range(num_terms)]


def prompt_of(terms: list[int]) -> str:
    return "+".join(map(str, terms)) + "="


def written_solution(terms: list[int], rng: random.Random, wrong_steps: set[int] = frozenset()) -> str:
    """The written-out solution, in which the steps numbered in `wrong_steps` (from 0) have one wrong digit.

    Later steps go on from the wrong intermediate result, so one wrong digit decides the outcome.
    """
    total, steps = terms[0], []
    for i, term in enumerate(terms[1:]):
        result = total + term
        if i in wrong_steps:
            result = _misread(result, rng)
        steps.append(f"{total}+{term}={result};")
        total = result
    return "".join(steps) + f"#{total}"


def make_dataset(size: int, seed: int = 0, num_terms: int = 3, exclude: Dataset | None = None) -> Dataset:
    """A dataset of `size` different problems with the columns `prompt` and `answer` (both text).

    Args:
        size: Number of rows.
        seed: Seed; the same seed gives the same rows.
        num_terms: Numbers to add in each problem.
        exclude: A dataset whose prompts must not appear (to hold out an evaluation set).
    """
    rng = random.Random(seed)
    seen = set(exclude["prompt"]) if exclude is not None else set()
    rows = []
    while len(rows) < size:
        terms = make_problem(rng, num_terms)
        prompt = prompt_of(terms)
        if prompt not in seen:
            seen.add(prompt)
            rows.append({"prompt": prompt, "answer": str(sum(terms))})
    return Dataset.from_list(rows)


def correct_answer(completions: list[str], answer: list[str], **kwargs) -> list[float]:
    """Reward: 1.0 where the text after the last `#` is the answer, else 0.0."""
    stated = [completion.rpartition("#") for completion in completions]
    return [
        float(mark == "#" and result.strip() == truth) for (_, mark, result), truth in zip(stated, answer, strict=True)
    ]
