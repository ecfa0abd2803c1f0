"""DGPO: credit by the policy's distance from its reference, scaled by the policy's entropy.

    d_t = 1 - sum_v sqrt(pi_theta(v) * pi_ref(v))        # squared Hellinger distance, in [0, 1]
    g_t = H(pi_theta) / ln |V|                           # normalised entropy, in [0, 1]
    s_t = d_t * g_t^kappa
    w_t = T * softmax_t(s_t / tau) over the mask         # kappa = 1, tau = 0.5

The loss is PPO-clip without a KL term; pi_ref is the frozen initial policy. At the first step pi_theta = pi_ref, so all
weights are 1. Training settings of the paper: learning rate 1e-6, weight decay 0.1, clip 0.2, 16 completions per
prompt.

Known weakness: with a vocabulary of 150k, s is between 1e-4 and 1e-2, and at tau = 0.5 the weights are effectively
uniform. `credit/weight_std` and `credit/effective_fraction` show it. Use a smaller `temperature`, or
`temperature: adaptive`.

Reference: DGPO: Distribution-Guided Policy Optimization for Fine-Grained Credit Assignment (arXiv 2605.03327; three
other papers are called DGPO).
Differences from the paper are numbered in [`DGPO.differences`].
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..signals.base import Signal
from ..signals.reference import ReferenceHellinger
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32, effective_token_fraction, mean_one


ADAPTIVE = "adaptive"
# Effective token fraction of GCPO's weights with its defaults, in the limit of long completions
EFFECTIVE_FRACTION = 0.63

# Squared Hellinger distances up to this size are rounding error of the two forwards, which an adaptive temperature
# would amplify. Two batches of different shapes give up to 1e-11 in float32 (135M parameters); left pads on one side
# give 5e-7 in bfloat16. In float32 and float64 the floor is an eighth of the square of GCPO's: the distance between
# log-probs that differ by GCPO's floor on every token.
_NOISE_FLOOR = {torch.float64: 1e-19, torch.float32: 1e-9, torch.float16: 1e-7, torch.bfloat16: 1e-5}


def normalized_entropy(entropy: Float[Tensor, "batch tokens"], vocab_size: int) -> Float[Tensor, "batch tokens"]:
    """Computes g_t (see the module docstring) from (B, T) entropies in nats. Rounding below 0 is clamped."""
    return at_least_float32(entropy).clamp(min=0.0) / math.log(vocab_size)


def dgpo_scores(
    squared_hellinger: Float[Tensor, "batch tokens"],
    entropy: Float[Tensor, "batch tokens"],
    vocab_size: int,
    entropy_exponent: float = 1.0,
) -> Float[Tensor, "batch tokens"]:
    """Computes s_t (see the module docstring): (B, T), at least float32."""
    return at_least_float32(squared_hellinger) * normalized_entropy(entropy, vocab_size).pow(entropy_exponent)


def _softmax_weights(
    scores: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    inverse_temperature: float | Float[Tensor, "batch 1"],
) -> Float[Tensor, "batch tokens"]:
    finite = torch.isfinite(scores) | ~mask
    scores = torch.where(mask & finite, scores, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    return mean_one(torch.exp((scores - top) * inverse_temperature), mask, valid=finite.all(-1, keepdim=True))


def dgpo_weights(
    squared_hellinger: Float[Tensor, "batch tokens"],
    entropy: Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    vocab_size: int,
    temperature: float | Float[Tensor, "batch 1"] = 0.5,
    entropy_exponent: float = 1.0,
) -> Float[Tensor, "batch tokens"]:
    """DGPO's token weights (arXiv 2605.03327).

    Args:
        squared_hellinger: (B, T) squared Hellinger distance between policy and reference, in [0, 1].
        entropy: (B, T) entropy of the policy's next-token distribution, nats.
        mask: (B, T), non-zero on the tokens in the loss.
        vocab_size: Number of logits in the softmax, at least 2.
        temperature: tau of the softmax over the completion's tokens, for all or one for each completion.
        entropy_exponent: kappa, the exponent of the normalised entropy.

    Returns:
        (B, T) weights without gradient, at least float32: >= 0, 0 off the mask, mean 1 over each completion's mask. A
        completion with a NaN or infinite value on its mask gets uniform weights.
    """
    scores = dgpo_scores(squared_hellinger.detach(), entropy.detach(), vocab_size, entropy_exponent)
    return _softmax_weights(scores, mask.bool(), 1.0 / temperature)


def adaptive_temperature(
    scores: Float[Tensor, "batch tokens"], mask: Shaped[Tensor, "batch tokens"], effective_fraction: float
) -> Float[Tensor, "batch 1"]:
    """Finds the temperature at which each completion's softmax weights have the given effective token fraction.

    The effective fraction exp(H(w / T)) / T falls from 1 (uniform) as the temperature falls, so bisection finds it. It
    cannot fall below the fraction of tokens that tie for the highest score.

    Args:
        scores: (B, T) scores s_t.
        mask: (B, T), non-zero on the tokens in the loss.
        effective_fraction: Target fraction, in (0, 1).

    Returns:
        (B, 1) temperatures, infinite (uniform weights) if a completion's scores are all equal.
    """
    mask, dtype = mask.bool(), scores.dtype
    # float64 makes the result independent of how sums round, but not every accelerator has it
    scores = scores.to(torch.float64 if scores.device.type in ("cpu", "cuda") else dtype)
    scores = torch.where(mask & torch.isfinite(scores), scores, 0.0)
    highest = torch.where(mask, scores, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(mask, scores, torch.inf).amin(-1, keepdim=True)
    spread = highest - lowest
    distinct = torch.isfinite(spread) & (spread > torch.finfo(dtype).tiny)
    spread = torch.where(distinct, spread, 1.0)
    low, high = torch.full_like(spread, math.log(1e-4)), torch.full_like(spread, math.log(1e5))
    for _ in range(36):  # to 1e-9 of the temperature
        middle = (low + high) / 2
        weights = _softmax_weights(scores / spread, mask, middle.exp())
        too_sharp = effective_token_fraction(weights, mask).unsqueeze(-1) < effective_fraction
        low, high = torch.where(too_sharp, low, middle), torch.where(too_sharp, middle, high)
    return torch.where(distinct, spread / low.exp(), torch.inf).to(dtype)


@dataclass(frozen=True)
class DGPO(CreditMethod):
    """Credit by the distance from the reference policy, scaled by the policy's entropy.

    Args:
        temperature: tau of the softmax over a completion's tokens; smaller is sharper. `adaptive` picks a tau for each
            completion so that its effective token fraction is `effective_fraction`. `adaptive` is not in the paper,
            which leaves the choice of tau to future work.
        entropy_exponent: kappa, the exponent of the normalised entropy; 0 switches the entropy gate off.
        reference: Path or hub id of the reference policy. By default the policy's initial weights (with PEFT: the
            adapters switched off, or a copy of a pretrained adapter). Set it for a second-stage run, whose initial
            weights are the first stage's result, and if the model you load is itself a checkpoint to continue from.
        effective_fraction: With `temperature: adaptive`, the target exp(H(w / T)) / T of each completion's weights, in
            (0, 1). The default of 0.63 matches GCPO's weights.
    """

    temperature: float | str = 0.5
    entropy_exponent: float = 1.0
    reference: str | None = None
    effective_fraction: float | None = None

    name = "dgpo"
    paper = Paper(
        title="DGPO: Distribution-Guided Policy Optimization for Fine-Grained Credit Assignment",
        id="2605.03327",
        citation=(
            "@article{jin2026dgpo,\n"
            "    title        = {{DGPO: Distribution-Guided Policy Optimization for Fine-Grained Credit "
            "Assignment}},\n"
            "    author       = {Hongbo Jin and Rongpeng Zhu and Zhongjing Du and Xu Jiang and Jingqi Tian and Qiaoman "
            "Zhang and Jiayu Ding},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2605.03327},\n"
            "}"
        ),
    )
    differences = (
        "The squared Hellinger distance is computed as half the sum of (sqrt(pi_theta) - sqrt(pi_ref))^2, which is the "
        "same quantity without cancellation near 0.",
        "Policy, reference and entropy are taken at the rollout temperature, the distribution the tokens were sampled "
        "from.",
        "A completion with a NaN or infinite distance gets uniform weights and is counted in "
        "`credit/nonfinite_tokens`.",
        "With `temperature: adaptive`, distances below a noise floor for the policy's dtype count as 0, so that no distance "
        "means uniform weights.",
        "`temperature: adaptive` (for each completion by itself, so that weights do not depend on the micro-batch) and a "
        "reference that follows the policy (`sync_ref_model`) are additions, off by default.",
    )

    policies = ("tokens",)

    def validate(self) -> None:
        if isinstance(self.temperature, str):
            self.require(self.temperature == ADAPTIVE, "temperature", f"a number or {ADAPTIVE!r}")
        else:
            self.require(0 < self.temperature < math.inf, "temperature", "positive and finite")
        self.require(0 <= self.entropy_exponent < math.inf, "entropy_exponent", "non-negative and finite")
        if self.effective_fraction is not None:
            self.require(0 < self.effective_fraction < 1, "effective_fraction", "between 0 and 1 (both excluded)")
            if not self._adaptive:
                raise ValueError(
                    f"credit method 'dgpo': `effective_fraction` ({self.effective_fraction}) has no effect with "
                    f"`temperature` {self.temperature}: set `temperature: {ADAPTIVE}`."
                )

    @property
    def _adaptive(self) -> bool:
        return self.temperature == ADAPTIVE

    @property
    def _signal(self) -> ReferenceHellinger:
        return ReferenceHellinger(self.reference)

    def signals(self) -> tuple[Signal, ...]:
        return (self._signal,)

    def _distance(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return self._above_noise(inputs) if self._adaptive else inputs.signals[self._signal]

    def _above_noise(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        distance = inputs.signals[self._signal]
        floor = _NOISE_FLOOR.get(inputs.compute_dtype, _NOISE_FLOOR[torch.bfloat16])
        return torch.where(torch.isfinite(distance) & (distance <= floor), 0.0, distance)

    def _temperature(self, inputs: CreditInputs) -> float | Float[Tensor, "batch 1"]:
        if not self._adaptive:
            return self.temperature
        fraction = EFFECTIVE_FRACTION if self.effective_fraction is None else self.effective_fraction
        return self._sharpened(inputs, fraction)

    def _sharpened(self, inputs: CreditInputs, fraction: float) -> torch.Tensor:
        distance = self._above_noise(inputs)
        scores = dgpo_scores(distance, inputs.policy_entropy, inputs.vocab_size, self.entropy_exponent)
        return adaptive_temperature(scores, inputs.mask, fraction)

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        sharper = self._sharpened(inputs, EFFECTIVE_FRACTION)
        sharper = sharper[torch.isfinite(sharper)]
        if self._adaptive or not len(sharper):
            return (
                "the policy does not differ from its reference on these tokens; if the policy is already trained, "
                "set `reference` to the model it was trained from."
            )
        return f"lower `temperature` to about {sharper.median().item():.1g}, or use `temperature: {ADAPTIVE}`."

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return dgpo_weights(
            self._distance(inputs),
            inputs.policy_entropy,
            inputs.mask,
            inputs.vocab_size,
            self._temperature(inputs),
            self.entropy_exponent,
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`hellinger`: mean squared Hellinger distance d_t. `normalized_entropy`: mean g_t. With `temperature:
        adaptive` also `temperature`, the mean of the finite temperatures, and `hellinger_fraction`, the fraction of
        tokens with a distance above the noise floor."""
        values = {
            "hellinger": inputs.signals[self._signal],
            "normalized_entropy": normalized_entropy(inputs.policy_entropy, inputs.vocab_size),
        }
        if self._adaptive:
            values["temperature"] = self._temperature(inputs).expand_as(inputs.mask)
            values["hellinger_fraction"] = (self._distance(inputs) > 0).float()
        return values
