"""GCPO: credit by how much a negative prompt changes each token's log-prob.

    u_t = clamp(log pi(y_t | x-, y_<t) - log pi(y_t | x, y_<t), -20, 20)
    c_t = min(exp(u_t) - u_t - 1, 10)                    # pointwise estimate of KL(pi(. | x) || pi(. | x-))
    p_t = rank(c_t) / T                                  # rank 1 = lowest contrast, within the completion
    w_t = T * p_t^a / sum_s p_s^a,   a = ln(1 - top_mass) / ln(1 - top_fraction) - 1

x- is a negative prompt, by default the question plus a note to generate an incorrect answer. The tokens whose
probability changes most when asked for a wrong answer are the tokens that decide the answer. With `divergence: full`,
c_t is KL(pi(. | x) || pi(. | x-)) over the whole vocabulary, as in the paper. Both sides come from the live policy at
the update step, without gradient, at the rollout temperature. With the defaults, the top 40 % of the tokens get 80 % of
the completion's advantage, and the largest weight is about 3.15.

Reference: Guidance Contrastive Token Credit Assignment for Discrete Policy Optimization (arXiv 2605.29198); official code
github.com/jacklishufan/gcpo, `compute_importance_weights`. Its training settings: clip 0.2 / 0.28, token-mean loss,
learning rate 1e-6, weight decay 0.01, no KL term, 8 completions per prompt.

Differences from the paper and its code are numbered in [`GCPO.differences`].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .._util.text import nearest
from ..signals.base import Signal
from ..signals.negative_prompt import NegativePromptKL, NegativePromptLogps, check_negative_prompt
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION, at_least_float32, mean_one


# Log-prob differences |u| up to this size (nats) are rounding error: 1 to 64 extra left pads on the same prompt move a
# token's log-prob this much on models of 1M to 135M parameters (measured by `benchmarks/noise_floor.py`).
_NOISE_FLOOR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 3e-1}

DIVERGENCES = ("sampled", "full")


def noise_floor_of(dtype: torch.dtype) -> float:
    """Noise floor, in nats, of log-probs computed in `dtype`. Unlisted dtypes get bfloat16's."""
    return _NOISE_FLOOR.get(dtype, _NOISE_FLOOR[torch.bfloat16])


def contrast(
    policy_logps: Float[Tensor, "batch tokens"],
    negative_logps: Float[Tensor, "batch tokens"],
    noise_floor: float | None = None,
) -> Float[Tensor, "batch tokens"]:
    """Computes the pointwise KL estimate c_t (see the module docstring).

    Args:
        policy_logps: (B, T) log-probs under the prompt, nats.
        negative_logps: (B, T) log-probs of the same tokens under the negative prompt, nats.
        noise_floor: Differences |u| up to this count as 0 (exact ties). By default the floor of `policy_logps`' dtype.

    Returns:
        (B, T) contrasts in [0, 10], at least float32; NaN where an input is NaN or both are infinite.
    """
    if noise_floor is None:
        noise_floor = noise_floor_of(policy_logps.dtype)
    u = (at_least_float32(negative_logps) - at_least_float32(policy_logps)).clamp(-20.0, 20.0)
    # expm1 keeps small contrasts: in float32, exp(u) - u - 1 loses all of them below |u| ~ 4e-4
    return torch.where(u.abs() <= noise_floor, u * 0.0, (torch.expm1(u) - u).clamp(max=10.0))


def full_contrast(divergence: Float[Tensor, "batch tokens"], noise_floor: float) -> Float[Tensor, "batch tokens"]:
    """Computes the contrast c_t with `divergence: full`.

    Args:
        divergence: (B, T) KL(pi(. | x) || pi(. | x-)), nats.
        noise_floor: As in [`contrast`]. Log-probs that differ by the floor on every token have a divergence of half its
            square, so divergences up to that count as 0 (exact ties).

    Returns:
        (B, T) contrasts, at least float32.
    """
    divergence = at_least_float32(divergence)
    return torch.where(divergence <= noise_floor**2 / 2, divergence * 0.0, divergence)


