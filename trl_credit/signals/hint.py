"""Log-probs of the same completion under the prompt with the reference answer in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Signal
from .second_prompt import (
    SLOT,
    Prompt,
    SecondPromptSource,
    check_column,
    check_template,
    is_empty,
    rewritten,
)


if TYPE_CHECKING:
    from .context import PolicyContext


ANSWER = "{answer}"
# The parts are those of RLSD's template (teacher_hint_self_distill.jinja of github.com/iie-ycx/RLSD); the words are ours
TEMPLATES = {
    "default": (
        f"{SLOT}\n\nThe reference solution of this problem:\n{ANSWER}\n\nOnce you understand the reference solution, solve "
        "the problem yourself, in your own way."
    )
}


def check_hint(template: str, column: str) -> None:
    """Raises `ValueError` unless the template is a built-in name or has both slots, and the column has a name."""
    check_template(template, TEMPLATES, (SLOT, ANSWER), "template")
    if not column.strip():
        raise ValueError(f"`column` is {column!r}. Name the dataset's column that holds the reference answer.")


def answer_text(value: Any) -> str:
    """A reference answer as text. Of a list, in which any item is right: all of them."""
    return " or ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def hint_prompt_of(prompt: Prompt, template: str, column: str, example: Mapping[str, Any]) -> Prompt | None:
    """The prompt, plain text or conversational, with the reference answer in it; `None` without an answer. `prompt` is not
    modified.

    Raises:
        ValueError: The conversation has no user message.
    """
    value = example.get(column)
    if is_empty(value):
        return None
    return rewritten(prompt, TEMPLATES.get(template, template), {"answer": answer_text(value)}, "hint")


@dataclass(frozen=True)
class HintLogps(Signal):
    """(B, T) float32 log-probs, in nats, of the completion's tokens under the live policy after the prompt with the
    reference answer in it, at the rollout temperature.

    Args:
        template: `default`, or a text with the slots `{prompt}` and `{answer}`.
        column: The dataset's column with the reference answer: text, a number, or a list of right answers.
    """

    template: str = "default"
    column: str = "solution"

    title = "log-prob after a hint"

    def source(self) -> _HintSource:
        return _HintSource(self.template, self.column)


class _HintSource(SecondPromptSource):
    noun = "hint"

    def __init__(self, template: str, column: str):
        super().__init__(f"hint/{column}/{template}")
        self.template, self.column = template, column
        self.columns = (column,)
        self.way_out = "Name the column of the answers: `column` is a parameter of the credit method."

    def added_tokens(self, completion: int) -> int:
        return 256  # a short solution; a bare answer has fewer

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        check_column(arguments, self.column, f"A hint with `column: {self.column}`", f" {self.way_out}")

    def after_trainer_init(self, context: PolicyContext) -> None:
        self.check_lengths(
            context, lambda row: hint_prompt_of(row["prompt"], self.template, self.column, row), (self.column,)
        )

    def second_prompts(
        self, context: PolicyContext, examples: list[dict], prompts: list[Prompt], batch: dict[str, Any]
    ) -> list[Prompt | None]:
        return [
            hint_prompt_of(prompt, self.template, self.column, example)
            for prompt, example in zip(prompts, examples, strict=True)
        ]
