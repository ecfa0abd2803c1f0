"""The interface through which signals see the policy."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from .models import HiddenStates


class PolicyContext(Protocol):
    """The policy as signals see it. [`CreditGRPOTrainer`] implements it; any object with these members works.

    Attributes:
        model: The policy, wrapped for training.
        args: The trainer's config.
        accelerator: The `Accelerator`.
        temperature: The rollout temperature.
        processing_class: The tokenizer or processor.
        tokenizer: The tokenizer.
        train_dataset: The training data.
        environment_factories: TRL's environments, if any.
        max_completion_length: TRL's setting, in tokens.
        pad_to_multiple_of: TRL's setting.
        ref_model: TRL's reference model, if it has one.
        is_vision: Whether the policy is a vision-language model.
        is_deepspeed_enabled: Whether DeepSpeed runs the policy.
        is_fsdp_enabled: Whether FSDP runs the policy.
        context_length: Maximum tokens of prompt plus completion; `None` if unlimited.
        forward_dtype: Dtype of the policy's forward.
        head_dtype: Dtype of its output head.
        frame_token_ids: Tokens of a prompt that are no content, which the negative prompt `pad` keeps.
        policy_hidden_states: Captures the policy's hidden states; `None` if no signal needs them.
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

    @property
    def frame_token_ids(self) -> frozenset[int]: ...

    def tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids of each prompt, the images, and further per-token fields, as TRL makes them for a rollout."""

    def policy_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """TRL's forward of the policy, without credit."""

    def add_callback(self, callback: Any) -> None:
        """Adds a callback to the training run."""
