"""Signals: (B, T) tensors that a credit method asks for and the trainer computes once, whoever asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from .._util.moved import moved_names
from ..batching import token_counts


__getattr__ = moved_names(__name__)


if TYPE_CHECKING:
    from .context import PolicyContext


@dataclass(frozen=True)
class Signal(ABC):
    """Describes a tensor that a method asks for. Equal parameters make equal signals, which methods share.

    Class attributes:
        title: What it is called where its values are shown; by default the class's name.
    """

    title: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.title = cls.__dict__.get("title") or cls.__name__

    @abstractmethod
    def source(self) -> SignalSource:
        """The object that computes the signal during training."""


def signal_titles(signals: Sequence[Signal]) -> dict[Signal, str]:
    """Signals by what they are called where they are shown; parameters are added where two have the same title."""
    titles = [signal.title for signal in signals]
    return {
        signal: signal.title if titles.count(signal.title) == 1 else f"{signal.title}: {signal!r}" for signal in signals
    }


class SignalSource:
    """Computes one signal. The trainer calls the hooks in this order; each does nothing by default.

    The first two run once. `extend_rollout` runs once per generation batch and may add entries, one per completion, to
    the batch that TRL buffers: tensors or lists with one entry per completion; the name of a tensor with one column per
    completion token starts with `completion/`, so that it is cut with them. `forward` and `compute` run at each
    update step: `forward` makes the signal's own forward, without gradient and in eval mode, before the loss's; it runs
    once for each group of rows that are alike in length, and only for rows that need credit. `compute` runs when the
    policy's forward is there. Every process runs the same hooks equally often, so they may use collectives.
    """

    # Whether there is a `forward`
    has_forward = False

    # Whether `compute` needs the policy's hidden states, and whether `sync_ref_model` is for this signal
    needs_hidden_states = False
    follows_policy = False
    # Dataset columns that must survive `remove_unused_columns`
    columns: tuple[str, ...] = ()

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        """Before TRL's `__init__`, with the arguments that it will get; they may be changed in place."""

    def after_trainer_init(self, context: PolicyContext) -> None:
        """After TRL's `__init__`: model, tokenizer and accelerator are there."""

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        """Adds to `batch`, from the dataset rows and the prompts as generated from (images and tools included)."""

    def lengths(self, batch: dict[str, Any]) -> np.ndarray:
        """(B, 2) tokens of prompt and completion that `forward` reads for each row."""
        return token_counts(batch)

    def bytes_per_token(self, context: PolicyContext) -> int:
        """Bytes per token of `forward`'s result, if it stays the same between the iterations over a generation batch (so
        that it can be kept); 0 if it changes."""
        return 0

    def forward(self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The signal's own forward: (b, t, ...) for the `b` rows and `t` completion columns of `batch`."""
        raise NotImplementedError

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: torch.Tensor | None, policy: PolicyForward
    ) -> torch.Tensor:
        """The (B, T) signal, from what `forward` gave for the same rows, (B, T, ...)."""
        return own


@dataclass(frozen=True)
class PolicyForward:
    """The live policy's forward of the update step: (B, T) float32 log-probs and entropies in nats, detached, and the
    (B, T, H) hidden states that the head turns into the tokens' logits, if some signal needs them."""

    logps: torch.Tensor
    entropy: torch.Tensor
    hidden_states: torch.Tensor | None

    def rows(self, rows: list[int]) -> PolicyForward:
        hidden_states = None if self.hidden_states is None else self.hidden_states[rows]
        return PolicyForward(self.logps[rows], self.entropy[rows], hidden_states)
