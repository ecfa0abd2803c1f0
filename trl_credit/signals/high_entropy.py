"""Whether a token is among those of highest entropy, by TRL's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..batching import loss_mask
from .base import PolicyForward, Signal, SignalSource


if TYPE_CHECKING:
    from .context import PolicyContext


@dataclass(frozen=True)
class HighEntropy(Signal):
    """(B, T) float32, 1 for the tokens that TRL's `top_entropy_quantile` would train, else 0.

    The quantile is over the tokens of one micro-batch on all processes.

    Args:
        fraction: Share of the tokens, in (0, 1).
    """

    fraction: float = 0.2

    title = "high entropy"

    def source(self) -> _HighEntropySource:
        return _HighEntropySource(self.fraction)


class _HighEntropySource(SignalSource):
    def __init__(self, fraction: float):
        self.fraction = fraction

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: None, policy: PolicyForward
    ) -> Float[Tensor, "batch tokens"]:
        return context.get_high_entropy_mask(policy.entropy, loss_mask(batch), 1 - self.fraction).float()
