"""Log-probs of the same completion under a second prompt: what negative prompts, hints and siblings have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from .._trl import pad, split_pixel_values_by_grid
from ..batching import SEQUENCE_KEYS, cut_width, token_counts
from .base import PolicyForward, Signal, SignalSource
from .models import FORWARD_KEYS, eval_mode


if TYPE_CHECKING:
    from .context import PolicyContext


logger = get_logger(__name__)

Prompt = str | list[dict]

SLOT = "{prompt}"
# Rows checked before training starts; later ones are checked when they are generated
_MAX_ROWS = 10_000


# Prompts


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values into the slots `{name}` of a template. Braces in the values, and other braces, stay as they are."""
    slots = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({slots})\}}", lambda found: values[found[1]], template)


def _rewrite_text(content: str | list[dict], template: str, values: Mapping[str, str]) -> str | list[dict]:
    """Applies the template to a message's text (its last text part). Images stay in place."""
    if isinstance(content, str):
        return fill(template, {**values, "prompt": content})
    texts = [i for i, part in enumerate(content) if part.get("type") == "text"]
    text = content[texts[-1]]["text"] if texts else ""
    last = {"type": "text", "text": fill(template, {**values, "prompt": text})}
    if SLOT not in template:  # nothing of the prompt's text is kept
        return [part for part in content if part.get("type") != "text"] + [last]
    return [last if texts and i == texts[-1] else part for i, part in enumerate(content)] + ([] if texts else [last])


def rewritten(
    prompt: Prompt, template: str, values: Mapping[str, str] | None = None, noun: str = "second prompt"
) -> Prompt:
    """Applies a template to a prompt, plain text or conversational. `prompt` is not modified.

    In a conversation only the last user message is rewritten.

    Args:
        prompt: Text or messages.
        template: A text with the slot `{prompt}` for the prompt's text.
        values: Texts for its other slots.
        noun: What the result is, for messages.

    Raises:
        ValueError: The conversation has no user message.
    """
    values = values or {}
    if isinstance(prompt, str):
        return fill(template, {**values, "prompt": prompt})
    users = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not users:
        raise ValueError(f"No user message to make a {noun} from in the prompt {shortened(prompt)}.")
    last = users[-1]
    changed = {**prompt[last], "content": _rewrite_text(prompt[last]["content"], template, values)}
    return [*prompt[:last], changed, *prompt[last + 1 :]]


def check_template(template: str, built_in: Mapping[str, str], slots: Sequence[str], field: str) -> None:
    """Raises `ValueError` unless `template` is a built-in name or a text with the slots."""
    from .._util.text import nearest

    missing = [slot for slot in slots if slot not in template]
    if template not in built_in and missing:
        raise ValueError(
            f"`{field}` is {template!r}: neither a built-in template nor a text with the slots "
            f"{' and '.join(slots)} ({', '.join(missing)} is missing). {nearest(template, built_in)}"
        )


def shortened(value: Any) -> str:
    """A value as text for a message, of at most 200 characters and dots."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


# Images of a prompt


def content_parts(prompt: Prompt) -> list[dict]:
    """The content parts of a multimodal conversation; none for text."""
    if isinstance(prompt, str):
        return []
    return [part for message in prompt if isinstance(message["content"], list) for part in message["content"]]


def with_images_replaced(prompt: Prompt, replace: Callable[[Image.Image, int], Image.Image], setting: str) -> Prompt:
    """A prompt with other images in the same places. `prompt` is not modified.

    Args:
        prompt: Text or messages.
        replace: Makes the new image from the old one and its place among the prompt's images, from 0.
        setting: What asks for it, for messages.

    Raises:
        ValueError: An image is not a PIL image.
    """
    if isinstance(prompt, str):
        return prompt
    places = count()

    def part_of(part: dict) -> dict:
        if part.get("type") != "image":
            return part
        image = part["image"]
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"{setting} needs PIL images, which `datasets` gives for an `Image` column; got {type(image).__name__}."
            )
        return {**part, "image": replace(image, next(places))}

    return [
        {**message, "content": list(map(part_of, message["content"]))}
        if isinstance(message["content"], list)
        else message
        for message in prompt
    ]


def check_image_column(arguments: dict[str, Any], setting: str) -> None:
    """Raises `ValueError` if the training data among the trainer's arguments has no column of images."""
    columns = getattr(arguments.get("train_dataset"), "column_names", None)
    if columns and not {"image", "images"} & set(columns):
        raise ValueError(
            f"{setting} needs a dataset with an `image` or `images` column; this one has only: {', '.join(columns)}. "
            "Without images both prompts would be the same."
        )


