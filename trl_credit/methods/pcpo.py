"""PCPO: proportionate credit for the steps of diffusion and flow-matching models (arXiv 2509.25774).

    log rho_i = -[w_i mean(D eps_i) + w_i^2 / 2 mean(D^2)]            # D = prediction_new - prediction_old
    w_i = (c1 - c2) / sigma_i                                         # DDIM, alpha_t = abar_t / abar_prev
          c1 = sqrt(1 - abar_t) / sqrt(alpha_t),  c2 = sqrt(1 - abar_prev - sigma_i^2)
    w_i = sqrt(dt_i) / sigma_i (1 + (1 - t_i) sigma_i^2 / (2 t_i))    # flow matching, noise sigma_i sqrt(dt_i)
    c_i = w* / w_i,         w* = mean(w)                              # DDIM: steps contribute alike
    c_i = zeta dt_i / w_i,  zeta = sum(w)                             # flow matching: by their length

A token is a step of the sampler. w_i is the step's native weight: a uniform loss trains steps in proportion to it, which
for DDPM with 50 steps differs 24-fold. sum(c w) = sum(w), so credit is moved, not added; mean(c) is not 1 (1.16 for DDPM
with 50 steps). In Flow-GRPO's SDE, (1 - t) sigma^2 / t is the same at every step, so c_i is proportional to
sigma_i sqrt(dt_i): PCPO is TempFlow-GRPO's weighting (2508.04324) up to a constant, except for a step at t = 1.

Reference: "PCPO: Proportionate Credit Policy Optimization for Aligning Image Generation Models" (arXiv 2509.25774).
Settings: Stable Diffusion 1.5, DDIM with eta 1 and 50 steps, guidance 5, LoRA rank 16, lr 3e-4, clip range 1e-4;
Stable Diffusion 3.5 medium, 10 steps, eta 0.7, guidance 4.5. Its repository is not public any more; what is said of it here
was read in the first author's jaylee2000/rsm.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.sampler_steps import StepShare
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32


FORMS = ("hinge", "ratio", "advantage")
TARGETS = ("interval", "count")

# The smallest ratio that the hinge's stand-in reaches; the gradient is the hinge's even below
_LEAST_RATIO = 1e-3


def pcpo_weights(
    native: Float[Tensor, "batch tokens"],
    target: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens"]:
    """(B, T) c_i: the share that a step should have over the share w_i / sum(w) that it has.

    Args:
        native: (B, T) w_i / sum(w), over all steps of the sampler.
        target: (B, T) the share it should have: dt_i / sum(dt), or 1 / N.
        mask: (B, T) bool.

    Returns:
        (B, T) in at least float32, 0 off the mask. An image with a NaN, an infinity or a native share of zero gets uniform
        weights (1 on the mask).
    """
    native, target = at_least_float32(native), at_least_float32(target)
    weights = target / native
    usable = (torch.isfinite(weights) & (weights >= 0)) & torch.isfinite(native) & torch.isfinite(target)
    weights = torch.where((usable | ~mask).all(-1, keepdim=True), weights, 1.0)
    return torch.where(mask, weights, 0.0)


@dataclass(frozen=True)
class PCPO(CreditMethod):
    """Steps of an image model in proportion to their length, not to the sampler's arithmetic.

    Args:
        form: How credit enters off-policy; on-policy all three have the same gradient. `"hinge"`: the paper's
            max(0, xi |A| - A c_i log rho), clipped where c_i log rho leaves the clip range. `"ratio"`: the authors' code,
            exp(c_i (logp - old)) in the clipped loss. `"advantage"`: c_i A as the step's advantage, which clips the unscaled
            ratio.
        target: What a step's contribution is proportional to. `"interval"`: the paper, dt_i for flow matching and equal for
            DDIM. `"count"`: equal for all steps, for flow matching too.
    """

    form: str = "hinge"
    target: str = "interval"

    name = "pcpo"
    paper = Paper(
        title="PCPO: Proportionate Credit Policy Optimization for Aligning Image Generation Models",
        id="2509.25774",
        citation=(
            "@article{lee2025pcpo,\n"
            "    title        = {{PCPO: Proportionate Credit Policy Optimization for Aligning Image Generation Models}},\n"
            "    author       = {Jeongjae Lee and Jong Chul Ye},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2509.25774},\n"
            "}"
        ),
    )
    differences = (
        "`form: hinge` is the paper's log-hinge as TRL's clipped loss of 1 + c (logp - old): gradients are equal; the "
        "loss's value differs by a constant, and below a ratio of 0.001 it stays there. The authors' code uses `ratio`.",
        "`form: ratio` scales the log-ratio within the clip, as the authors' code does: a step with a large c is clipped "
        "sooner. `form: advantage` scales outside the clip, so every step is clipped alike.",
        "The weights come from the schedule in use. The authors' constant zeta = 4.3152134639895925 is the sum over ten "
        "evenly spaced, shifted steps with w_0 replaced by w_1; diffusers' own schedule of ten steps for Stable Diffusion 3 "
        "ends at t = .0089 and sums to 5.7054.",
        "At t = 1 Flow-GRPO's noise level takes the next time, as its code does, and w_0 follows from that; the authors "
        "replace w_0 by w_1.",
        "The authors' `uw-sigma` option for Stable Diffusion also changes the sampler's noise, to (c1 + c2) / sigma = 4.5. "
        "That leaves (c1 - c2) / sigma uneven. Here the sampler stays and the loss is reweighted, as their `uw-lambda`.",
        "Shares are taken over all steps of the sampler, trained or not, so that `train_steps` does not change c.",
    )
    # c has no mean of 1, and steps have no sequence-level ratio
    reweights = False
    mean_one = False
    policies = ("steps",)
    on_its_own = "its weights enter through the loss's ratio"

    def validate(self) -> None:
        self.require(self.form in FORMS, "form", f"one of {', '.join(FORMS)}")
        self.require(self.target in TARGETS, "target", f"one of {', '.join(TARGETS)}")

    def signals(self) -> tuple[Signal, ...]:
        return (StepShare("native"), StepShare(self.target))

    @property
    def credits_zero_advantage(self) -> bool:
        return False

    @property
    def shapes_ratio(self) -> bool:
        return self.form != "advantage"

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        native, target = (inputs.signals[signal] for signal in self.signals())
        return pcpo_weights(native, target, inputs.mask)

    def token_advantages(
        self, advantages: Float[Tensor, " batch"], weights: Float[Tensor, "batch tokens"], inputs: CreditInputs
    ) -> Float[Tensor, "batch tokens"] | Float[Tensor, " batch"]:
        return advantages if self.shapes_ratio else super().token_advantages(advantages, weights, inputs)

    def ratio_logps(
        self,
        logps: Float[Tensor, "batch tokens"],
        old_logps: Float[Tensor, "batch tokens"],
        weights: Float[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens"]:
        scaled = weights.to(logps.dtype) * (logps - old_logps)
        if self.form == "ratio":
            return old_logps + scaled
        ratio = (1 + scaled.detach()).clamp(min=_LEAST_RATIO)
        # The value is old + log(ratio); its gradient makes that of the loss's exp(...) equal to scaled's, at any ratio
        return old_logps + ratio.log() + (scaled - scaled.detach()) / ratio

    def remedy(self, inputs: CreditInputs) -> str:
        return "this sampler's steps contribute in proportion already, so PCPO equals uniform here."
