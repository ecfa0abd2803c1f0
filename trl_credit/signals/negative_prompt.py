"""Log-probs of the same completion under a negative prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from .._trl import pad, prepare_multimodal_messages, split_pixel_values_by_grid
from ..batching import SEQUENCE_KEYS, cut_width, loss_mask, token_counts
from .base import PolicyForward, Signal, SignalSource
from .divergence import compare_distributions, gathered_head
from .models import FORWARD_KEYS, causal_model, check_backbone, completion_hidden_states, eval_mode


if TYPE_CHECKING:
    from .context import PolicyContext


logger = get_logger(__name__)

SLOT = "{prompt}"
COLUMN = "negative_prompt"
# Text templates; the wording is the official code's (examples/format_prompt of github.com/jacklishufan/gcpo).
TEMPLATES = {
    "wrong_answer": SLOT + "\n\nNote: Intentionally generate an incorrect answer.",
    "empty": "Answer the question.",
}
PAD = "pad"
BUILT_IN = (*TEMPLATES, "blank_image", PAD, "column")
# Rows checked before training starts; later ones are checked when they are generated
_MAX_ROWS = 10_000


def check_negative_prompt(negative_prompt: str) -> None:
    """Raises `ValueError` unless it is a built-in name or a text with the slot."""
    from .._util.text import nearest

    if negative_prompt not in BUILT_IN and SLOT not in negative_prompt:
        raise ValueError(
            f"`negative_prompt` is {negative_prompt!r}: neither a built-in negative prompt nor a text with the slot "
            f"{SLOT} for the prompt. {nearest(negative_prompt, BUILT_IN)}"
        )


def _blank(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"`negative_prompt: blank_image` needs PIL images, which `datasets` gives for an `Image` column; got "
            f"{type(image).__name__}."
        )
    return Image.new("RGB", image.size, (255, 255, 255)).convert(image.mode)


def _rewrite_text(content: str | list[dict], template: str) -> str | list[dict]:
    """Applies the template to a message's text (its last text part). Images stay in place."""
    if isinstance(content, str):
        return template.replace(SLOT, content)
    texts = [i for i, part in enumerate(content) if part.get("type") == "text"]
    last = {"type": "text", "text": template.replace(SLOT, content[texts[-1]]["text"] if texts else "")}
    if SLOT not in template:  # nothing of the prompt's text is kept
        return [part for part in content if part.get("type") != "text"] + [last]
    return [last if texts and i == texts[-1] else part for i, part in enumerate(content)] + ([] if texts else [last])


def negative_prompt_of(prompt: str | list[dict], negative_prompt: str, example: dict[str, Any]) -> str | list[dict]:
    """Returns the negative prompt x- of a prompt x, plain text or conversational. `prompt` is not modified.

    In a conversation only the last user message is rewritten. `column` reads the example's column `negative_prompt`: a
    text replaces the prompt (in a conversation, its last user message); a list of messages replaces the conversation.

    Raises:
        ValueError: The column is missing or empty, it holds messages for a plain-text prompt, the conversation has no
            user message, or `blank_image` meets an image that is not a PIL image.
    """
    if negative_prompt == "column":
        value = example.get(COLUMN)
        if not value or (isinstance(value, str) and not value.strip()):
            raise ValueError(
                f"`negative_prompt: column`, but the dataset's column {COLUMN!r} is "
                f"{'empty' if COLUMN in example else 'missing'} in the row with the prompt {_shortened(prompt)}."
            )
        if isinstance(value, list):
            if isinstance(prompt, str):
                raise ValueError(
                    f"The dataset's column {COLUMN!r} holds messages, but the prompt is plain text, in the row with "
                    f"the prompt {_shortened(prompt)}."
                )
            images = [part["image"] for part in _parts(prompt) if part.get("type") == "image"]
            return prepare_multimodal_messages(value, images=images) if images else value
        template = value
    elif negative_prompt == "blank_image":
        prompt = [
            {
                **message,
                "content": [
                    {**part, "image": _blank(part["image"])} if part.get("type") == "image" else part
                    for part in message["content"]
                ],
            }
            if isinstance(message["content"], list)
            else message
            for message in prompt
        ]
        return prompt
    else:
        template = TEMPLATES.get(negative_prompt, negative_prompt)
    if isinstance(prompt, str):
        return template.replace(SLOT, prompt)
    users = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not users:
        raise ValueError(f"No user message to make a negative prompt from in the prompt {_shortened(prompt)}.")
    last = users[-1]
    rewritten = {**prompt[last], "content": _rewrite_text(prompt[last]["content"], template)}
    return [*prompt[:last], rewritten, *prompt[last + 1 :]]


