"""Shares of a sampler's steps: read from the schedule that an image was sampled with, without a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from .base import PolicyForward, Signal, SignalSource


if TYPE_CHECKING:
    from .context import PolicyContext


# Prefix of the batch entries of a sampler's trajectories
SAMPLER = "sampler/"
QUANTITIES = ("native", "interval", "noise", "count")


@dataclass(frozen=True)
class StepShare(Signal):
    """(B, T) a quantity of each trained step, as a share of its sum over all steps of the sampler.

    Args:
        quantity: `"native"`, the weight w_i by which a step's log-ratio responds to the denoiser's prediction;
            `"interval"`, the step's length in the sampler's time (dt_i for flow matching, 1 / N for DDIM); `"noise"`,
            its standard deviation; or `"count"`, 1 / N.
    """

    quantity: str

    title = "share of the sampler"
    policy: ClassVar[str] = "steps"

    def __post_init__(self):
        if self.quantity not in QUANTITIES:
            raise ValueError(f"`quantity` must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}.")

    def source(self) -> SignalSource:
        return _StepShareSource(self.quantity)


class _StepShareSource(SignalSource):
    def __init__(self, quantity: str):
        self._key = f"{SAMPLER}shares/{quantity}"

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: None, policy: PolicyForward
    ) -> Float[Tensor, "batch tokens"]:
        return batch[self._key].to(policy.logps)
