"""The policy's own errors: wrong completions that it sampled, and the token where they went wrong.

A planted digit is drawn uniformly, so it is far more surprising than what the policy would write, and surprisal finds
it. Errors sampled from the policy at temperature 1 are exactly as surprising as the policy makes them. They still stand
out where everything else is certain, but less so among letters that are about as surprising. The deciding token is
known because the sums can be checked.

    own_error         chains of 3 to 5 terms
    own_error_style   3 terms, with random letters between the steps

At most one completion per prompt is used, so that items are independent. Completions are discarded if they are right,
malformed, or have several mistakes (since it is unknown which one decided).

An item's siblings are other samples of its prompt. If none of them is right, GRPO would learn nothing from the group, and
the last is replaced by a written-out solution.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..inspection.scoring import Completion, CreditScorer
from ..toy.arithmetic import NUM_LETTERS, correct_answer, make_problem, prompt_of, written_solution
from .tasks import OWN_ERRORS, Item, tokens_and_labels


MAX_COMPLETION_TOKENS = 96
GENERATIONS = 2
# Siblings that are sampled for each item, beside the other completion of its prompt
MORE_GENERATIONS = 6
PROMPTS_PER_ITEM = 16
_PROMPTS_PER_BATCH = 128
_NUMBER = r"(0|[1-9]\d*)"
_STYLES = {"plain": "", "letters": f"[a-z]{{{NUM_LETTERS}}}"}


@dataclass
class OwnErrors:
    """Items of one policy, and counts of everything that was sampled for them.

    Args:
        items: The items.
        encoded: For each item, its token ids and which of them are deciding.
        siblings: For each item, the token ids of the other completions of its prompt, each with its reward.
        written: Number of siblings that were written, as the policy had none that is right.
        counts: Completions by outcome: `right`, `malformed`, `several_mistakes`, `usable`; and `sampled`, their total.
    """

    items: list[Item] = field(default_factory=list)
    encoded: list[tuple[list[int], list[bool]]] = field(default_factory=list)
    siblings: list[list[tuple[list[int], float]]] = field(default_factory=list)
    written: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("sampled", "right", "malformed", "several_mistakes", "usable"), 0)
    )


def find_mistake(terms: Sequence[int], completion: str, style: str = "plain") -> tuple[str, tuple[int, int] | None]:
    """Classifies a completion in the `compact` rendering. If it is `usable`, returns the position of its one mistake.

    A number is a mistake if it does not follow from the prompt and the numbers before it, including mistaken ones. The
    mistake is at the first character that differs from the expected number, or after the number if digits are missing.
    """
    step = rf"{_STYLES[style]}{_NUMBER}\+{_NUMBER}=({_NUMBER[1:-1]});"
    match = re.fullmatch(step * (len(terms) - 1) + f"#{_NUMBER}", completion, flags=re.ASCII)
    if match is None:
        return "malformed", None
    written = [int(number) for number in match.groups()]
    expected, total = [], terms[0]
    for i, term in enumerate(terms[1:]):
        left, right, result = written[3 * i : 3 * i + 3]
        expected += [total, term, left + right]
        total = result
    expected.append(total)
    mistakes = [i for i, (a, b) in enumerate(zip(written, expected, strict=True)) if a != b]
    if written[-1] == sum(terms):
        return "right", None
    if len(mistakes) > 1:
        return "several_mistakes", None
    wrong, right = match[mistakes[0] + 1], str(expected[mistakes[0]])
    same = next((i for i, (a, b) in enumerate(zip(wrong, right, strict=False)) if a != b), min(len(wrong), len(right)))
    start = match.start(mistakes[0] + 1) + same
    if start == len(completion):
        return "usable", (start, start)  # it ended too early
    return "usable", (start, start + 1)


def sample_own_errors(scorer: CreditScorer, variant: str, num_items: int, seed: int = 0) -> OwnErrors:
    """Samples up to `num_items` errors from the scorer's policy; fewer if it makes too few. Deterministic by seed."""
    tokenizer: Any = scorer.tokenizer
    style = OWN_ERRORS[variant]
    rng = random.Random(f"{seed}/{variant}")
    found, others = OwnErrors(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(32))
        for start in range(0, PROMPTS_PER_ITEM * num_items, _PROMPTS_PER_BATCH):
            problems = [
                make_problem(rng, rng.randint(3, 5) if style == "plain" else 3)
                for _ in range(min(_PROMPTS_PER_BATCH, PROMPTS_PER_ITEM * num_items - start))
            ]
            completions = scorer.generate(
                [{"prompt": prompt_of(terms, style)} for terms in problems],
                GENERATIONS,
                max_rows=_PROMPTS_PER_BATCH * GENERATIONS,
            )
            for i, terms in enumerate(problems):
                own = completions[i * GENERATIONS : (i + 1) * GENERATIONS]
                judged = [_judged(completion, terms, style, tokenizer) for completion in own]
                for outcome, _ in judged:
                    found.counts[outcome] += 1
                    found.counts["sampled"] += 1
                place = next((place for place, (_, item) in enumerate(judged) if item is not None), None)
                if place is not None and len(found.items) < num_items:
                    item, encoded = judged[place][1]
                    columns = {
                        "answer": str(sum(terms)),
                        "solution": written_solution(terms, random.Random(item.prompt), style=style),
                    }
                    found.items.append(dataclasses.replace(item, columns=columns))
                    found.encoded.append(encoded)
                    others.append([list(completion.token_ids) for k, completion in enumerate(own) if k != place])
            if len(found.items) == num_items:
                break
        if found.items:
            _add_siblings(found, others, scorer)
    return found


def _add_siblings(found: OwnErrors, others: Sequence[list[list[int]]], scorer: CreditScorer) -> None:
    """Samples more siblings of each item than the `others` of its prompt, and rewards all."""
    tokenizer: Any = scorer.tokenizer
    rows = scorer.generate(
        [{"prompt": item.prompt} for item in found.items],
        MORE_GENERATIONS,
        max_rows=_PROMPTS_PER_BATCH * GENERATIONS,
    )
    for i, (item, first) in enumerate(zip(found.items, others, strict=True)):
        more = rows[i * MORE_GENERATIONS : (i + 1) * MORE_GENERATIONS]
        ids = [*first, *(list(completion.token_ids) for completion in more)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        rewards = correct_answer(texts, [item.columns["answer"]] * len(texts))
        if not any(rewards):
            ids[-1] = [*tokenizer(item.columns["solution"])["input_ids"], tokenizer.eos_token_id]
            rewards[-1] = 1.0
            found.written += 1
        found.siblings.append(list(zip(ids, rewards, strict=True)))


def _judged(completion: Completion, terms: list[int], style: str, tokenizer: Any) -> tuple[str, tuple | None]:
    """The outcome. For a usable completion, also the item with its token ids and labels."""
    ids = list(completion.token_ids)
    if not ids or ids[-1] != tokenizer.eos_token_id:
        return "malformed", None
    text = tokenizer.decode(ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    outcome, span = find_mistake(terms, text, style)
    if span is None:
        return outcome, None
    item = Item(completion.prompt, text, (span,))
    if span[0] == len(text):
        return outcome, (item, (ids, [False] * (len(ids) - 1) + [True]))
    # The policy sampled these tokens: a different tokenization would not be its own
    encoded = tokens_and_labels(item, tokenizer)
    return (outcome, (item, encoded)) if encoded[0] == ids else ("malformed", None)
