"""VPPO: only the tokens that depend most on the image are trained, and completions that do so count more.

    u_t = clamp(log pi(y_t | damaged image, y_<t) - log pi(y_t | image, y_<t), -20, 20)
    k_t = min(exp(u_t) - u_t - 1, 10)                    # pointwise estimate of KL(pi(. | image) || pi(. | damaged))
    m_t = 1 for the ceil(p T) tokens of the completion with the highest k_t, else 0
    z   = (S - min S) / (max S - min S)                  # S: mean k_t of a completion, min and max over completions
    f   = a + z (1 - a) / mean z                         # mean 1 over completions
    w_t = f m_t

The damaged image has a grid of 14 x 14 pixel patches of which each is black with probability 0.5, drawn anew for each
completion. p = 0.4, a = 0.9. The loss's denominator still counts every token, so the gradient is about p of GRPO's.

Reference: Spotlight on Token Perception for Multimodal Reinforcement Learning (arXiv 2510.09285); official code
github.com/huaixuheqing/VPPO-RL, `update_policy`. Its training settings (train_vppo_7b.sh): 8 completions per prompt, clip
0.2 / 0.28, token-mean loss, learning rate 1e-6, no KL term, groups all right or all wrong left out, and an entropy penalty
of 0.06.

Differences from the paper and its code are numbered in [`VPPO.differences`].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.damaged_image import DamagedImageLogps
from ..signals.second_prompt import HasSecondPrompt
from .base import CreditMethod, Paper
from .gcpo import contrast, noise_floor_of
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION


# Smallest span of the completions' mean contrasts that is not taken for rounding, and what keeps their mean from 0. Both
# are the official code's
_LEAST_SPAN, _EPSILON = 1e-6, 1e-8


def top_tokens(
    values: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], top_fraction: float
) -> Bool[Tensor, "batch tokens"]:
    """The ceil(n * top_fraction) highest values of each row with n tokens on the mask. The first of equal values wins.

    Args:
        values: (B, T) finite on the mask.
        mask: (B, T) bool.
        top_fraction: In (0, 1].
    """
    counts = [math.ceil(n * top_fraction - 1e-9) for n in mask.sum(-1).tolist()]  # 0.07 * 100 is above 7
    order = torch.where(mask, values, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.size(-1), device=order.device).expand_as(order)
    )
    return mask & (ranks < torch.tensor(counts, device=ranks.device).unsqueeze(-1))


def completion_factors(
    means: Float[Tensor, " batch"], usable: Bool[Tensor, " batch"], scaling_min: float
) -> Float[Tensor, " batch"]:
    """The factors f: `scaling_min` for the lowest mean contrast, and 1 on average.

    Args:
        means: (B,) mean contrast of each completion.
        usable: (B,) bool. The others get 1 and count nowhere.
        scaling_min: a.

    Returns:
        (B,) factors; 1 if fewer than two completions are usable or their means are equal up to rounding.
    """
    low, high = torch.where(usable, means, torch.inf).min(), torch.where(usable, means, -torch.inf).max()
    spread = high - low > _LEAST_SPAN  # not so with fewer than two
    scores = torch.where(usable & spread, (means - low) / torch.where(spread, high - low, 1.0), 0.0).clamp(0.0, 1.0)
    top = scaling_min + (1 - scaling_min) / (scores.sum() / usable.sum().clamp(min=1) + _EPSILON)
    return torch.where(usable & spread, scaling_min + scores * (top - scaling_min), 1.0)


def vppo_factors(
    policy_logps: Float[Tensor, "batch tokens"],
    damaged_logps: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    has_image: Bool[Tensor, " batch"],
    top_fraction: float = 0.4,
    scaling_min: float = 0.9,
) -> Float[Tensor, "batch tokens"]:
    """VPPO's factors w_t (arXiv 2510.09285; official `update_policy`).

    Args:
        policy_logps: (B, T) log-probs of the completion's tokens under the prompt, nats.
        damaged_logps: (B, T) log-probs of the same tokens under the prompt with damaged images, nats.
        mask: (B, T) bool, the tokens in the loss.
        has_image: (B,) bool, completions whose prompt has an image.
        top_fraction: p, the share of each completion's tokens that is trained.
        scaling_min: a, the factor of the completion with the lowest mean contrast.

    Returns:
        (B, T) factors without gradient, at least float32: >= 0 and 0 off the mask. A completion without an image, or with
        a NaN or infinite log-prob on its mask, gets 1 on its mask and does not change the others' factors.
    """
    policy_logps, damaged_logps = policy_logps.detach(), damaged_logps.detach()
    finite = ((torch.isfinite(policy_logps) & torch.isfinite(damaged_logps)) | ~mask).all(-1)
    usable = finite & has_image & mask.any(-1)
    contrasts = contrast(policy_logps, damaged_logps, noise_floor=0.0)
    contrasts = torch.where(mask, contrasts, 0.0)
    # float64 keeps small spans of the means apart, but not every accelerator has it
    wide = torch.float64 if contrasts.device.type in ("cpu", "cuda") else contrasts.dtype
    means = contrasts.to(wide).sum(-1) / mask.sum(-1).clamp(min=1)
    factors = completion_factors(means, usable, scaling_min).to(contrasts.dtype).unsqueeze(1)
    chosen = top_tokens(contrasts, mask, top_fraction) | ~usable.unsqueeze(1)
    return torch.where(mask & chosen, factors, 0.0)


@dataclass(frozen=True)
class VPPO(CreditMethod):
    """Only the tokens that depend most on the image, in completions that count by how much they do.

    Args:
        top_fraction: p, the share of each completion's tokens that is trained: those whose log-prob changes most when the
            image is damaged.
        scaling_min: a, the factor of the completion that depends least on its image. 1 leaves the completions alike.
        patch_size: Side of the patches that damage an image, in pixels.
        damage_probability: With which each patch turns black.
    """

    top_fraction: float = 0.4
    scaling_min: float = 0.9
    patch_size: int = 14
    damage_probability: float = 0.5

    name = "vppo"
    paper = Paper(
        title="Spotlight on Token Perception for Multimodal Reinforcement Learning",
        id="2510.09285",
        citation=(
            "@article{huang2025spotlight,\n"
            "    title        = {{Spotlight on Token Perception for Multimodal Reinforcement Learning}},\n"
            "    author       = {Siyuan Huang and Xiaoye Qu and Yafu Li and Yun Luo and Zefeng He and Daizong Liu and Yu "
            "Cheng},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2510.09285},\n"
            "}"
        ),
    )
    differences = (
        "Minimum, maximum and mean of the completions' contrasts are over one micro-batch of one process. The official code "
        "takes minimum and maximum over a device's mini-batch and the mean over its micro-batch. Completions are therefore "
        "neither skipped nor regrouped, and in a micro-batch of one the factor is 1.",
        "The contrast is that of the live policy, so tokens and factors can change between the iterations over a generation "
        "batch; the official code takes log-probs from before the first. On-policy they are the same.",
        "The entropy penalty of the official runs (0.06 for 7B, 0.12 for 8B, on the mean of -log p) is not part of the "
        "method. TRL's `entropy_coef` with a negative value is the place for it.",
        "The defaults are those of the official scripts, 0.4 and 0.9; the code's own are 0.2 and 0.8.",
        "Images are damaged as they are in the data, before the processor resizes them. The official code resizes them to "
        "between 200,704 and 1,003,520 pixels first, so the patches of larger images are smaller here.",
        "The damage of a completion is drawn from its tokens, so that a resumed run repeats it; the official draw has no "
        "seed.",
        "The paper writes the divergence over the whole vocabulary; the official code, and this method, use its estimate at "
        "the sampled token.",
        "exp(u) - u - 1 is computed as expm1(u) - u, which is the same formula without cancellation.",
        "Of tokens with equal contrast the first is trained; the official order of ties is arbitrary.",
        "A completion without an image trains as in GRPO and does not count in minimum, maximum and mean; the official code "
        "gives it the lowest factor and an arbitrary 40 % of its tokens.",
        "A completion with a NaN or infinite log-prob gets factors of 1, does not count either, and is counted in "
        "`credit/nonfinite_tokens`.",
    )
    mean_one = False
    reads_batch = True
    policies = ("tokens",)

    def validate(self) -> None:
        self.require(0 < self.top_fraction <= 1, "top_fraction", "above 0 and at most 1")
        self.require(0 <= self.scaling_min <= 1, "scaling_min", "between 0 and 1")
        self.require(
            self.top_fraction < 1 or self.scaling_min < 1,
            "top_fraction",
            "below 1 if `scaling_min` is 1 (that is `uniform`)",
        )
        self.require(self.patch_size >= 1, "patch_size", "at least 1")
        self.require(0 < self.damage_probability <= 1, "damage_probability", "above 0 and at most 1")

    @property
    def _damaged(self) -> Signal:
        return DamagedImageLogps(self.patch_size, self.damage_probability)

    def signals(self) -> tuple[Signal, ...]:
        return (self._damaged, HasSecondPrompt(self._damaged))

    def _usable(self, inputs: CreditInputs) -> Bool[Tensor, " batch"]:
        """(B,) bool, completions with an image and finite log-probs."""
        has_image = (inputs.signals[HasSecondPrompt(self._damaged)] > 0.5) & inputs.mask
        return has_image.any(-1) & ~inputs.nonfinite.any(-1)

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return vppo_factors(
            inputs.policy_logps,
            inputs.signals[self._damaged],
            inputs.mask,
            self._usable(inputs),
            self.top_fraction,
            self.scaling_min,
        )

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """True if the damage moves hardly any token's log-prob: the tokens are chosen however small the contrasts are."""
        fraction = metrics.get("credit/contrast_fraction", math.nan)
        return None if math.isnan(fraction) else fraction < 1 - UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        dtype = str(inputs.compute_dtype).removeprefix("torch.")
        return (
            f"damaged images move hardly any token's log-prob by more than the rounding of {dtype} "
            f"({noise_floor_of(inputs.compute_dtype):g} nats); raise `damage_probability` or `patch_size`, or train on "
            "questions that need their image."
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """Of completions with an image. `contrast`: mean of k_t (nats). `contrast_fraction`: fraction of tokens that the
        damage moves by more than the noise floor. `selected`: fraction of tokens that are trained."""
        usable = self._usable(inputs).unsqueeze(1)
        damaged = torch.where(usable & inputs.mask, inputs.signals[self._damaged], inputs.policy_logps)
        values = contrast(inputs.policy_logps, damaged, noise_floor=0.0)
        above = contrast(inputs.policy_logps, damaged, noise_floor_of(inputs.compute_dtype)) > 0
        chosen = top_tokens(torch.where(usable & inputs.mask, values, 0.0), inputs.mask, self.top_fraction)
        found = {"contrast": values, "contrast_fraction": above, "selected": chosen}
        return {name: one.to(values.dtype).masked_fill(~usable, torch.nan) for name, one in found.items()}