def average_ranks(
    values: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Ranks values within each row's mask, 1 = lowest. Ties share their average rank.

    Args:
        values: (B, T) finite floats.
        mask: (B, T) bool.

    Returns:
        (B, T) ranks in `values`' dtype, meaningless off the mask.
    """
    values = torch.where(mask, values, torch.inf).contiguous()
    ordered = values.sort(-1).values
    lower = torch.searchsorted(ordered, values, right=False)
    upper = torch.searchsorted(ordered, values, right=True)
    return (lower + upper + 1).to(values.dtype) / 2


def rank_weights(
    contrasts: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    top_fraction: float,
    top_mass: float,
) -> Float[Tensor, "batch tokens"]:
    """Computes the weights w_t (see the module docstring).

    Args:
        contrasts: (B, T) contrasts c_t.
        mask: (B, T) bool, the tokens in the loss.
        top_fraction: See [`gcpo_weights`].
        top_mass: See [`gcpo_weights`].

    Returns:
        (B, T) weights in the contrasts' dtype. A completion with a NaN or infinite contrast on its mask gets uniform
        weights.
    """
    finite = torch.isfinite(contrasts)
    exponent = math.log(1 - top_mass) / math.log(1 - top_fraction) - 1
    length = mask.sum(-1, keepdim=True).clamp(min=1)
    ranks = average_ranks(torch.where(finite & mask, contrasts, 0.0), mask)
    percentiles = (ranks / length).clamp(max=1.0)
    return mean_one(percentiles.pow(exponent), mask, valid=(finite | ~mask).all(-1, keepdim=True))


def gcpo_weights(
    policy_logps: Float[Tensor, "batch tokens"],
    negative_logps: Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    top_fraction: float = 0.4,
    top_mass: float = 0.8,
    noise_floor: float | None = None,
) -> Float[Tensor, "batch tokens"]:
    """GCPO's token weights (arXiv 2605.29198; official `compute_importance_weights`).

    Args:
        policy_logps: (B, T) log-probs of the completion's tokens under the prompt, nats.
        negative_logps: (B, T) log-probs of the same tokens under the negative prompt, nats.
        mask: (B, T), non-zero on the tokens in the loss.
        top_fraction: Fraction of a completion's tokens, those with the highest contrast, that get `top_mass`.
        top_mass: Fraction of the weight that the top tokens get, in the limit of long completions.
        noise_floor: See [`contrast`].

    Returns:
        (B, T) weights without gradient, at least float32: >= 0, 0 off the mask, mean 1 over each completion's mask. A
        completion with a NaN or infinite log-prob on its mask gets uniform weights.
    """
    policy_logps, negative_logps = policy_logps.detach(), negative_logps.detach()
    finite = torch.isfinite(policy_logps) & torch.isfinite(negative_logps)
    contrasts = contrast(policy_logps, negative_logps, noise_floor).masked_fill(~finite, torch.nan)
    return rank_weights(contrasts, mask.bool(), top_fraction, top_mass)


@dataclass(frozen=True)
class GCPO(CreditMethod):
    """Credit by how much a negative prompt changes each token's log-prob.

    Args:
        negative_prompt: The negative prompt x-: `wrong_answer` (the prompt plus a note to generate an incorrect answer; for
            the embedded model, which cannot read it, the mark that it was taught, `!{prompt}`), `empty` (a bare
            instruction), `blank_image` (the same text with white images), `pad` (every token of the prompt but the
            beginning of the text, and of the image, is padding: for image-token models), `column` (the dataset's column
            `negative_prompt`), or your own text in which `{prompt}` stands for the prompt.
        top_fraction: Fraction of each completion's tokens, those with the highest contrast, that get `top_mass`.
        top_mass: Fraction of the completion's advantage that the top tokens get.
        divergence: `sampled` is the estimate at the sampled token; `full` is the divergence over the whole vocabulary,
            at the cost of two more products with the output head.
    """

    negative_prompt: str = "wrong_answer"
    top_fraction: float = 0.4
    top_mass: float = 0.8
    divergence: str = "sampled"

    name = "gcpo"
    paper = Paper(
        title="Guidance Contrastive Token Credit Assignment for Discrete Policy Optimization",
        id="2605.29198",
        citation=(
            "@article{li2026gcpo,\n"
            "    title        = {{Guidance Contrastive Token Credit Assignment for Discrete Policy Optimization}},\n"
            "    author       = {Shufan Li and Konstantinos Kallidromitis and Akash Gokul and Yuta Kyuragi and Aditya "
            "Grover},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2605.29198},\n"
            "}"
        ),
    )
    differences = (
        "Log-prob differences below a noise floor for the policy's dtype count as ties, and ties share their average "
        "rank; the official code ranks rounding noise and breaks ties arbitrarily. No contrast then means uniform "
        "weights.",
        "exp(u) - u - 1 is computed as expm1(u) - u, which is the same formula without cancellation.",
        "A completion with a NaN or infinite log-prob gets uniform weights and is counted in "
        "`credit/nonfinite_tokens`; the official code would rank the NaN.",
        "The policy's log-probs come from the loss's own forward and the negative prompt's from eval mode; the "
        "official code runs both in training mode. They differ only with active dropout.",
        "`blank_image` keeps each image's size, so that the image tokens still match; the official code passes a white "
        "224 x 224 image.",
        "The paper writes the divergence over the whole vocabulary; the official code, and `divergence: sampled` here, "
        "use its estimate at the sampled token. `divergence: full` follows the paper, without the code's clamps on u and c.",
        "With a KL penalty, the official code for images (t2i, `kl_reweight`) multiplies each token's penalty by "
        "0.5 + 0.5 clamp(2 - 2 w, 0, 1); here `beta` is TRL's, alike for all tokens, since TRL's loss has no place for it.",
        "The official code for images adds 0.4 times a centered bonus to the group's best images, 1 / (1 + d^2) with d "
        "the difference of the mean entropies of policy and reference (`entropy_reward`); here rewards are the user's.",
        "The official code for images pads prompts on the right, which its batches of one prompt never do; TRL pads on the "
        "left, and `pad` does not attend to that padding.",
    )

    policies = ("tokens",)

    def validate(self) -> None:
        check_negative_prompt(self.negative_prompt)
        self.require(0 < self.top_fraction < 1, "top_fraction", "between 0 and 1 (both excluded)")
        self.require(0 < self.top_mass < 1, "top_mass", "between 0 and 1 (both excluded)")
        self.require(
            self.top_mass >= self.top_fraction,
            "top_mass",
            f"at least top_fraction ({self.top_fraction}): below it, high contrast would get less than its share",
        )
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"credit method 'gcpo': `divergence` is {self.divergence!r}. {nearest(self.divergence, DIVERGENCES)}"
            )

    @property
    def _signal(self) -> Signal:
        kind = NegativePromptKL if self.divergence == "full" else NegativePromptLogps
        return kind(self.negative_prompt)

    def signals(self) -> tuple[Signal, ...]:
        return (self._signal,)

    def _contrast(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        signal, noise_floor = inputs.signals[self._signal], noise_floor_of(inputs.compute_dtype)
        if self.divergence == "full":
            return full_contrast(signal, noise_floor)
        return contrast(inputs.policy_logps, signal, noise_floor)

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        # An infinite log-prob yields a finite contrast, because u is clamped, but not a trustworthy one
        contrasts = self._contrast(inputs).masked_fill(inputs.nonfinite, torch.nan)
        return rank_weights(contrasts, inputs.mask, self.top_fraction, self.top_mass)

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """Also checks the fraction of tokens with a contrast above the noise floor, because ranks spread the weights
        however small the contrasts are."""
        fraction = metrics.get("credit/contrast_fraction")
        if fraction is None or math.isnan(fraction):
            return super().is_uniform(metrics)
        return fraction < 1 - UNIFORM_FRACTION or super().is_uniform(metrics)

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        dtype = str(inputs.compute_dtype).removeprefix("torch.")
        return (
            f"the negative prompt {self.negative_prompt!r} moves hardly any token's log-prob by more than the rounding of "
            f"{dtype} ({noise_floor_of(inputs.compute_dtype):g} nats); choose a `negative_prompt` that this model reacts "
            "to" + (", or `divergence: full`" if self.divergence == "sampled" else "") + "."
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`contrast`: mean contrast c_t (nats). `contrast_fraction`: fraction of tokens with a contrast above the noise
        floor. It shows collapse when rank weights cannot, since their spread is constant by construction."""
        values = self._contrast(inputs)
        above = torch.where(values.isnan(), values, (values > 0).to(values.dtype))
        return {"contrast": values, "contrast_fraction": above}
