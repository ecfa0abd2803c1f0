"""Base of the methods whose rollout stage gives the token advantages."""

import torch
from jaxtyping import Float
from torch import Tensor

from .base import CreditMethod
from .inputs import CreditInputs
from .ops import where_finite


class RolloutAdvantages(CreditMethod):
    """The token advantages are what the rollout stage returns as `advantages`. A completion with a NaN or infinite one gets
    its sequence advantage."""

    reweights = False
    own_advantages = True
    policies = ("tokens",)

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"]:
        return where_finite(inputs.rollout["advantages"], advantages, inputs.mask)

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`token_advantage_size`: mean size of the token advantages."""
        return {"token_advantage_size": inputs.rollout["advantages"].abs()}
