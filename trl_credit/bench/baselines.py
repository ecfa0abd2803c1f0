"""Baselines that a credit method must beat: weights that know nothing about the outcome.

They are credit methods, so one can train with them: `credit: trl_credit.bench.baselines.Surprisal`. The registered
controls, `random` and `shuffled`, are among them. [`MeanShare`] is the control of methods that choose a baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.moved import moved_names
from .._util.text import nearest
from ..methods.base import CreditMethod, Paper
from ..methods.inputs import CreditInputs
from ..methods.ops import at_least_float32, mean_one
from ..methods.random import RandomTokens
from ..methods.rollout import Rollout
from ..methods.rollout_advantages import TokenBaseline
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


@dataclass(frozen=True)
class MeanShare(TokenBaseline):
    """The reward minus a share of the group's mean, the same for every token: A = R - low - share * (mean - low), where low
    is the group's least reward. What `otb` or `certainty` gain over it is owed to a baseline that differs between tokens.

    Args:
        share: 1 is GRPO's baseline, without its standard deviation; 0 has none, so only better completions count.
    """

    share: float = 0.5

    name = "mean_share"
    paper = _no_paper("a share of the group's mean")

    def validate(self) -> None:
        self.require(0 <= self.share <= 1, "share", "between 0 and 1")

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        low, mean, _ = (at_least_float32(part)[rollout.groups] for part in rollout.group_rewards)
        advantages = at_least_float32(rollout.rewards) - low - self.share * (mean - low)
        with_credit = self.rows_with_credit(rollout).unsqueeze(1) & rollout.mask
        return {"advantages": torch.where(with_credit, advantages.unsqueeze(1), 0.0)}


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
