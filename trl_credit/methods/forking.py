"""Forking tokens: only the tokens at which the policy hesitates are trained.

    w_t = 1 if H(pi_theta)_t is in the top share of the micro-batch's entropies, else 0      # share = 0.2

The tokens of high entropy are where a chain of thought branches. The loss's denominator still counts every token.

This is TRL's `top_entropy_quantile`: the same method of TRL's trainer chooses the tokens, so the gradient is the same. As
a credit method it can be combined, compared and inspected.

Reference: Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning
(arXiv 2506.01939), with DAPO's loss. Differences from the paper are numbered in [`Forking.differences`].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.high_entropy import HighEntropy
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32


@dataclass(frozen=True)
class Forking(CreditMethod):
    """Only the tokens at which the policy's entropy is highest.

    Args:
        fraction: Share of the micro-batch's tokens that are trained, over all processes.
    """

    fraction: float = 0.2

    name = "forking"
    paper = Paper(
        title=(
            "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning"
        ),
        id="2506.01939",
        citation=(
            "@article{wang2025beyond,\n"
            "    title        = {{Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement "
            "Learning for LLM Reasoning}},\n"
            "    author       = {Shenzhi Wang and Le Yu and Chang Gao and Chujie Zheng and Shixuan Liu and Rui Lu and "
            "others},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2506.01939},\n"
            "}"
        ),
    )
    differences = (
        "As in TRL, the quantile is taken over one micro-batch of all processes, not over the optimizer step's batch, so "
        "completions are neither skipped nor regrouped by length.",
        "TRL's `clip_ratio/*` are shares of the chosen tokens with its `top_entropy_quantile`; here they are shares of all "
        "tokens, of which the others are never clipped.",
    )
    mean_one = False
    reads_batch = True
    policies = ("tokens",)

    def validate(self) -> None:
        self.require(0 < self.fraction < 1, "fraction", "between 0 and 1 (both excluded)")

    @property
    def _signal(self) -> HighEntropy:
        return HighEntropy(self.fraction)

    def signals(self) -> tuple[Signal, ...]:
        return (self._signal,)

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        usable = ~inputs.nonfinite.any(-1, keepdim=True)
        chosen = torch.where(usable, at_least_float32(inputs.signals[self._signal]), 1.0)
        return torch.where(inputs.mask, chosen, 0.0)