def check_vision(context: PolicyContext, setting: str) -> None:
    """Raises `ValueError` unless the policy is a vision-language model."""
    if not context.is_vision:
        raise ValueError(f"{setting} needs a vision-language model; this model is text-only.")


def processed_images(
    context: PolicyContext, images: Sequence[Sequence[Image.Image] | None] | None, batch: dict[str, Any], setting: str
) -> list[Tensor] | Tensor | None:
    """Pixel values of other images than the prompts', one entry per completion, as TRL splits its own before it shuffles
    the batch. `None` if the batch has no images.

    Raises:
        ValueError: They have another shape than the prompts' own.
    """
    if batch.get("pixel_values") is None:
        return None
    shown = [row for row in images or [] if row]
    pixel_values = context.processing_class.image_processor(images=shown, return_tensors="pt")["pixel_values"]
    if pixel_values.shape != batch["pixel_values"].shape:
        raise ValueError(
            f"{setting} is not supported here: its images were processed to {tuple(pixel_values.shape)}, the prompts' to "
            f"{tuple(batch['pixel_values'].shape)}."
        )
    return split_pixel_values_by_grid({**batch, "pixel_values": pixel_values.to(batch["pixel_values"])})["pixel_values"]


# Dataset columns


def is_empty(value: Any) -> bool:
    """Whether a column's value is no value: `None`, blank text or an empty list. Numbers are values, 0 too."""
    return (
        value is None
        or (isinstance(value, (str, list)) and not value)
        or (isinstance(value, str) and not value.strip())
    )


def check_column(arguments: dict[str, Any], column: str, setting: str, way_out: str = "") -> None:
    """Raises `ValueError` if a dataset among the trainer's arguments lacks the column or has an empty row in it."""
    evaluation = arguments.get("eval_dataset")
    datasets = {"train": arguments.get("train_dataset")}
    datasets |= evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
    for name, dataset in datasets.items():
        columns = getattr(dataset, "column_names", None)
        if columns is not None and column not in columns:
            raise ValueError(
                f"{setting} needs a column {column!r}, but the {name} dataset has only: {', '.join(columns)}.{way_out}"
            )
        if isinstance(dataset, Dataset):
            for row, value in enumerate(dataset[column]):
                if is_empty(value):
                    raise ValueError(f"The {name} dataset's column {column!r} is empty in row {row}.")


# The source


@dataclass(frozen=True)
class Tokenized:
    """Second prompts of a generation batch.

    Args:
        prompts: The prompts.
        ids: Their token ids.
        images: Their images.
        fields: Further per-token fields.
        present: Whether each row has one, by default all; the others have their own prompt instead, which no forward reads.
    """

    prompts: list[Prompt]
    ids: list[list[int]]
    images: Any = None
    fields: Mapping[str, Any] | None = None
    present: list[bool] | None = None


