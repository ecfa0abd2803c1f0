"""Renders problems as prompts that fit the model's context."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...rewards.thinking import opened_tag
from .base import Request, SamplingSettings


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendered:
    """A request with its prompt's token ids. `opened` is the thinking tag that the prompt ends with, which belongs in
    front of the completion's text."""

    request: Request
    ids: list[int]
    opened: str = ""


def render(
    requests: Sequence[Request], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any]
) -> list[Rendered]:
    """Renders and tokenizes the prompts. Equal prompts are tokenized once, token ids are taken as they are.

    Raises:
        ValueError: A prompt is chat messages, but the tokenizer has no chat template.
    """
    cache: dict[Any, tuple[list[int], str]] = {}
    rendered = []
    for request in requests:
        if request.has_token_ids:
            rendered.append(Rendered(request, list(request.prompt)))
            continue
        plain = isinstance(request.prompt, str)
        key = request.prompt if plain else json.dumps(list(request.prompt), sort_keys=True, default=repr)
        if key not in cache:
            if plain:
                cache[key] = tokenizer(request.prompt)["input_ids"], opened_tag(request.prompt)
            else:
                check_chat_template(tokenizer)
                text = tokenizer.apply_chat_template(
                    list(request.prompt), tokenize=False, add_generation_prompt=True, **chat_template_kwargs
                )
                cache[key] = tokenizer(text, add_special_tokens=False)["input_ids"], opened_tag(text)
        rendered.append(Rendered(request, *cache[key]))
    return rendered


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` if the tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "The prompts are chat messages, but the model's tokenizer has no chat template: set `plain_prompts: true`."
        )


def limit_of(request: Request, sampling: SamplingSettings) -> int:
    """Token limit of a request's completion."""
    return sampling.max_tokens if request.max_tokens is None else min(request.max_tokens, sampling.max_tokens)


def fit(sampling: SamplingSettings, rendered: Sequence[Rendered], context: int | None) -> SamplingSettings:
    """Cuts `max_tokens` to what the longest prompt leaves of the context. All prompts share this limit, so it depends
    neither on the batch nor on which samples are already done.

    Raises:
        ValueError: The longest prompt leaves no room.
    """
    if context is None or not rendered:
        return sampling
    longest = max(rendered, key=lambda item: len(item.ids))
    room = context - len(longest.ids)
    if room < 1:
        request = longest.request
        raise ValueError(
            f"The prompt of {request.task!r}, problem {request.problem}, has {len(longest.ids)} tokens, and the model's "
            f"context {context}: nothing is left for an answer. Use a model with a longer context, or other tasks."
        )
    if room < sampling.max_tokens:
        logger.warning(
            "`max_tokens` is cut from %d to %d: the model's context has %d tokens, the longest prompt %d.",
            sampling.max_tokens,
            room,
            context,
            len(longest.ids),
        )
    return replace(sampling, max_tokens=min(room, sampling.max_tokens))
