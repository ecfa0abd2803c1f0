"""Inputs of a credit method for one micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._util.once import Once
from ..signals.base import Signal
from .ops import at_least_float32


@dataclass(frozen=True)
class CreditInputs(Once):
    """Tensors of one micro-batch: B completions of at most T tokens. None carries a gradient, and none changes: what a
    method's hooks share, they compute with [`once`].

    The first six are always there. The others are `None` where TRL has no such values.

    Args:
        mask: (B, T) bool, the tokens in the loss: completion mask * tool mask, without masked truncated completions.
        policy_logps: (B, T) float32, nats; log-probs of the sampled tokens under the live policy at the rollout
            temperature. Meaningless off the mask.
        policy_entropy: (B, T) float32, nats; entropy of the live policy's next-token distribution.
        vocab_size: Number of logits |V| in the softmax; `None` if tokens are the steps of an image model's sampler.
        signals: Each requested [`Signal`] with its (B, T) tensor.
        computed: (B,) bool by signal, the completions for which it was computed; the others have 0. Signals that were
            computed for all are left out. Only a list sees any ([`CreditMethod.signals_without_advantage`]).
        compute_dtype: The dtype of the policy's forward (bfloat16 under bf16 autocast): it sets the rounding noise.
        advantages: (B,) float, the sequence advantages.
        old_logps: (B, T) float, nats; log-probs under the policy that generated. `None` if every update is on-policy.
        sampling_logps: (B, T) float, nats; log-probs that vLLM reported. `None` without vLLM's correction.
        token_ids: (B, T) int, the completion's tokens.
        turns: (B, T) int, the turn of each token, from 0: text of tools or an environment starts the next turn. `None`
            without tools.
        step: Number of updates so far, for schedules.
        rollout: What the method's [`~CreditMethod.rollout_stage`] returned: (B, T) tensors by name.
    """

    mask: Bool[Tensor, "batch tokens"]
    policy_logps: Float[Tensor, "batch tokens"]
    policy_entropy: Float[Tensor, "batch tokens"]
    vocab_size: int | None
    signals: Mapping[Signal, Float[Tensor, "batch tokens"]] = field(default_factory=dict)
    computed: Mapping[Signal, Bool[Tensor, " batch"]] = field(default_factory=dict)
    compute_dtype: torch.dtype = torch.float32
    advantages: Float[Tensor, " batch"] | None = None
    old_logps: Float[Tensor, "batch tokens"] | None = None
    sampling_logps: Float[Tensor, "batch tokens"] | None = None
    token_ids: Int[Tensor, "batch tokens"] | None = None
    turns: Int[Tensor, "batch tokens"] | None = None
    step: int = 0
    rollout: Mapping[str, Float[Tensor, "batch tokens"]] = field(default_factory=dict)

    def __post_init__(self):
        if self.mask.dim() != 2 or self.mask.dtype != torch.bool:
            raise ValueError(f"`mask` must be a (B, T) bool tensor, got {self.mask.dtype} {tuple(self.mask.shape)}.")
        tensors = {name: getattr(self, name) for name in _PER_TOKEN}
        tensors |= {repr(signal): tensor for signal, tensor in self.signals.items()} | dict(self.rollout)
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.shape != self.mask.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the mask {tuple(self.mask.shape)}.")
            if tensor.requires_grad:
                raise ValueError(f"{name} requires grad; detach it.")

    @property
    def nonfinite(self) -> Bool[Tensor, "batch tokens"]:
        """(B, T) bool, tokens on the mask with a NaN or infinite log-prob, entropy, requested signal or result of the
        rollout stage."""
        bad = torch.zeros_like(self.mask)
        for tensor in (self.policy_logps, self.policy_entropy, *self.signals.values(), *self.rollout.values()):
            bad |= ~torch.isfinite(tensor)
        return bad & self.mask

    @property
    def complete(self) -> Bool[Tensor, "batch tokens"]:
        """(B, T) bool, the tokens in the loss of completions for which every signal was computed."""
        mask = self.mask
        for rows in self.computed.values():
            mask = mask & rows.unsqueeze(1)
        return mask

    @property
    def positions(self) -> Int[Tensor, "batch tokens"]:
        """(B, T) int, each token's place among its completion's tokens in the loss, from 0. Meaningless off the mask."""
        return self.mask.long().cumsum(-1) - 1

    @property
    def log_ratio(self) -> Float[Tensor, "batch tokens"]:
        """(B, T) at least float32, nats; `policy_logps - old_logps`, 0 off the mask and if every update is on-policy."""
        if self.old_logps is None:
            return torch.zeros_like(at_least_float32(self.policy_logps))
        return torch.where(self.mask, at_least_float32(self.policy_logps) - at_least_float32(self.old_logps), 0.0)

    def map(self, function: Callable[[Tensor], Tensor]) -> CreditInputs:
        """The inputs with a function applied to each tensor, e.g. to pick rows."""
        changed = {
            name: function(value) for name in ("advantages", *_PER_TOKEN) if (value := getattr(self, name)) is not None
        }
        changed["signals"] = {signal: function(value) for signal, value in self.signals.items()}
        changed["computed"] = {signal: function(rows) for signal, rows in self.computed.items()}
        changed["rollout"] = {name: function(value) for name, value in self.rollout.items()}
        return dataclasses.replace(self, **changed)


_PER_TOKEN = ("mask", "policy_logps", "policy_entropy", "old_logps", "sampling_logps", "token_ids", "turns")