class SecondPromptSource(SignalSource):
    """Computes the log-probs of completions under another prompt than the one they were generated from.

    A subclass says which: [`second_prompts`].

    Args:
        key: Prefix of its entries in TRL's batch. Equal signals share them.

    Class attributes:
        noun: What the second prompt is, for messages.
        neutral: What completions get whose second prompt is missing or does not fit, for messages.
        way_out: What to do if a dataset lacks the column, for messages.
        optional: True if the method knows completions without one. Their log-probs are then the policy's own, without a
            forward, and [`HasSecondPrompt`] tells. Otherwise the data lack it, and their log-probs are NaN.
    """

    has_forward = True
    noun = "second prompt"
    neutral = "the same credit on each token"
    way_out = ""
    optional = False

    def __init__(self, key: str):
        self.key = key
        self._warned: set[str] = set()
        self._found: set[str] = set()

    def second_prompts(
        self, context: PolicyContext, examples: list[dict], prompts: list[Prompt], batch: dict[str, Any]
    ) -> list[Prompt | None]:
        """The second prompt of each row of a generation batch, `None` if it has none (see `optional`)."""
        raise NotImplementedError

    def tokenized(
        self, context: PolicyContext, examples: list[dict], prompts: list[Prompt], batch: dict[str, Any]
    ) -> Tokenized:
        """The second prompts and their tokens.

        Raises:
            ValueError: No row so far has a column that they are made from.
        """
        self._check_columns(examples)
        found = self.second_prompts(context, examples, prompts, batch)
        self._warn_of_rendered(context, prompts, found)
        present = [one is not None for one in found]
        chosen = [own if one is None else one for one, own in zip(found, prompts, strict=True)]
        return Tokenized(chosen, *context.tokenize_prompts(chosen), present)

    def _check_columns(self, examples: list[dict]) -> None:
        # Only a stream may come here without the column: the others are checked before training
        self._found.update(column for column in self.columns if any(column in example for example in examples))
        for column in self.columns:
            if examples and column not in self._found:
                raise ValueError(
                    f"A {self.noun} needs a column {column!r}, but the rows have only: {', '.join(examples[0])}. "
                    f"{self.way_out}".rstrip()
                )

    def _warn_of_rendered(self, context: PolicyContext, prompts: list[Prompt], found: Sequence[Prompt | None]) -> None:
        """Warns once if a template was put around a conversation that is text already, and so outside of its turns."""
        if "rendered" in self._warned or not prompts or not isinstance(prompts[0], str):
            return
        own, second = prompts[0], found[0]
        if not isinstance(second, str) or second == own or own not in second:
            return
        own = own.removeprefix(context.tokenizer.bos_token or "")
        tokens = [token for token in context.tokenizer.all_special_tokens if token in own]
        if tokens:
            self._warned.add("rendered")
            logger.warning(
                "The prompts are conversations as text, with %s: the %s's own text stands outside of their turns. Give "
                "prompts as messages, [{role: user, content: ...}], which the chat template is applied to.",
                tokens[0],
                self.noun,
            )

    def _warn(self, reason: str, bad: list[bool], prompts: list[Prompt]) -> None:
        """Warns once for each reason about completions without a usable second prompt."""
        if any(bad) and reason not in self._warned:
            self._warned.add(reason)
            logger.warning(
                "%d %ss %s; such completions get %s and are counted in `credit/nonfinite_tokens`. The first: %s",
                sum(bad),
                self.noun,
                reason,
                self.neutral,
                shortened(prompts[bad.index(True)]),
            )

    def add_images(self, context: PolicyContext, images: Any, batch: dict[str, Any]) -> None:
        """Adds the second prompts' images to the batch; by default they are the prompts'."""

    def check_lengths(
        self, context: PolicyContext, make: Callable[[dict[str, Any]], Prompt], columns: Sequence[str]
    ) -> None:
        """Raises `ValueError` if the longest second prompt of the training data leaves no room for a completion.

        Args:
            context: The trainer.
            make: Makes the second prompt of a dataset row.
            columns: The columns that it reads, besides `prompt`.
        """
        dataset, limit = context.train_dataset, context.context_length
        if limit is None or context.is_vision or isinstance(dataset, IterableDataset) or context.environment_factories:
            return
        if "prompt" not in dataset.column_names or not len(dataset):
            return  # TRL reports it
        rows = list(
            islice(dataset.select_columns([c for c in ("prompt", *columns) if c in dataset.column_names]), _MAX_ROWS)
        )
        seconds = [make(row) or row["prompt"] for row in rows]
        longest = max(range(len(rows)), key=lambda row: len(str(seconds[row])))
        length, prompt_length = (
            len(context.tokenize_prompts([prompt])[0][0]) for prompt in (seconds[longest], rows[longest]["prompt"])
        )
        # If the prompt itself does not fit either, TRL trains on it anyway, so the second prompt is not to blame
        if prompt_length + context.max_completion_length <= limit < length + context.max_completion_length:
            raise ValueError(
                f"The {self.noun} of row {longest} has {length} tokens; with `max_completion_length` "
                f"({context.max_completion_length}) that is more than the model's context of {limit}. Shorten the "
                f"{self.noun}, lower `max_completion_length` or drop the row."
            )

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        found = self.tokenized(context, examples, prompts, batch)
        ids, fields = found.ids, found.fields or {}

        lengths = batch["completion_mask"].sum(-1).tolist()
        limit = context.context_length or float("inf")
        # Where the prompt itself does not fit, its second one may be as long
        rooms = [
            max(limit - length, prompt_length)
            for length, prompt_length in zip(lengths, batch["prompt_mask"].sum(-1).tolist(), strict=True)
        ]
        overlong = [len(row) > room for row, room in zip(ids, rooms, strict=True)]
        fit = f"do not fit the model's context of {context.context_length} tokens together with their completions"
        self._warn(fit, overlong, found.prompts)
        ids = [row[-int(room) :] if long else row for row, room, long in zip(ids, rooms, overlong, strict=True)]
        missing = [not (self.optional or there) for there in found.present or [True] * len(ids)]
        self._warn("are missing, because the row's column is empty", missing, prompts)

        device = context.accelerator.device

        def left_padded(rows: list[list[int]], value: int) -> torch.Tensor:
            tensors = [torch.as_tensor(row) for row in rows]
            padded = pad(
                tensors, padding_value=value, padding_side="left", pad_to_multiple_of=context.pad_to_multiple_of
            )
            return padded.to(device)

        batch[f"{self.key}/ids"] = left_padded(ids, context.tokenizer.pad_token_id)
        batch[f"{self.key}/mask"] = left_padded([[1] * len(row) for row in ids], 0)
        # Named for one of the two reasons, as in checkpoints of earlier releases
        unusable = [long or lacks for long, lacks in zip(overlong, missing, strict=True)]
        batch[f"{self.key}/overlong"] = torch.tensor(unusable, device=device)
        batch[f"{self.key}/length"] = [len(row) for row in ids]
        if self.optional:
            batch[f"{self.key}/present"] = torch.tensor(found.present, device=device)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                rows = fields.get(name, [[0] * len(row) for row in ids])
                batch[f"{self.key}/{name}"] = left_padded([list(row) for row in rows], 0)
        self.add_images(context, found.images, batch)

    def lengths(self, batch: dict[str, Any]) -> np.ndarray:
        lengths = token_counts(batch)
        lengths[:, 0] = batch[f"{self.key}/length"]
        lengths[~self._read(batch).cpu().numpy()] = 0
        return lengths

    def _read(self, batch: dict[str, Any]) -> Bool[Tensor, " batch"]:
        """(B,) bool, the completions whose log-probs after the second prompt matter: it exists and fits."""
        usable = ~batch[f"{self.key}/overlong"]
        return usable & batch[f"{self.key}/present"] if self.optional else usable

    def with_second_prompts(self, context: PolicyContext, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the second prompts instead of the prompts."""
        second = {key: batch[key] for key in ("completion_ids", "completion_mask", *FORWARD_KEYS) if key in batch}
        width = cut_width(max(batch[f"{self.key}/length"]), context.pad_to_multiple_of)
        second["prompt_ids"] = batch[f"{self.key}/ids"][:, -width:]
        second["prompt_mask"] = batch[f"{self.key}/mask"][:, -width:]
        for name in SEQUENCE_KEYS:
            if name in batch:
                completion = batch[name][:, batch["prompt_ids"].size(1) :]
                second[name] = torch.cat([batch[f"{self.key}/{name}"][:, -width:], completion], dim=1)
        images = batch.get(f"{self.key}/pixel_values")
        if images is not None and "pixel_values" in batch:
            second["pixel_values"] = torch.cat(images) if isinstance(images, list) else images
        return second

    def forward(self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]) -> Float[Tensor, "rows tokens"]:
        second = self.with_second_prompts(context, batch)
        with eval_mode(model):
            logps, _, _ = context.policy_logps_and_entropies(
                model,
                torch.cat([second["prompt_ids"], second["completion_ids"]], dim=1),
                torch.cat([second["prompt_mask"], second["completion_mask"]], dim=1),
                second["completion_ids"].size(1),
                **{key: second.get(key) for key in FORWARD_KEYS},
            )
        return logps

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens"] | None,
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
        if own is None:
            own = torch.zeros_like(policy.logps)
        if self.optional:
            own = torch.where(batch[f"{self.key}/present"].unsqueeze(1), own, policy.logps)
        return own.masked_fill(batch[f"{self.key}/overlong"].unsqueeze(1), torch.nan)


@dataclass(frozen=True)
class HasSecondPrompt(Signal):
    """(B, T) float32, 1 in completions that have a second prompt and 0 in those that have none, without a forward.

    A method requests it together with the signal.

    Args:
        signal: The signal after that prompt, such as [`~trl_credit.signals.sibling.SiblingLogps`].
    """

    signal: Signal

    @property
    def title(self) -> str:
        return f"has a {self.signal.title.removeprefix('log-prob after a ')}"

    def source(self) -> _PresentSource:
        return _PresentSource(self.signal.source().key)


class _PresentSource(SignalSource):
    def __init__(self, key: str):
        self._key = key

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: None, policy: PolicyForward
    ) -> Float[Tensor, "batch tokens"]:
        present = batch[f"{self._key}/present"].to(policy.logps.dtype)
        return present.unsqueeze(1).expand_as(policy.logps)
