"""Baselines that a credit method must beat: weights that know nothing about the outcome.

They are credit methods, so one can train with them: `credit: trl_credit.bench.baselines.Surprisal`.
"""

from dataclasses import dataclass

import torch

from .._util.text import nearest
from ..methods.base import CreditMethod, Paper
from ..methods.draws import mixed
from ..methods.inputs import CreditInputs
from ..methods.ops import mean_one
from ..methods.uniform import Uniform


DIRECTIONS = ("late", "early")


def _no_paper(what: str) -> Paper:
    title = f"CreditBench baseline: {what}"
    return Paper(title=title, id="none", citation=f"% {title} (arXiv: none)")


@dataclass(frozen=True)
class Random(CreditMethod):
    """Random weights.

    A weight is a hash of the token's position, log-prob and entropy, so it depends only on the completion's own inputs.

    Args:
        seed: Different seeds give different weights.
    """

    seed: int = 0

    name = "random"
    paper = _no_paper("random weights")

    def weights(self, inputs: CreditInputs) -> torch.Tensor:
        state = torch.arange(inputs.mask.size(1), device=inputs.mask.device) + 7919 * (self.seed + 1)
        for values in (inputs.policy_logps, inputs.policy_entropy):
            state = mixed(state + values.float().contiguous().view(torch.int32).long())
        return mean_one(((state & 0xFFFFFF) + 1).float() / 2**24, inputs.mask)


@dataclass(frozen=True)
class Position(CreditMethod):
    """Credit that is linear in the token's position in the completion.

    Args:
        direction: `late` gives most to the last token, `early` to the first.
    """

    direction: str = "late"

    name = "position"
    paper = _no_paper("position in the completion")

    def validate(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"credit method 'position': `direction` is {self.direction!r}. {nearest(self.direction, DIRECTIONS)}"
            )

    def weights(self, inputs: CreditInputs) -> torch.Tensor:
        place = inputs.mask.cumsum(-1)
        if self.direction == "early":
            place = inputs.mask.sum(-1, keepdim=True) + 1 - place
        return mean_one(place.float(), inputs.mask)


@dataclass(frozen=True)
class Surprisal(CreditMethod):
    """Credit proportional to -log p of the sampled token."""

    name = "surprisal"
    paper = _no_paper("surprisal")

    def weights(self, inputs: CreditInputs) -> torch.Tensor:
        return mean_one(-inputs.policy_logps.float().clamp(max=0.0), inputs.mask)


@dataclass(frozen=True)
class Entropy(CreditMethod):
    """Credit proportional to the entropy of the policy's next-token distribution."""

    name = "entropy"
    paper = _no_paper("entropy")

    def weights(self, inputs: CreditInputs) -> torch.Tensor:
        return mean_one(inputs.policy_entropy.float().clamp(min=0.0), inputs.mask)


BASELINES: dict[str, type[CreditMethod]] = {cls.name: cls for cls in (Random, Position, Surprisal, Entropy)}


def baselines() -> dict[str, CreditMethod]:
    """All baselines by label, including uniform credit."""
    return {
        "uniform": Uniform(),
        "random": Random(),
        "position late": Position("late"),
        "position early": Position("early"),
        "surprisal": Surprisal(),
        "entropy": Entropy(),
    }


def is_trivial(method: CreditMethod) -> bool:
    return type(method) in (Uniform, *BASELINES.values())
