"""RLSD: credit by how much the reference answer in the prompt raises or lowers each token's log-prob.

    D_t = log pi(y_t | x, r, y_<t) - log pi(y_t | x, y_<t)       # r: the reference answer
    g_t = 1 - lambda + lambda clamp(exp(sign(A) D_t), 1 - eps, 1 + eps)
    A_t = A g_t

The policy that has read the answer is the teacher. In a completion with a positive advantage, tokens that the teacher
likes get more; with a negative advantage, tokens that it dislikes do. The factors stay within 1 -+ lambda eps, so the
sign of the advantage is the reward's. With the defaults that is 0.9 to 1.1: little, by design.

Reference: Self-Distilled RLVR (arXiv 2604.03128); official code github.com/iie-ycx/RLSD, `_build_stgca_advantages`. Its
run (rlsd_train.sh): lambda falls from 0.5 to 0 over 60 updates, which is `strength: {from: 0.5, to: 0, updates: 60}`;
eps 0.2, 8 completions per prompt, learning rate 1e-6, clip 0.2 / 0.28, no KL term.

Known weakness: a teacher that knows the answer prefers direct, short completions, and on mathematics the policy's
completions were seen to shrink (RLCSD, arXiv 2606.11709). A run warns if they shrink to half of what they were
([`~trl_credit.trainer.collapse.LengthWatch`]).

Differences from the paper and its code are numbered in [`RLSD.differences`].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.hint import HintLogps, check_hint
from ..signals.thought_tokens import ThoughtTokens
from .base import CreditMethod, Paper
from .gcpo import noise_floor_of
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION, at_least_float32
from .schedule import check_schedule, ever_nonzero, points_of, value_at


def rlsd_factors(
    policy_logps: Float[Tensor, "batch tokens"],
    hint_logps: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"],
    strength: float = 0.5,
    clip_range: float = 0.2,
) -> Float[Tensor, "batch tokens"]:
    """RLSD's factors g_t (arXiv 2604.03128; official `_build_stgca_advantages`).

    Args:
        policy_logps: (B, T) log-probs of the completion's tokens under the prompt, nats.
        hint_logps: (B, T) log-probs of the same tokens under the prompt with the reference answer, nats.
        mask: (B, T) bool, the tokens in the loss.
        advantages: (B,) sequence advantages, of which the sign counts.
        strength: lambda, how much of the factor is the teacher's.
        clip_range: eps, how far the teacher's part may be from 1.

    Returns:
        (B, T) factors without gradient, at least float32: >= 0 and 0 off the mask. A completion with a NaN or infinite
        log-prob on its mask, or a zero advantage, gets 1.
    """
    policy_logps, hint_logps = at_least_float32(policy_logps.detach()), at_least_float32(hint_logps.detach())
    finite = (torch.isfinite(policy_logps) & torch.isfinite(hint_logps)) | ~mask
    gap = torch.where(finite & mask, hint_logps - policy_logps, 0.0)
    teacher = (advantages.detach().sign().to(gap.dtype).unsqueeze(1) * gap).exp().clamp(1 - clip_range, 1 + clip_range)
    factors = torch.where(finite.all(-1, keepdim=True), 1 - strength + strength * teacher, 1.0)
    return torch.where(mask, factors, 0.0)


@dataclass(frozen=True)
class RLSD(CreditMethod):
    """Credit by how much the reference answer in the prompt changes each token's log-prob.

    Args:
        strength: lambda, from 0 (plain GRPO) to 1: how much of a token's factor is the teacher's. A number, or a schedule
            such as `{from: 0.5, to: 0, updates: 60}`.
        clip_range: eps: the teacher's part of a factor stays within 1 - eps and 1 + eps.
        column: The dataset's column with the reference answer, or with a whole solution.
        template: The prompt with the answer in it: `default`, or a text with the slots `{prompt}` and `{answer}`.
        negative_only: Whether only completions with a negative advantage get factors.
        thought_only: Whether only the tokens of the thought get factors.
        thought_start: The tag that starts a thought, with `thought_only`.
        thought_end: The tag that ends it.
    """

    strength: float | dict | list = 0.5
    clip_range: float = 0.2
    column: str = "solution"
    template: str = "default"
    negative_only: bool = False
    thought_only: bool = False
    thought_start: str = "<think>"
    thought_end: str = "</think>"

    name = "rlsd"
    paper = Paper(
        title="Self-Distilled RLVR",
        id="2604.03128",
        citation=(
            "@article{yang2026rlsd,\n"
            "    title        = {{Self-Distilled RLVR}},\n"
            "    author       = {Chenxu Yang and Chuanyu Qin and Qingyi Si and Minghui Chen and Naibin Gu and Dingyu Yao "
            "and Zheng Lin and Weiping Wang and Jiaqi Wang and Nan Duan},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2604.03128},\n"
            "}"
        ),
    )
    differences = (
        "The teacher is the live policy, as by default in the official code; the official run uses a copy of the policy "
        "that is renewed every 20 updates.",
        "The default `strength` is constant, as in the official code; the official run lets it fall to 0 over 60 updates.",
        "A schedule counts updates from 0, the official code from 1: its first update has 59/60 of the strength.",
        "The wording of the default template is ours. It does not repeat the official one's answer format, which the "
        "prompt has already.",
        "The thought's tags are found in the text, by default `<think>`; the official code looks for the token ids of "
        "`<thought>` and finds none where the tokenizer merges a tag's end with what follows.",
        "A completion with a NaN or infinite log-prob gets factors of 1 and is counted in `credit/nonfinite_tokens`.",
    )
    mean_one = False
    reads_sign = True
    watches_length = True
    policies = ("tokens",)

    def validate(self) -> None:
        check_hint(self.template, self.column)
        check_schedule(self.strength, self.name, "strength")
        self.require(all(0 <= number <= 1 for _, number in points_of(self.strength)), "strength", "between 0 and 1")
        self.require(ever_nonzero(self.strength), "strength", "above 0 (0 is `uniform`)")
        self.require(0 < self.clip_range <= 1, "clip_range", "above 0 and at most 1")
        for name in ("thought_start", "thought_end"):
            self.require(bool(getattr(self, name).strip()), name, "a tag")
            if not self.thought_only and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"credit method 'rlsd': `{name}` ({getattr(self, name)!r}) has no effect without `thought_only: true`."
                )

    @property
    def _hint(self) -> Signal:
        return HintLogps(self.template, self.column)

    @property
    def _thought(self) -> Signal:
        return ThoughtTokens(self.thought_start, self.thought_end)

    def signals(self) -> tuple[Signal, ...]:
        return (self._hint, self._thought) if self.thought_only else (self._hint,)

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        factors = rlsd_factors(
            inputs.policy_logps,
            inputs.signals[self._hint].masked_fill(inputs.nonfinite, torch.nan),
            inputs.mask,
            inputs.advantages,
            value_at(self.strength, inputs.step),
            self.clip_range,
        )
        plain = torch.zeros_like(inputs.mask)
        if self.negative_only:
            plain = plain | (inputs.advantages >= 0).unsqueeze(1)
        if self.thought_only:
            plain = plain | ~(inputs.signals[self._thought] > 0.5)
        return torch.where(plain & inputs.mask, 1.0, factors)

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """True if the hint moves hardly any token's log-prob. Factors near 1 are the method's design, and the end of a
        falling `strength`."""
        fraction = metrics.get("credit/hint_fraction", math.nan)
        return None if math.isnan(fraction) else fraction < 1 - UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        return (
            f"the reference answer of column {self.column!r} moves hardly any token's log-prob by more than the rounding of "
            f"{str(inputs.compute_dtype).removeprefix('torch.')}; choose a `template` that this model reacts to, or a "
            "`column` with whole solutions."
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`hint_gain`: mean of D_t (nats), above 0 if the hint makes the completions likelier. `hint_fraction`: fraction of
        tokens that it moves by more than the noise floor. `hint_clipped`: fraction at a bound of the clip. `strength`, if
        it is a schedule."""
        gap = at_least_float32(inputs.signals[self._hint]) - at_least_float32(inputs.policy_logps)
        moved = (gap.abs() > noise_floor_of(inputs.compute_dtype)).to(gap.dtype)
        signed = inputs.advantages.sign().to(gap.dtype).unsqueeze(1) * gap
        outside = (signed < math.log1p(-self.clip_range)) if self.clip_range < 1 else torch.zeros_like(inputs.mask)
        clipped = (outside | (signed > math.log1p(self.clip_range))).to(gap.dtype)
        return {
            "hint_gain": gap,
            "hint_fraction": moved.masked_fill(gap.isnan(), torch.nan),
            "hint_clipped": clipped.masked_fill(gap.isnan(), torch.nan),
            **self.scheduled(inputs, "strength"),
        }