def padded_prompt(ids: list[int], kept: Collection[int], pad_token_id: int) -> list[int]:
    """Token ids of the negative prompt `pad`: every token of the prompt but those to keep is padding.

    It has the prompt's length and is attended to as a whole, like the unguided branch of an image-token model.

    Args:
        ids: The prompt's token ids, without the batch's padding.
        kept: Token ids to keep, wherever they stand.
        pad_token_id: Replaces the others.
    """
    return [token if token in kept else pad_token_id for token in ids]


def _parts(prompt: list[dict]) -> list[dict]:
    """The content parts of a multimodal conversation."""
    return [part for message in prompt if isinstance(message["content"], list) for part in message["content"]]


def _shortened(prompt: Any) -> str:
    text = repr(prompt)
    return text if len(text) <= 200 else text[:200] + "..."


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


class _NegativePromptSource(SignalSource):
    has_forward = True

    def __init__(self, negative_prompt: str):
        self.negative_prompt = negative_prompt
        if negative_prompt == "column":
            self.columns = (COLUMN,)
        # Each negative prompt has its own entries in TRL's batch
        self._key = f"negative_prompt/{negative_prompt}"
        self._warned = False

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        columns = getattr(arguments.get("train_dataset"), "column_names", None)
        if self.negative_prompt == "blank_image" and columns and not {"image", "images"} & set(columns):
            raise ValueError(
                "`negative_prompt: blank_image` needs a dataset with an `image` or `images` column; this one has only: "
                f"{', '.join(columns)}. Without images the negative prompt would equal the prompt."
            )
        if self.negative_prompt != "column":
            return
        evaluation = arguments.get("eval_dataset")
        datasets = {"train": arguments.get("train_dataset")}
        datasets |= evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
        for name, dataset in datasets.items():
            columns = getattr(dataset, "column_names", None)
            if columns is not None and COLUMN not in columns:
                raise ValueError(
                    f"`negative_prompt: column` needs a column {COLUMN!r}, but the {name} dataset has only: "
                    f"{', '.join(columns)}."
                )
            if isinstance(dataset, Dataset):
                for row, value in enumerate(dataset[COLUMN]):
                    if not value or (isinstance(value, str) and not value.strip()):
                        raise ValueError(f"The {name} dataset's column {COLUMN!r} is empty in row {row}.")

    def after_trainer_init(self, context: PolicyContext) -> None:
        dataset = context.train_dataset
        limit = context.context_length
        if self.negative_prompt == "blank_image" and not context.is_vision:
            raise ValueError("`negative_prompt: blank_image` needs a vision-language model; this model is text-only.")
        if self.negative_prompt == PAD:
            if context.is_vision:
                raise ValueError(
                    "`negative_prompt: pad` would replace the tokens of a prompt's images; this model is a vision-language "
                    "model. Use `blank_image`, or a text."
                )
            return  # as long as the prompt
        if limit is None or context.is_vision or isinstance(dataset, IterableDataset) or context.environment_factories:
            return
        if "prompt" not in dataset.column_names or not len(dataset):
            return  # TRL reports it
        rows = list(
            islice(dataset.select_columns([c for c in ("prompt", COLUMN) if c in dataset.column_names]), _MAX_ROWS)
        )
        negatives = [negative_prompt_of(row["prompt"], self.negative_prompt, row) for row in rows]
        longest = max(range(len(rows)), key=lambda row: len(str(negatives[row])))
        length, prompt_length = (
            len(context.tokenize_prompts([prompt])[0][0]) for prompt in (negatives[longest], rows[longest]["prompt"])
        )
        # If the prompt itself does not fit either, TRL trains on it anyway, so the negative prompt is not to blame
        if prompt_length + context.max_completion_length <= limit < length + context.max_completion_length:
            raise ValueError(
                f"The negative prompt of row {longest} has {length} tokens; with `max_completion_length` "
                f"({context.max_completion_length}) that is more than the model's context of {limit}. Shorten the "
                "negative prompt, lower `max_completion_length` or drop the row."
            )

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        if self.negative_prompt == PAD:
            pad_token_id = context.tokenizer.pad_token_id
            rows = zip(batch["prompt_ids"], batch["prompt_mask"].bool(), strict=True)
            negatives, images, fields = prompts, None, {}
            ids = [padded_prompt(row[mask].tolist(), context.frame_token_ids, pad_token_id) for row, mask in rows]
        else:
            negatives = [
                negative_prompt_of(prompt, self.negative_prompt, example)
                for prompt, example in zip(prompts, examples, strict=True)
            ]
            ids, images, fields = context.tokenize_prompts(negatives)

        lengths = batch["completion_mask"].sum(-1).tolist()
        limit = context.context_length or float("inf")
        # Where the prompt itself does not fit, its negative may be as long
        rooms = [
            max(limit - length, prompt_length)
            for length, prompt_length in zip(lengths, batch["prompt_mask"].sum(-1).tolist(), strict=True)
        ]
        overlong = [len(row) > room for row, room in zip(ids, rooms, strict=True)]
        if any(overlong):
            if not self._warned:
                logger.warning(
                    "%d negative prompts do not fit the model's context of %d tokens together with their completions; "
                    "such completions get uniform weights and are counted in `credit/nonfinite_tokens`. The first: %s",
                    sum(overlong),
                    context.context_length,
                    _shortened(negatives[overlong.index(True)]),
                )
                self._warned = True
            ids = [row[-int(room) :] if len(row) > room else row for row, room in zip(ids, rooms, strict=True)]

        device = context.accelerator.device

        def left_padded(rows: list[list[int]], value: int) -> torch.Tensor:
            tensors = [torch.as_tensor(row) for row in rows]
            padded = pad(
                tensors, padding_value=value, padding_side="left", pad_to_multiple_of=context.pad_to_multiple_of
            )
            return padded.to(device)

        batch[f"{self._key}/ids"] = left_padded(ids, context.tokenizer.pad_token_id)
        batch[f"{self._key}/mask"] = left_padded([[1] * len(row) for row in ids], 0)
        batch[f"{self._key}/overlong"] = torch.tensor(overlong, device=device)
        batch[f"{self._key}/length"] = [len(row) for row in ids]
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                rows = fields.get(name, [[0] * len(row) for row in ids])
                batch[f"{self._key}/{name}"] = left_padded([list(row) for row in rows], 0)
        if self.negative_prompt == "blank_image" and batch.get("pixel_values") is not None:
            blank = context.processing_class.image_processor(images=images, return_tensors="pt")["pixel_values"]
            if blank.shape != batch["pixel_values"].shape:
                raise ValueError(
                    "`negative_prompt: blank_image` is not supported here: the white images were processed to "
                    f"{tuple(blank.shape)}, the prompts' to {tuple(batch['pixel_values'].shape)}. Use another "
                    "negative prompt."
                )
            pixel_values = blank.to(batch["pixel_values"])
            # One entry per completion, as TRL splits its pixel values before shuffling the batch
            per_completion = split_pixel_values_by_grid({**batch, "pixel_values": pixel_values})["pixel_values"]
            batch[f"{self._key}/pixel_values"] = per_completion

    def lengths(self, batch: dict[str, Any]) -> np.ndarray:
        lengths = token_counts(batch)
        lengths[:, 0] = batch[f"{self._key}/length"]
        return lengths

    def _negative(self, context: PolicyContext, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with negative prompts instead of prompts."""
        negative = {key: batch[key] for key in ("completion_ids", "completion_mask", *FORWARD_KEYS) if key in batch}
        width = cut_width(max(batch[f"{self._key}/length"]), context.pad_to_multiple_of)
        negative["prompt_ids"] = batch[f"{self._key}/ids"][:, -width:]
        negative["prompt_mask"] = batch[f"{self._key}/mask"][:, -width:]
        for name in SEQUENCE_KEYS:
            if name in batch:
                completion = batch[name][:, batch["prompt_ids"].size(1) :]
                negative[name] = torch.cat([batch[f"{self._key}/{name}"][:, -width:], completion], dim=1)
        blank = batch.get(f"{self._key}/pixel_values")
        if blank is not None and "pixel_values" in batch:
            negative["pixel_values"] = torch.cat(blank) if isinstance(blank, list) else blank
        return negative

    def forward(self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]) -> Float[Tensor, "rows tokens"]:
        negative = self._negative(context, batch)
        with eval_mode(model):
            logps, _, _ = context.policy_logps_and_entropies(
                model,
                torch.cat([negative["prompt_ids"], negative["completion_ids"]], dim=1),
                torch.cat([negative["prompt_mask"], negative["completion_mask"]], dim=1),
                negative["completion_ids"].size(1),
                **{key: negative.get(key) for key in FORWARD_KEYS},
            )
        return logps

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens"],
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
        return own.masked_fill(batch[f"{self._key}/overlong"].unsqueeze(1), torch.nan)


class _NegativePromptKLSource(_NegativePromptSource):
    needs_hidden_states = True

    def after_trainer_init(self, context: PolicyContext) -> None:
        super().after_trainer_init(context)
        check_backbone(causal_model(context.accelerator.unwrap_model(context.model)))

    def forward(
        self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]
    ) -> Float[Tensor, "rows tokens hidden"]:
        return completion_hidden_states(context, model, context.policy_hidden_states, self._negative(context, batch))

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens hidden"],
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
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
