"""Shuffled credit: a control. Another method's weights, permuted at random within each completion.

    w_t = w'_{s(t)},   s a random permutation of the completion's tokens

The weights keep their distribution and lose their places. What a method gains over its shuffled self is owed to where
its credit goes, not to how uneven it is.

No paper; see [`Shuffled.differences`].
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from .base import CreditMethod, Paper
from .draws import draws
from .inputs import CreditInputs
from .rollout import Continuations, Rollout


@dataclass(frozen=True)
class Shuffled(CreditMethod):
    """Another method's weights in random places: a control that shows whether the places matter.

    Args:
        of: The method: a name, a mapping, or a list. It must have weights, and nothing else.
        seed: Different seeds give different permutations.
    """

    of: str | dict | list
    seed: int = 0

    name = "shuffled"
    paper = Paper(
        title="Shuffled token weights",
        id="",
        citation="",
    )
    differences = (
        "The permutation is a hash of the completion's tokens and `seed`, so that it is the same after a resume and on any "
        "number of processes.",
    )
    policies = ("tokens",)

    def validate(self) -> None:
        if self._of.has_term or self._of.own_advantages:
            raise ValueError(
                f"credit method 'shuffled': `of` is {self._of.name!r}, which does more than weight tokens, and only "
                "weights can be shuffled. Name a method that has nothing else, such as 'gcpo'."
            )
        if not self._of.reweights:
            raise ValueError(
                f"credit method 'shuffled': `of` is {self._of.name!r}, which has no token weights to shuffle. Name a method "
                "that has, such as 'gcpo'."
            )
        if not isinstance(self.of, str):
            object.__setattr__(self, "of", self._of.to_dict())

    @functools.cached_property
    def _of(self) -> CreditMethod:
        from .registry import build_credit

        return build_credit(self.of)

    # What the method is, so is its shuffled self

    @property
    def mean_one(self) -> bool:
        return self._of.mean_one

    @property
    def reads_batch(self) -> bool:
        return self._of.reads_batch

    @property
    def reads_sign(self) -> bool:
        return self._of.reads_sign

    @property
    def needs_old_policy(self) -> bool:
        return self._of.needs_old_policy

    @property
    def min_generations(self) -> int:
        return self._of.min_generations

    @property
    def min_prompts(self) -> int:
        return self._of.min_prompts

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return self._of.rollout_needs

    @property
    def has_rollout_stage(self) -> bool:
        return self._of.has_rollout_stage

    def signals(self) -> tuple[Signal, ...]:
        return self._of.signals()

    def continuations(self) -> tuple[Continuations, ...]:
        return self._of.continuations()

    def rollout_rows(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        return self._of.rollout_rows(rollout)

    def rollout_stage(self, rollout: Rollout) -> dict[str, Tensor]:
        return dict(self._of.rollout_stage(rollout))

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        weights, mask = self._of.weights(inputs), inputs.mask
        # The masked tokens of each row, in their own order and in that of the draws; the others come last in both
        places = torch.where(mask, inputs.positions, mask.size(1)).argsort(dim=-1, stable=True)
        drawn = torch.where(mask, draws(inputs.token_ids, mask, self.seed), 2.0).argsort(dim=-1, stable=True)
        shuffled = torch.empty_like(weights).scatter_(1, places, weights.gather(1, drawn))
        return torch.where(mask, shuffled, 0.0)

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        return self._of.metrics(inputs)

    def is_uniform(self, metrics):
        """As the method: even weights cannot be shuffled."""
        return self._of.is_uniform(metrics)

    def remedy(self, inputs: CreditInputs) -> str:
        return self._of.remedy(inputs)
