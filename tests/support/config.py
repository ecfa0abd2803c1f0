"""Credit methods with deliberately wrong weights, and one that needs three completions."""

from dataclasses import dataclass

import torch

from trl_credit import (
    CreditMethod,
    Paper,
)


@dataclass(frozen=True)
class Broken(CreditMethod):
    """Weights that are none.

    Args:
        kind: How.
    """

    kind: str = "negative"
    name = "broken"
    paper = Paper("None", "0000.00000", "None")

    def weights(self, inputs):
        ones = inputs.mask.float()
        return {
            "negative": -ones, "twice": 2 * ones, "off the mask": torch.ones_like(ones), "shape": ones[:, :1],
            "nan": ones * float("nan"),
        }[self.kind]  # fmt: skip


class Trio(CreditMethod):
    """Has equal weights, and says that it needs three completions of a prompt, and two prompts."""

    name = "trio"
    paper = Paper("None", "0000.00000", "None")
    min_generations = 3
    min_prompts = 2

    def weights(self, inputs):
        return inputs.mask.float()
