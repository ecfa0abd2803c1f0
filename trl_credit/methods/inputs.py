"""Inputs of a credit method for one micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal


@dataclass(frozen=True)
class CreditInputs:
    """Tensors of one micro-batch: B completions of at most T tokens. None carries a gradient.

    Args:
        mask: (B, T) bool, the tokens in the loss: completion mask * tool mask, without masked truncated completions.
        policy_logps: (B, T) float32, nats; log-probs of the sampled tokens under the live policy at the rollout
            temperature. Meaningless off the mask.
        policy_entropy: (B, T) float32, nats; entropy of the live policy's next-token distribution.
        vocab_size: Number of logits |V| in the softmax; `None` if tokens are the steps of an image model's sampler.
        signals: Each requested [`Signal`] with its (B, T) tensor.
        compute_dtype: The dtype of the policy's forward (bfloat16 under bf16 autocast): it sets the rounding noise.
    """

    mask: Bool[Tensor, "batch tokens"]
    policy_logps: Float[Tensor, "batch tokens"]
    policy_entropy: Float[Tensor, "batch tokens"]
    vocab_size: int | None
    signals: Mapping[Signal, Float[Tensor, "batch tokens"]] = field(default_factory=dict)
    compute_dtype: torch.dtype = torch.float32

    def __post_init__(self):
        if self.mask.dim() != 2 or self.mask.dtype != torch.bool:
            raise ValueError(f"`mask` must be a (B, T) bool tensor, got {self.mask.dtype} {tuple(self.mask.shape)}.")
        tensors = {
            "policy_logps": self.policy_logps,
            "policy_entropy": self.policy_entropy,
            **{repr(signal): tensor for signal, tensor in self.signals.items()},
        }
        for name, tensor in tensors.items():
            if tensor.shape != self.mask.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the mask {tuple(self.mask.shape)}.")
            if tensor.requires_grad:
                raise ValueError(f"{name} requires grad; detach it.")

    @property
    def nonfinite(self) -> Bool[Tensor, "batch tokens"]:
        """(B, T) bool, tokens on the mask with a NaN or infinite log-prob, entropy or requested signal."""
        bad = torch.zeros_like(self.mask)
        for tensor in (self.policy_logps, self.policy_entropy, *self.signals.values()):
            bad |= ~torch.isfinite(tensor)
        return bad & self.mask
