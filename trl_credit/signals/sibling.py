"""Log-probs of the same completion under the prompt with another completion of its group in it."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from .._util.once import Once
from ..batching import GROUPS, REWARDS, SHARED
from .base import Signal
from .second_prompt import SLOT, Prompt, SecondPromptSource, check_template, rewritten


if TYPE_CHECKING:
    from .context import PolicyContext


KINDS = ("right", "wrong")
SOLUTION, ANSWER = "{solution}", "{answer}"
# The parts are those of RLCSD's neutral template (src/opsd_format.py of github.com/THU-BPM/RLCSD); the words are ours.
# Right and wrong siblings get the same text
TEMPLATES = {
    "default": (
        f"{SLOT}\n\nA reference solution of this problem follows.\n--- Start of the reference solution ---\n{SOLUTION}\n\n"
        f"The correct final answer: {ANSWER}\n--- End of the reference solution ---\n\nFirst make sure that you understand "
        "every step of the reference solution. Then solve the problem, step by step."
    )
}

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def check_sibling_template(template: str) -> None:
    """Raises `ValueError` unless the template is a built-in name or has the slots for prompt and solution."""
    check_template(template, TEMPLATES, (SLOT, SOLUTION), "template")


def boxed_answer(text: str) -> str | None:
    r"""What stands in a text's last closed, nonempty `\boxed{...}`; `None` if there is none."""
    for start in reversed([found.end() for found in _BOX.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                if answer := text[start:place].strip():
                    return answer
                break
    return None


def sibling_prompt_of(prompt: Prompt, template: str, solution: str) -> Prompt:
    """The prompt, plain text or conversational, with a sibling in it. `prompt` is not modified.

    A sibling without a box has no answer to name, so the template's lines with the slot `{answer}` are left out.
    """
    template = TEMPLATES.get(template, template)
    answer = boxed_answer(solution)
    if answer is None:
        template = "\n".join(line for line in template.split("\n") if ANSWER not in line)
    return rewritten(prompt, template, {"solution": solution.strip(), "answer": answer or ""}, "hint")


@functools.lru_cache(maxsize=4096)  # each completion meets every sibling, for each hint
def _digest(token_ids: tuple[int, ...]) -> bytes:
    return hashlib.sha256(repr(token_ids).encode()).digest()


def siblings_of(
    row: int, completions: Sequence[Sequence[int]], groups: Sequence[int], rewards: Sequence[float], kind: str,
    threshold: float,
) -> list[int]:  # fmt: skip
    """The row's siblings of a kind, in an order that is random but depends on the completions' tokens only.

    Args:
        row: The row, which is not its own sibling.
        completions: (N,) token ids. An empty one is no sibling.
        groups: (N,) numbers of their prompts.
        rewards: (N,) rewards; NaN is neither right nor wrong.
        kind: `right`, a reward above the threshold, or `wrong`.
        threshold: The threshold.
    """

    def fits(reward: float) -> bool:
        return not math.isnan(reward) and (reward > threshold) == (kind == "right")

    def draw(other: int) -> bytes:
        both = _digest(tuple(completions[row])) + _digest(tuple(completions[other]))
        return hashlib.sha256(kind.encode() + both).digest()

    pool = [i for i in range(len(groups)) if i != row and groups[i] == groups[row] and completions[i]]
    return sorted((i for i in pool if fits(rewards[i])), key=lambda i: (draw(i), i))


@dataclass(frozen=True)
class SiblingLogps(Signal):
    """(B, T) float32 log-probs, in nats, of the completion's tokens under the live policy after the prompt with a sibling
    in it, at the rollout temperature. A sibling is another completion of the group.

    Only completions with siblings of both kinds have hints, as a contrast needs both. The others, and those with fewer
    siblings of the kind than `place` asks for, have the policy's own log-probs, without a forward; [`HasSecondPrompt`]
    tells them apart.

    Args:
        kind: `right`, a sibling with a reward above the threshold, or `wrong`.
        place: Which one, from 0, in a random order that depends on the completions only.
        template: `default`, or a text with the slots `{prompt}`, `{solution}` and, for what is in the sibling's box,
            `{answer}`.
        threshold: The reward above which a sibling is right.
    """

    kind: str = "right"
    place: int = 0
    template: str = "default"
    threshold: float = 0.0

    @property
    def title(self) -> str:
        return f"log-prob after a {self.kind} sibling" + (f" {self.place + 1}" if self.place else "")

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be 'right' or 'wrong', got {self.kind!r}.")

    def source(self) -> _SiblingSource:
        return _SiblingSource(self)


class _SiblingSource(SecondPromptSource):
    noun = "hint"
    optional = True
    needs_groups = True

    def __init__(self, signal: SiblingLogps):
        super().__init__(f"sibling/{signal.kind}/{signal.place}/{signal.threshold}/{signal.template}")
        self.signal = signal

    def added_tokens(self, completion: int) -> int:
        return completion + 64  # and the template's text

    def second_prompts(
        self, context: PolicyContext, examples: list[dict], prompts: list[Prompt], batch: dict[str, Any]
    ) -> list[Prompt | None]:
        signal = self.signal
        shared = batch[SHARED].once("completions", lambda: _Gathered(context, batch))
        first = context.accelerator.process_index * len(prompts)
        found: list[Prompt | None] = []
        for row, prompt in enumerate(prompts, first):
            of_kinds = {kind: shared.siblings(row, kind, signal.threshold) for kind in KINDS}
            siblings = of_kinds[signal.kind]
            if len(siblings) <= signal.place or not all(of_kinds.values()):
                found.append(None)
                continue
            text = context.tokenizer.decode(shared.completions[siblings[signal.place]], skip_special_tokens=True)
            found.append(sibling_prompt_of(prompt, signal.template, text))
        return found


class _Gathered(Once):
    """The completions of all processes in a generation batch, for the hints of every kind and place."""

    def __init__(self, context: PolicyContext, batch: dict[str, Any]):
        rows = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
        self.completions = gather_object([ids[mask].tolist() for ids, mask in rows])
        gather = context.accelerator.gather
        self._groups, self._rewards = (gather(batch[key]).tolist() for key in (GROUPS, REWARDS))

    def siblings(self, row: int, kind: str, threshold: float) -> list[int]:
        """See [`siblings_of`]."""
        return self.once(
            (row, kind, threshold),
            lambda: siblings_of(row, self.completions, self._groups, self._rewards, kind, threshold),
        )
