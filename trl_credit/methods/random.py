"""Random credit: a control. A random share p of the tokens gets all the credit.

    w_t = 1 / p with probability p, else 0               # p = 0.5

The expected gradient is that of uniform credit (a Horvitz-Thompson estimate), so what a method gains over this one is
not owed to training on fewer tokens.

Reference: Not All Tokens Are Needed (NAT, arXiv 2603.06619), its uniform random sampling: half of the tokens match
GRPO there. Differences from the paper are numbered in [`RandomTokens.differences`].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .base import CreditMethod, Paper
from .draws import draws
from .inputs import CreditInputs


@dataclass(frozen=True)
class RandomTokens(CreditMethod):
    """A random share of the tokens, with unbiased weights: a control that any gain must beat.

    Args:
        fraction: p, the share of the tokens that are drawn.
        seed: Different seeds draw different tokens.
    """

    fraction: float = 0.5
    seed: int = 0

    name = "random"
    paper = Paper(
        title="Not All Tokens Are Needed (NAT): Token-Efficient Reinforcement Learning",
        id="2603.06619",
        citation=(
            "@article{nat2026,\n"
            "    title        = {{Not All Tokens Are Needed (NAT): Token-Efficient Reinforcement Learning}},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2603.06619},\n"
            "}"
        ),
    )
    differences = (
        "The paper leaves the other tokens out of the backward, which saves memory and time; here they get weight 0 and "
        "cost what they cost.",
        "The draw is a hash of the completion's tokens and `seed`, so that it is the same after a resume and on any number "
        "of processes.",
    )
    mean_one = False
    policies = ("tokens",)

    def validate(self) -> None:
        self.require(0 < self.fraction < 1, "fraction", "between 0 and 1 (both excluded)")

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        drawn = (draws(inputs.token_ids, inputs.mask, self.seed) < self.fraction) & inputs.mask
        return drawn.to(torch.float32) / self.fraction
