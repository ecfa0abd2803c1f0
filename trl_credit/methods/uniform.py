"""Uniform credit: every token gets its completion's advantage, as in GRPO and DAPO.

    w_i,t = 1 on the mask

TRL's loss gets the advantages unchanged, so training is bit-identical to TRL's `GRPOTrainer`.

Reference: DeepSeekMath (arXiv 2402.03300). DAPO (arXiv 2503.14476), Dr. GRPO, GSPO and CISPO are settings of TRL's own
loss on top of it (`loss_type`, `epsilon_high`, `importance_sampling_level`, ...).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .base import CreditMethod, Paper
from .inputs import CreditInputs


@dataclass(frozen=True)
class Uniform(CreditMethod):
    """The sequence advantage on every token (GRPO, DAPO and TRL's other losses). No parameters."""

    name = "uniform"
    paper = Paper(
        title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        id="2402.03300",
        citation=(
            "@article{shao2024deepseekmath,\n"
            "    title        = {{DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models}},\n"
            "    author       = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Mingchuan "
            "Zhang and Y. K. Li and Y. Wu and Daya Guo},\n"
            "    year         = 2024,\n"
            "    eprint       = {arXiv:2402.03300},\n"
            "}"
        ),
    )
    # All weights are 1, so a sequence-level ratio has nothing to cancel: with one, this is GSPO.
    reweights = False

    @property
    def credits_zero_advantage(self) -> bool:
        return False

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return inputs.mask.float()

    def is_uniform(self, metrics: Mapping[str, float]) -> None:
        """Never reported as collapsed: uniform is intended."""
        return

    def token_advantages(
        self, advantages: Float[Tensor, " batch"], weights: Float[Tensor, "batch tokens"], inputs: CreditInputs
    ) -> Float[Tensor, " batch"]:
        return advantages
