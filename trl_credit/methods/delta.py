"""DelTA: tokens count more whose gradient tells completions with a positive advantage from those with a negative one.

    v_t = (1 - pi(y_t)) h_t                             # the token's gradient at its own row of the output head
    mu+, mu- = means of v over the tokens of completions with A > 0 and A < 0, weighted by abs(A)
    m_t = |v_t - mu_other|^2 - |v_t - mu_own|^2         # > 0: nearer to its own side
    tau+, tau- = standard deviations of m over the tokens of each side
    a_t = sigmoid(m_t / tau_own)
    w_t = (0.8 + 0.4 a_t) / mean                        # the mean over all tokens of the generation batch

Before the last two lines, mu+ and mu- are refined once: means of v weighted by a_t abs(A). h_t is the state from which the
head computes the token's logits. pi and h are those of the policy that generated.

Known weakness: one mean stands for all prompts of a side, so the factors depend on which prompts share a generation
batch, and a side with few completions has a noisy mean.

Reference: DelTA: Discriminative Token Credit Assignment for Reinforcement Learning from Verifiable Rewards (arXiv
2605.21467).
Differences from the official code are numbered in [`DelTA.differences`].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32, where_finite
from .rollout import Rollout, alone


@dataclass(frozen=True)
class _Sides:
    """Token gradients v = scale * h, and sums over them on all processes. A row at a time: (B, T, H) floats do not fit."""

    hidden_states: Float[Tensor, "batch tokens hidden"]
    scale: Float[Tensor, "batch tokens"]  # 1 - pi, 0 off both sides
    sizes: Float[Tensor, "batch tokens"]  # abs(A), 0 off the mask
    sides: tuple[Bool[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]
    total: Callable[[Tensor], Tensor]

    def centroid(self, weights: Float[Tensor, "batch tokens"]) -> Float[Tensor, " hidden"]:
        """Mean of v over all tokens with these weights."""
        factors = weights * self.scale
        summed = factors.new_zeros(self.hidden_states.size(-1))
        for factor, states, on in zip(factors, self.hidden_states, weights != 0, strict=True):
            summed += factor[on] @ states[on].to(factors.dtype)
        return self.total(summed) / self.total(weights.sum()).clamp(min=1e-8)

    def margins(
        self, positive: Float[Tensor, " hidden"], negative: Float[Tensor, " hidden"]
    ) -> Float[Tensor, "batch tokens"]:
        """|v - mu-|^2 - |v - mu+|^2 = 2 (v - (mu+ + mu-) / 2) (mu+ - mu-), which does not cancel."""
        direction, middle = positive - negative, (positive + negative) / 2
        along = torch.stack([states.to(direction.dtype) @ direction for states in self.hidden_states])
        return 2 * (torch.where(self.scale != 0, along, 0.0) * self.scale - middle @ direction)

    def spread(self, margins: Float[Tensor, "batch tokens"], side: Bool[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
        """Standard deviation over the tokens of a side."""
        count = self.total(side.sum()).clamp(min=1)
        mean = self.total(torch.where(side, margins, 0.0).sum()) / count
        variance = self.total(torch.where(side, (margins - mean).square(), 0.0).sum()) / count
        return variance.clamp(min=1e-8).sqrt()

    def assignments(
        self, margins: Float[Tensor, "batch tokens"], spreads: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch tokens"]:
        """a_t of the tokens of both sides."""
        positive, negative = spreads
        return torch.sigmoid(torch.where(self.sides[0], margins / positive, -margins / negative))


def delta_factors(
    logps: Float[Tensor, "batch tokens"],
    hidden_states: Float[Tensor, "batch tokens hidden"],
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
    low: float = 0.8,
    high: float = 1.2,
    refinements: int = 1,
    total: Callable[[Tensor], Tensor] = alone,
) -> Float[Tensor, "batch tokens"]:
    """DelTA's factors (arXiv 2605.21467).

    Args:
        logps: (B, T) log-probs of the tokens, nats.
        hidden_states: (B, T, H) states from which the head computes the tokens' logits.
        advantages: (B,) sequence advantages.
        mask: (B, T) bool, the tokens in the loss.
        low: Factor of a token with a_t = 0, before the mean is divided out; also of completions without an advantage.
        high: Factor of a token with a_t = 1.
        refinements: Times that the means are refined.
        total: Sums a tensor over all processes.

    Returns:
        (B, T) factors without gradient, at least float32, 0 off the mask. All are 1 unless there are tokens on both sides.
        Those of a completion with a NaN or infinite value on its mask are NaN; it counts nowhere. Log-probs and states of
        completions without an advantage are not read.
    """
    logps, advantages = at_least_float32(logps.detach()), at_least_float32(advantages.detach())
    states = hidden_states.detach()
    finite = torch.isfinite(logps) & torch.isfinite(states).all(-1)
    known = (finite | ~mask).all(-1) | (advantages == 0)
    usable = (known & torch.isfinite(advantages)).unsqueeze(1)
    counted = mask & usable
    signs = torch.where(counted, advantages.unsqueeze(1), 0.0)
    found = _Sides(
        states,
        torch.where(signs != 0, -torch.expm1(logps), 0.0),
        signs.abs(),
        (signs > 0, signs < 0),
        total,
    )
    masses = torch.stack([(found.sizes * side).sum() for side in found.sides])
    if not (total(masses) > 0).all():
        return torch.where(usable | ~mask, mask.to(logps.dtype), torch.nan)
    weights = found.sizes
    centroids = tuple(found.centroid(weights * side) for side in found.sides)
    margins = found.margins(*centroids)
    spreads = tuple(found.spread(margins, side) for side in found.sides)
    for _ in range(refinements):
        weights = found.sizes * found.assignments(margins, spreads)
        spreads = tuple(found.spread(margins, side) for side in found.sides)
        centroids = tuple(found.centroid(weights * side) for side in found.sides)
        margins = found.margins(*centroids)
    assigned = torch.where(found.sides[0] | found.sides[1], found.assignments(margins, spreads), 0.0)
    factors = torch.where(counted, low + (high - low) * assigned, 0.0)
    factors = factors * (total(counted.sum()) / total(factors.sum()).clamp(min=1e-8))
    return torch.where(usable | ~mask, factors, torch.nan)


@dataclass(frozen=True)
class DelTA(CreditMethod):
    """Factors by how well a token's gradient tells completions with a positive advantage from those with a negative one.

    Args:
        low: Factor of the tokens that are nearest to the other side, before the mean factor is divided out.
        high: Factor of the tokens that are farthest from the other side.
        refinements: Times that the two means are computed again with the tokens' assignments as weights.
    """

    low: float = 0.8
    high: float = 1.2
    refinements: int = 1

    name = "delta"
    paper = Paper(
        title="DelTA: Discriminative Token Credit Assignment for Reinforcement Learning from Verifiable Rewards",
        id="2605.21467",
        citation=(
            "@article{zhang2026delta,\n"
            "    title        = {{DelTA: Discriminative Token Credit Assignment for Reinforcement Learning from Verifiable "
            "Rewards}},\n"
            "    author       = {Kaiyi Zhang and Wei Wu and Yankai Lin},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2605.21467},\n"
            "}"
        ),
    )
    differences = (
        "Means, standard deviations and the mean factor are those of the generation batch of all processes; in the code "
        "each process has its own.",
        "Only tokens in the loss count; the code also counts the text of tools.",
        "If no token has a positive or none a negative advantage, all factors are 1; the code then measures distances from "
        "the zero vector.",
        "The difference of the squared distances is computed as one product, and a standard deviation as the mean square of "
        "deviations, which are the same quantities without cancellation.",
        "A completion with a NaN or infinite value does not count and gets the factor 1. One without an advantage counts "
        "in the mean factor whatever its values, which are not computed.",
        "The factors multiply the advantages of TRL's loss, whatever its type; the code's loss is the mean over all tokens "
        "of an update.",
    )
    mean_one = False
    reads_sign = True
    policies = ("tokens",)
    rollout_needs = ("logps", "hidden_states")

    def validate(self) -> None:
        self.require(0 <= self.low < math.inf, "low", "non-negative and finite")
        self.require(self.low < self.high < math.inf, "high", f"above `low` ({self.low}) and finite")
        self.require(self.refinements >= 0, "refinements", "at least 0")

    def rollout_rows(self, rollout: Rollout) -> Bool[Tensor, " batch"]:
        return rollout.advantages != 0

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        factors = delta_factors(
            rollout.logps,
            rollout.hidden_states,
            rollout.advantages,
            rollout.mask,
            self.low,
            self.high,
            self.refinements,
            rollout.sum,
        )
        return {"factors": factors}

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        factors = inputs.rollout["factors"]
        return where_finite(factors, factors.new_ones(len(factors)), inputs.mask)

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        return (
            "the completions of this generation batch do not have advantages of both signs, or their tokens are equally "
            f"near to both sides; generate more prompts at once, or widen `low` ({self.low}) and `high` ({self.high})."
        )
