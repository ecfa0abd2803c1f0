"""Which tokens lie in a completion's thought."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.tokens import token_pieces
from ..batching import COMPLETION_PREFIX
from .base import PolicyForward, Signal, SignalSource


if TYPE_CHECKING:
    from .context import PolicyContext


def in_thought(pieces: Sequence[str], opening: str, closing: str, opened: bool = False) -> list[bool]:
    """Whether each token has text between the tags. A thought that does not end runs to the end; tags do not count.

    The tags are found in the text, because where a tag meets other text, tokens may contain parts of both.

    Args:
        pieces: The text of each token.
        opening: The tag that starts a thought.
        closing: The tag that ends it.
        opened: Whether the prompt has started one.
    """
    text = "".join(pieces)
    inside = [False] * len(text)
    start = 0 if opened else None
    for tag in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        if tag[0] == opening and start is None:
            start = tag.end()
        elif tag[0] == closing and start is not None:
            inside[start : tag.start()] = [True] * (tag.start() - start)
            start = None
    if start is not None:
        inside[start:] = [True] * (len(text) - start)
    found, place = [], 0
    for piece in pieces:
        found.append(any(inside[place : place + len(piece)]))
        place += len(piece)
    return found


@dataclass(frozen=True)
class ThoughtTokens(Signal):
    """(B, T) float32, 1 on the tokens of the thought, between the tags, and 0 elsewhere. It needs no forward.

    Args:
        opening: The tag that starts a thought. It may be the end of the prompt.
        closing: The tag that ends it.
    """

    opening: str = "<think>"
    closing: str = "</think>"

    title = "in the thought"

    def source(self) -> _ThoughtSource:
        return _ThoughtSource(self.opening, self.closing)


class _ThoughtSource(SignalSource):
    def __init__(self, opening: str, closing: str):
        self._tags = (opening, closing)
        self._key = f"{COMPLETION_PREFIX}thought/{opening}/{closing}"

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        tokenizer, opening = context.tokenizer, self._tags[0]
        found = torch.zeros(batch["completion_ids"].shape)
        rows = zip(
            batch["prompt_ids"], batch["prompt_mask"].bool(), batch["completion_ids"], batch["completion_mask"].bool(),
            strict=True,
        )  # fmt: skip
        for row, (prompt, prompt_mask, ids, mask) in enumerate(rows):
            before = tokenizer.decode(prompt[prompt_mask].tolist(), skip_special_tokens=False)
            pieces = token_pieces(tokenizer, ids[mask].tolist())
            inside = in_thought(pieces, *self._tags, opened=before.rstrip().endswith(opening))
            found[row, mask.cpu()] = torch.tensor(inside, dtype=found.dtype)
        batch[self._key] = found.to(batch["completion_ids"].device)

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: None, policy: PolicyForward
    ) -> Float[Tensor, "batch tokens"]:
        return batch[self._key].to(policy.logps.dtype)
