"""FIPO: credit by what the update so far has done to the rest of the completion.

    F_t = sum over k >= t of g^(k - t) (log pi_theta(y_k) - log pi_old(y_k)),   g = 2^(-1 / half_life)
    w_t = clip(exp(F_t), 1, 1 + clip)                    # half_life = 32, clip = 0.2
    w_t = clip(w_t, 0.8, 1) where A < 0 and pi_theta(y_t) / pi_old(y_t) > 4

A token whose future the update makes more likely gets more of the advantage. On-policy every log-ratio is 0 and so every
weight is exactly 1: the method acts from the second update on a generation batch on (`num_iterations` above 1, or
`steps_per_generation` above `gradient_accumulation_steps`), and a run that is on-policy throughout is refused.

Reference: FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization (arXiv 2603.19835), on DAPO's
loss; code in ms-swift (`loss_type: fipo`). Differences are numbered in [`FIPO.differences`].
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32


# Bounds of the weights of tokens that are already far too likely for their negative advantage
_SAFE = (0.8, 1.0)


def discounted_future(values: Float[Tensor, "batch tokens"], discount: float) -> Float[Tensor, "batch tokens"]:
    """(B, T) sums over k >= t of discount^(k - t) * values_k, in log2(T) steps."""
    reach = 1
    while reach < values.size(1):
        # Each entry holds the sum over the next `reach` places; add that of the `reach` places after those
        later = torch.nn.functional.pad(values[:, reach:], (0, reach))
        values = values + discount**reach * later
        reach *= 2
    return values


def fipo_weights(
    log_ratio: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
    half_life: float = 32.0,
    clip: float | None = 0.2,
    both_sides: bool = False,
    safe_ratio: float | None = 4.0,
    ratio_limit: float | None = None,
) -> Float[Tensor, "batch tokens"]:
    """FIPO's token weights (arXiv 2603.19835).

    Args:
        log_ratio: (B, T) log pi_theta - log pi_old, nats.
        advantages: (B,) sequence advantages.
        mask: (B, T) bool, the tokens in the loss.
        half_life: Tokens after which the future counts half.
        clip: Largest distance of a weight from 1; `None` for no bound.
        both_sides: Whether weights may also fall below 1.
        safe_ratio: Ratio above which a token with a negative advantage gets a weight of at most 1; `None` for none.
        ratio_limit: Ratio above which a token does not count in any F; `None` for none.

    Returns:
        (B, T) weights without gradient, at least float32: > 0, 0 off the mask. A completion with a NaN or infinite log-ratio
        on its mask gets weights of 1.
    """
    log_ratio = at_least_float32(log_ratio.detach())
    usable = (torch.isfinite(log_ratio) | ~mask).all(-1, keepdim=True)
    log_ratio = torch.where(mask & usable, log_ratio, 0.0)
    counted = log_ratio if ratio_limit is None else torch.where(log_ratio > math.log(ratio_limit), 0.0, log_ratio)
    weights = torch.exp(discounted_future(counted, 2.0 ** (-1.0 / half_life)))
    if clip is not None:
        weights = weights.clamp(1 - clip if both_sides else 1.0, 1 + clip)
    if safe_ratio is not None:
        unsafe = (advantages < 0).unsqueeze(1) & (log_ratio > math.log(safe_ratio))
        weights = torch.where(unsafe, weights.clamp(*_SAFE), weights)
    return torch.where(mask, weights, 0.0)


@dataclass(frozen=True)
class FIPO(CreditMethod):
    """Credit by what the update so far has done to the rest of the completion. Acts off-policy only.

    Args:
        half_life: Tokens after which the future counts half.
        clip: Weights lie in [1, 1 + clip].
        both_sides: Whether they may lie in [1 - clip, 1 + clip].
        safe_ratio: Tokens with a negative advantage whose ratio is above this get a weight in [0.8, 1].
        ratio_limit: Tokens whose ratio is above this do not count in the sums. By default every token
            counts.
    """

    half_life: float = 32.0
    clip: float = 0.2
    both_sides: bool = False
    safe_ratio: float = 4.0
    ratio_limit: float | None = None

    name = "fipo"
    paper = Paper(
        title="FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization",
        id="2603.19835",
        citation=(
            "@article{fipo2026,\n"
            "    title        = {{FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization}},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2603.19835},\n"
            "}"
        ),
    )
    differences = (
        "The weight multiplies the advantage inside TRL's loss, which for a weight above 0 is the same as multiplying the "
        "clipped loss, as ms-swift does.",
        "ms-swift ties the limit on counted ratios to the loss's upper bound (`delta`); here `ratio_limit` is a parameter, "
        "and `delta` stays TRL's.",
        "The defaults are ms-swift's. The authors' code was not to be had; a fork of it limits the counted ratios always, "
        "bounds log-ratios by 20, has a half-life of 128 and no bound of the weights by default, and leaves out completions "
        "with more than one token beyond its loss's second clip.",
        "A completion with a NaN or infinite log-ratio gets weights of 1.",
    )
    mean_one = False
    reads_sign = True
    needs_old_policy = True
    policies = ("tokens",)

    def validate(self) -> None:
        self.require(0 < self.half_life < math.inf, "half_life", "positive and finite")
        self.require(0 < self.clip < 1, "clip", "between 0 and 1 (both excluded)")
        self.require(1 <= self.safe_ratio < math.inf, "safe_ratio", "at least 1 and finite")
        if self.ratio_limit is not None:
            self.require(1 < self.ratio_limit < math.inf, "ratio_limit", "above 1 and finite")

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return fipo_weights(
            inputs.log_ratio,
            inputs.advantages,
            inputs.mask,
            self.half_life,
            self.clip,
            self.both_sides,
            self.safe_ratio,
            self.ratio_limit,
        )

    def remedy(self, inputs: CreditInputs) -> str:
        return (
            "the policy hardly moves between the updates on a generation batch; raise `num_iterations`, "
            "`steps_per_generation` or `learning_rate`."
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`log_ratio`: mean of log pi_theta - log pi_old (nats)."""
        return {"log_ratio": inputs.log_ratio}
