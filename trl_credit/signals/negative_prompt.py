"""Log-probs of the same completion under a negative prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from .._trl import prepare_multimodal_messages
from ..batching import loss_mask
from ..toy.arithmetic import NEGATIVE_MARK
from .base import PolicyForward, Signal
from .divergence import compare_distributions, gathered_head
from .models import causal_model, check_backbone, completion_hidden_states
from .second_prompt import (
    SLOT,
    Prompt,
    SecondPromptSource,
    Tokenized,
    check_column,
    check_image_column,
    check_vision,
    content_parts,
    is_empty,
    processed_images,
    rewritten,
    shortened,
    with_images_replaced,
)


if TYPE_CHECKING:
    from .context import PolicyContext


COLUMN = "negative_prompt"
# Text templates. The embedded model cannot read the first: its own way of being asked for a wrong answer takes its place,
# whoever uses the signal. The wording is the official code's (examples/format_prompt of github.com/jacklishufan/gcpo).
WRONG_ANSWER = "wrong_answer"
TEMPLATES = {
    WRONG_ANSWER: SLOT + "\n\nNote: Intentionally generate an incorrect answer.",
    "empty": "Answer the question.",
}
PAD = "pad"
# Tokens of the first with Qwen's tokenizer
_NOTE = 15
BUILT_IN = (*TEMPLATES, "blank_image", PAD, "column")
_BLANK_IMAGE = "`negative_prompt: blank_image`"  # for messages


def check_negative_prompt(negative_prompt: str) -> None:
    """Raises `ValueError` unless it is a built-in name or a text with the slot."""
    from .._util.text import nearest

    if negative_prompt not in BUILT_IN and SLOT not in negative_prompt:
        raise ValueError(
            f"`negative_prompt` is {negative_prompt!r}: neither a built-in negative prompt nor a text with the slot "
            f"{SLOT} for the prompt. {nearest(negative_prompt, BUILT_IN)}"
        )


def _blank(image: Image.Image, place: int) -> Image.Image:
    return Image.new("RGB", image.size, (255, 255, 255)).convert(image.mode)


def negative_prompt_of(
    prompt: str | list[dict], negative_prompt: str, example: dict[str, Any]
) -> str | list[dict] | None:
    """Returns the negative prompt x- of a prompt x, plain text or conversational. `prompt` is not modified.

    In a conversation only the last user message is rewritten. `column` reads the example's column `negative_prompt`: a
    text replaces the prompt (in a conversation, its last user message); a list of messages replaces the conversation.
    `None` if it is empty.

    Raises:
        ValueError: The column holds messages for a plain-text prompt, the conversation has no user message, or
            `blank_image` meets an image that is not a PIL image.
    """
    if negative_prompt == "column":
        value = example.get(COLUMN)
        if is_empty(value):
            return None
        if isinstance(value, list):
            if isinstance(prompt, str):
                raise ValueError(
                    f"The dataset's column {COLUMN!r} holds messages, but the prompt is plain text, in the row with "
                    f"the prompt {shortened(prompt)}."
                )
            images = [part["image"] for part in content_parts(prompt) if part.get("type") == "image"]
            return prepare_multimodal_messages(value, images=images) if images else value
        template = value
    elif negative_prompt == "blank_image":
        return with_images_replaced(prompt, _blank, _BLANK_IMAGE)
    else:
        template = TEMPLATES.get(negative_prompt, negative_prompt)
    return rewritten(prompt, template, noun="negative prompt")


def padded_prompt(ids: list[int], kept: Collection[int], pad_token_id: int) -> list[int]:
    """Token ids of the negative prompt `pad`: every token of the prompt but those to keep is padding.

    It has the prompt's length and is attended to as a whole, like the unguided branch of an image-token model.

    Args:
        ids: The prompt's token ids, without the batch's padding.
        kept: Token ids to keep, wherever they stand.
        pad_token_id: Replaces the others.
    """
    return [token if token in kept else pad_token_id for token in ids]


@dataclass(frozen=True)
class NegativePromptLogps(Signal):
    """(B, T) float32 log-probs, in nats, of the completion's tokens under the live policy after the negative prompt, at
    the rollout temperature.

    Args:
        negative_prompt: `wrong_answer`, `empty`, `blank_image`, `pad`, `column`, or a text with the slot `{prompt}`.
    """

    negative_prompt: str = "wrong_answer"

    title = "negative-prompt log-prob"

    def source(self) -> _NegativePromptSource:
        return _NegativePromptSource(self.negative_prompt)


@dataclass(frozen=True)
class NegativePromptKL(Signal):
    """(B, T) float32 KL(pi(. | x) || pi(. | x-)), in nats, between the live policy's next-token distributions after the
    prompt x and the negative prompt x-, at the rollout temperature.

    Args:
        negative_prompt: As for [`NegativePromptLogps`].
    """

    negative_prompt: str = "wrong_answer"

    title = "KL to the negative prompt"

    def source(self) -> _NegativePromptKLSource:
        return _NegativePromptKLSource(self.negative_prompt)


class _NegativePromptSource(SecondPromptSource):
    noun = "negative prompt"
    neutral = "uniform weights"

    def __init__(self, negative_prompt: str):
        super().__init__(f"negative_prompt/{negative_prompt}")
        self.negative_prompt = negative_prompt
        if negative_prompt == "column":
            self.columns = (COLUMN,)

    def added_tokens(self, completion: int) -> int:
        return 0 if self.negative_prompt in ("blank_image", PAD) else _NOTE

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        if self.negative_prompt == "blank_image":
            check_image_column(arguments, _BLANK_IMAGE)
        if self.negative_prompt == "column":
            check_column(arguments, COLUMN, "`negative_prompt: column`")

    def after_trainer_init(self, context: PolicyContext) -> None:
        from ..toy.build_model import is_embedded_tokenizer

        if self.negative_prompt == WRONG_ANSWER and is_embedded_tokenizer(context.tokenizer):
            self.negative_prompt = NEGATIVE_MARK + SLOT
        if self.negative_prompt == "blank_image":
            check_vision(context, _BLANK_IMAGE)
        if self.negative_prompt == PAD:
            if context.is_vision:
                raise ValueError(
                    "`negative_prompt: pad` would replace the tokens of a prompt's images; this model is a vision-language "
                    "model. Use `blank_image`, or a text."
                )
            return  # as long as the prompt
        self.check_lengths(
            context, lambda row: negative_prompt_of(row["prompt"], self.negative_prompt, row), columns=(COLUMN,)
        )

    def second_prompts(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> list[Prompt | None]:
        return [
            negative_prompt_of(prompt, self.negative_prompt, example)
            for prompt, example in zip(prompts, examples, strict=True)
        ]

    def tokenized(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> Tokenized:
        if self.negative_prompt != PAD:
            return super().tokenized(context, examples, prompts, batch)
        pad_token_id = context.tokenizer.pad_token_id
        rows = zip(batch["prompt_ids"], batch["prompt_mask"].bool(), strict=True)
        ids = [padded_prompt(row[mask].tolist(), context.frame_token_ids, pad_token_id) for row, mask in rows]
        return Tokenized(prompts, ids)

    def add_images(self, context: PolicyContext, images: Any, batch: dict[str, Any]) -> None:
        if self.negative_prompt == "blank_image" and batch.get("pixel_values") is not None:
            batch[f"{self.key}/pixel_values"] = processed_images(context, images, batch, _BLANK_IMAGE)


class _NegativePromptKLSource(_NegativePromptSource):
    needs_hidden_states = True

    def after_trainer_init(self, context: PolicyContext) -> None:
        super().after_trainer_init(context)
        check_backbone(causal_model(context.accelerator.unwrap_model(context.model)))

    def forward(
        self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]
    ) -> Float[Tensor, "rows tokens hidden"]:
        return completion_hidden_states(
            context, model, context.policy_hidden_states, self.with_second_prompts(context, batch)
        )

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens hidden"] | None,
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
        if own is None:  # no negative prompt fits
            return super().compute(context, batch, None, policy)
        with gathered_head(causal_model(context.accelerator.unwrap_model(context.model))) as head:
            divergence = compare_distributions(
                policy.hidden_states,
                head,
                own,
                head,
                loss_mask(batch),
                ("kl",),
                context.temperature,
                context.head_dtype,
            )["kl"]
        return super().compute(context, batch, divergence, policy)
