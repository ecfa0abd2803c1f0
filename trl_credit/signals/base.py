"""Signals: (B, T) tensors that a credit method asks for and the trainer computes once, whoever asks."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch import nn
from trl import GRPOTrainer

from ..batching import token_counts


if TYPE_CHECKING:
    from ..trainer import CreditGRPOTrainer


# What TRL's policy forward takes from the batch besides token ids and masks: images and token types
FORWARD_KEYS = tuple(
    name
    for name in inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    if name
    not in (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    )
)
# Those among them that the model itself takes; the others tell TRL how to cut them
MODEL_INPUT_KEYS = tuple(name for name in FORWARD_KEYS if name not in ("num_images", "num_tiles"))


@dataclass(frozen=True)
class Signal(ABC):
    """What a method asks for: a frozen description, equal for equal parameters, so that methods share it.

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

    def before_trainer_init(self, trainer: CreditGRPOTrainer, arguments: dict[str, Any]) -> None:
        """Before TRL's `__init__`, with the arguments that it will get; they may be changed in place."""

    def after_trainer_init(self, trainer: CreditGRPOTrainer) -> None:
        """After TRL's `__init__`: model, tokenizer and accelerator are there."""

    def extend_rollout(
        self, trainer: CreditGRPOTrainer, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        """Adds to `batch`, from the dataset rows and the prompts as generated from (images and tools included)."""

    def lengths(self, batch: dict[str, Any]) -> np.ndarray:
        """(B, 2) tokens of prompt and completion that `forward` reads for each row."""
        return token_counts(batch)

    def bytes_per_token(self, trainer: CreditGRPOTrainer) -> int:
        """What `forward` gives takes, if it does not change between the iterations over a generation batch (so that it
        can be kept); 0 if it does."""
        return 0

    def forward(self, trainer: CreditGRPOTrainer, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The signal's own forward: (b, t, ...) for the `b` rows and `t` completion columns of `batch`."""
        raise NotImplementedError

    def compute(
        self, trainer: CreditGRPOTrainer, batch: dict[str, Any], own: torch.Tensor | None, policy: PolicyForward
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


def vocabulary_size(model: nn.Module) -> int:
    """Number of logits of a transformers model; also right where ZeRO-3 or FSDP2 has sharded the head."""
    head = model.get_output_embeddings()
    return getattr(head, "out_features", None) or model.config.get_text_config().vocab_size


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside: without PEFT."""
    return model.get_base_model() if is_peft_model(model) else model


class HiddenStates:
    """Takes what a model's backbone hands to its output head, without a forward of its own.

    The hook stays for good and is switched on and off: `torch.compile` does not notice hooks that come and go.
    """

    def __init__(self, model: nn.Module):
        self._on = False
        self._states: torch.Tensor | None = None
        causal_model(model).base_model.register_forward_hook(self._keep)

    def _keep(self, module, args, output) -> None:
        if self._on:
            self._states = output[0].detach()

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def pop(self, num_tokens: int) -> torch.Tensor:
        """(B, T, H) hidden states that give the logits of the last `num_tokens` tokens; they are not kept."""
        states, self._states = self._states, None
        return states[:, -num_tokens - 1 : -1]


def model_inputs(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a model's forward takes of a batch: prompts and completions, images and token types."""
    inputs = {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        **{key: batch[key] for key in MODEL_INPUT_KEYS if batch.get(key) is not None},
    }
    if "pixel_values" not in inputs:
        inputs.pop("image_grid_thw", None)
    return inputs


def completion_hidden_states(
    trainer: CreditGRPOTrainer, model: nn.Module, hidden_states: HiddenStates, batch: dict[str, Any]
) -> torch.Tensor:
    """(B, T, H) hidden states of a model's backbone for the completions of a batch, in eval mode."""
    with eval_mode(model), trainer.accelerator.autocast(), hidden_states.captured():
        # Only the backbone's output is wanted; logits of one token are the fewest that can be asked for
        model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
    return hidden_states.pop(batch["completion_ids"].size(1))


def check_backbone(model: nn.Module) -> None:
    """Raises `ValueError` where [`completion_hidden_states`] would compute the logits of every token."""
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(
            f"{type(model).__name__} has no `logits_to_keep`, so a forward for its hidden states would compute the "
            "logits of every token. This credit method does not support it."
        )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
