"""The view of the policy that signals get."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from .models import HiddenStates


class PolicyContext(Protocol):
    """The policy as signals see it. [`CreditGRPOTrainer`] is one; whatever else has these members may stand in for it.

    Attributes:
        model: The policy, wrapped as it is trained.
        args: The trainer's configuration.
        accelerator: Accelerate's.
        temperature: The rollout temperature.
        processing_class: The tokenizer or processor.
        tokenizer: The tokenizer.
        train_dataset: The training data.
        environment_factories: TRL's environments, if any.
        max_completion_length: In tokens.
        pad_to_multiple_of: TRL's.
        ref_model: TRL's reference model, if it has one.
        is_vision: Whether the policy is a vision-language model.
        is_deepspeed_enabled: Whether DeepSpeed runs the policy.
        is_fsdp_enabled: Whether FSDP does.
        context_length: The most tokens of prompt and completion, or `None`.
        forward_dtype: In which the policy computes.
        head_dtype: In which its output head computes.
        policy_hidden_states: Takes the policy's hidden states, where a signal needs them.
    """

    model: nn.Module
    args: Any
    accelerator: Any
    temperature: float
    processing_class: Any
    train_dataset: Any
    environment_factories: Any
    max_completion_length: int
    pad_to_multiple_of: int | None
    ref_model: nn.Module | None
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    policy_hidden_states: HiddenStates | None

    @property
    def tokenizer(self) -> Any: ...

    @property
    def is_vision(self) -> bool: ...

    @property
    def context_length(self) -> int | None: ...

    @property
    def forward_dtype(self) -> torch.dtype: ...

    @property
    def head_dtype(self) -> torch.dtype: ...

    def tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids of each prompt, the images, and further per-token fields, as TRL makes them for a rollout."""

    def policy_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """TRL's forward of the policy, without credit."""

    def add_callback(self, callback: Any) -> None:
        """Adds a callback to the training run."""
