"""Baselines that a credit method must beat: weights that know nothing about the outcome.

They are credit methods, so one can train with them: `credit: trl_credit.bench.baselines.Surprisal`. The registered
controls, `random` and `shuffled`, are among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .._util.moved import moved_names
from .._util.text import nearest
from ..methods.base import CreditMethod, Paper
from ..methods.inputs import CreditInputs
from ..methods.ops import mean_one
from ..methods.random import RandomTokens
from ..methods.shuffled import Shuffled
from ..methods.uniform import Uniform


__getattr__ = moved_names(__name__)


DIRECTIONS = ("late", "early")


def _no_paper(what: str) -> Paper:
    return Paper(title=f"CreditBench baseline: {what}", id="", citation="")


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


BASELINES: dict[str, type[CreditMethod]] = {cls.name: cls for cls in (Position, Surprisal, Entropy)}
_CONTROLS = (Uniform, RandomTokens, Shuffled)


def baselines(methods: Mapping[str, CreditMethod] | None = None) -> dict[str, CreditMethod]:
    """All baselines by label, including uniform and random credit.

    Args:
        methods: Methods to compare with them, by label. The first whose weights can be shuffled is there shuffled, too.
    """
    found: dict[str, CreditMethod] = {"uniform": Uniform(), "random": RandomTokens()}
    for label, method in (methods or {}).items():
        if method.reweights and not (method.has_term or method.own_advantages or is_trivial(method)):
            found[f"shuffled {label}"] = Shuffled(method.to_dict())
            break
    return found | {
        "position late": Position("late"),
        "position early": Position("early"),
        "surprisal": Surprisal(),
        "entropy": Entropy(),
    }


def is_control(cls: type[CreditMethod]) -> bool:
    """True of registered methods that are there to be beaten."""
    return cls in _CONTROLS


def is_trivial(method: CreditMethod) -> bool:
    return is_control(type(method)) or type(method) in BASELINES.values()
