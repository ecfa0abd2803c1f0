"""Bases of the methods whose rollout stage gives the token advantages."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import CreditMethod
from .inputs import CreditInputs
from .ops import where_finite
from .rollout import Rollout


Value = TypeVar("Value")


class RolloutAdvantages(CreditMethod):
    """The token advantages are what the rollout stage returns as `advantages`. A completion with a NaN or infinite one gets
    its sequence advantage."""

    reweights = False
    own_advantages = True
    policies = ("tokens",)

    def once(self, rollout: Rollout, what: str, compute: Callable[[], Value]) -> Value:
        """What `compute` returned when this method, or an equal one, first asked the rollout for it.

        Methods are equal if class and parameters are. Parameters are compared as text, as a list cannot be hashed; the class
        tells apart methods of the same name from different modules.

        Args:
            rollout: Keeps it.
            what: Tells apart what one method asks for.
            compute: Computes it.
        """
        return rollout.once((type(self), repr(self), what), compute)

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


class TokenBaseline(RolloutAdvantages):
    """The token advantages are the reward minus a baseline of the token, for completions with a reward whose group has
    unequal ones. The others count in no baseline, or in one whose completions get 0 anyway."""

    def rows_with_credit(self, rollout: Rollout) -> Bool[Tensor, " batch"]:
        return rollout.groups_with_signal & ~torch.isnan(rollout.rewards)

    def rollout_rows(self, rollout: Rollout) -> Bool[Tensor, " batch"]:
        return self.rows_with_credit(rollout)
