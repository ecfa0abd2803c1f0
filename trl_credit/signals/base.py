"""Signals: (B, T) tensors that credit methods request. The trainer computes each one once, even if methods share it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from .._util.moved import moved_names
from ..batching import token_counts


__getattr__ = moved_names(__name__)


if TYPE_CHECKING:
    from .context import PolicyContext


@dataclass(frozen=True)
class Signal(ABC):
    """Describes a tensor that a method requests. Signals with equal parameters are equal, and methods share them.

    Class attributes:
        title: Display name; by default the class's name.
        policy: What its source needs: `"tokens"`, a language model, or `"steps"`, an image model's sampler.
    """

    title: ClassVar[str] = ""
    policy: ClassVar[str] = "tokens"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.title = cls.__dict__.get("title") or cls.__name__

    @abstractmethod
    def source(self) -> SignalSource:
        """The object that computes the signal during training."""


def signal_titles(signals: Sequence[Signal]) -> dict[Signal, str]:
    """Display name of each signal: its title, plus its parameters if two signals have the same title."""
    titles = [signal.title for signal in signals]
    return {
        signal: signal.title if titles.count(signal.title) == 1 else f"{signal.title}: {signal!r}" for signal in signals
    }


class SignalSource:
    """Computes one signal. The trainer calls the hooks in the order below.

    `before_trainer_init` and `after_trainer_init` run once and do nothing by default.

    `extend_rollout` runs once per generation batch. It may add tensors or lists with one entry per completion to the
    batch that TRL buffers. If a tensor has one column per completion token, its name must start with `completion/`, so
    that trimming cuts it too.

    `forward` and `compute` run at each update step. `forward` runs before the loss's forward, without gradient and in
    eval mode, once per group of rows of similar length and only on rows that need credit and that it reads (`lengths`).
    `compute` runs after the policy's forward.

    All processes call the same hooks equally often, so hooks may use collectives.
    """

    # True if the signal has its own `forward`
    has_forward = False

    # True if `compute` needs the policy's hidden states
    needs_hidden_states = False
    # True if the signal's reference is one that `sync_ref_model` updates
    follows_policy = False
    # Dataset columns that must survive `remove_unused_columns`
    columns: tuple[str, ...] = ()
    # True if `extend_rollout` reads the batch's groups and rewards, (B,) each: `rollout/groups`, numbers that are unique
    # over all processes, and `rollout/rewards`, weighted sums. What it shares with other signals, such as gathered
    # completions, it may compute with `rollout/shared`, a `trl_credit._util.once.Once`
    needs_groups = False
    # True if prompts must have images
    needs_images = False

    # For `trl-credit plan`

    def frozen_model(self, policy: str, adapters: bool) -> str | None:
        """Path or hub id of the model that `forward` runs beside the policy and that is not trained; `None` if it runs the
        policy.

        Args:
            policy: Path or hub id of the policy's initial weights.
            adapters: Whether only adapters are trained.
        """
        return None

    def added_tokens(self, completion: int) -> int:
        """About how many tokens `forward` reads besides prompt and completion, for completions of this length."""
        return 0

    # In training

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        """Runs before TRL's `__init__` with its arguments, which may be changed in place."""

    def after_trainer_init(self, context: PolicyContext) -> None:
        """Runs after TRL's `__init__`, when model, tokenizer and accelerator exist."""

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        """Adds entries to `batch`, given the dataset rows and the prompts as generated from (with images and tools)."""

    def lengths(self, batch: dict[str, Any]) -> np.ndarray:
        """(B, 2) number of prompt and completion tokens that `forward` reads for each row. A row with none is not
        forwarded."""
        return token_counts(batch)

    def bytes_per_token(self, context: PolicyContext) -> int:
        """Bytes per token of `forward`'s result if iterations over a generation batch can reuse it, 0 if it changes."""
        return 0

    def forward(
        self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]
    ) -> Float[Tensor, "rows tokens *rest"]:
        """Runs the signal's own forward. Returns (b, t, ...) for the b rows and t completion columns of `batch`."""
        raise NotImplementedError

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens *rest"] | None,
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
        """Returns the (B, T) signal. `own` is `forward`'s (B, T, ...) result for the same rows: 0 in those that were not
        forwarded, `None` if none was."""
        return own


@dataclass(frozen=True)
class PolicyForward:
    """The live policy's forward at the update step: detached (B, T) float32 log-probs and entropies in nats, and, if a
    signal needs them, the (B, T, H) hidden states from which the head computes the tokens' logits."""

    logps: Float[Tensor, "batch tokens"]
    entropy: Float[Tensor, "batch tokens"]
    hidden_states: Float[Tensor, "batch tokens hidden"] | None

    def rows(self, rows: list[int]) -> PolicyForward:
        hidden_states = None if self.hidden_states is None else self.hidden_states[rows]
        return PolicyForward(self.logps[rows], self.entropy[rows], hidden_states)
