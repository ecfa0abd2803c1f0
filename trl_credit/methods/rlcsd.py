"""RLCSD: credit by what a right sibling in the prompt says about each token that wrong siblings do not.

    c_t = log pi(y_t | x, right sibling, y_<t)
    W_t = logsumexp_k log pi(y_t | x, wrong sibling k, y_<t) - ln K       # K <= 4
    r_t = clamp(s tanh((c_t - W_t) / tau), -b, b)                         # s = 0.5, tau = 0.02, b = 2
    A_t = A + r_t where |r_t| > delta, kept to the sign of A              # delta = 0.02; A_t = 0 where A = 0

Siblings are other completions of the group: right with a reward above 0, else wrong. A hint of either kind makes the
policy terser; the contrast cancels that and leaves what the right one knows. At tau = 0.02 the tanh is saturated from
a contrast of 0.04 nats, so that r_t is close to +-0.5.

Reference: RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation (arXiv 2606.11709); official code
github.com/THU-BPM/RLCSD, `compute_policy_loss_rlcsd`. Its runs: 8 completions per prompt, learning rate 1e-6, clip
0.2, no KL term.

Cost: one forward for the right sibling and one for each wrong one, over prompts that are longer by a completion, of the
completions that have siblings of both kinds.

Differences from the paper and its code are numbered in [`RLCSD.differences`].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.second_prompt import HasSecondPrompt
from ..signals.sibling import SiblingLogps, check_sibling_template
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32


def sibling_contrast(
    right_logps: Float[Tensor, "batch tokens"],
    wrong_logps: Float[Tensor, "wrong batch tokens"],
    has_wrong: Bool[Tensor, "wrong batch tokens"],
) -> Float[Tensor, "batch tokens"]:
    """The contrast c_t - W_t (see the module docstring).

    Args:
        right_logps: (B, T) log-probs after the right sibling, nats.
        wrong_logps: (K, B, T) log-probs after each wrong one.
        has_wrong: (K, B, T) bool, which of those count.

    Returns:
        (B, T) contrasts without gradient, at least float32; 0 where no wrong one counts.
    """
    right, wrong = at_least_float32(right_logps.detach()), at_least_float32(wrong_logps.detach())
    count = has_wrong.sum(0)
    together = torch.where(has_wrong, wrong, -torch.inf).logsumexp(0) - count.clamp(min=1).to(wrong.dtype).log()
    return torch.where(count > 0, right - together, 0.0)


def rlcsd_term(
    contrast: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"],
    where: Bool[Tensor, "batch tokens"],
    scale: float = 0.5,
    temperature: float = 0.02,
    threshold: float = 0.02,
    clip: float = 2.0,
) -> Float[Tensor, "batch tokens"]:
    """A_t - A (arXiv 2606.11709; official `compute_policy_loss_rlcsd`).

    Args:
        contrast: (B, T) contrasts, see [`sibling_contrast`].
        advantages: (B,) sequence advantages.
        where: (B, T) bool, tokens in the loss, of completions with siblings of both kinds.
        scale: s.
        temperature: tau.
        threshold: delta.
        clip: b.

    Returns:
        (B, T) float, at least float32: 0 off `where` and where the advantage is 0. A completion with a NaN or infinite
        contrast there gets 0.
    """
    contrast = at_least_float32(contrast)
    usable = (torch.isfinite(contrast) | ~where).all(-1, keepdim=True)
    bonus = (scale * torch.tanh(contrast / temperature)).clamp(-clip, clip)
    chosen = where & usable & (bonus.abs() > threshold)
    before = advantages.to(contrast.dtype).unsqueeze(1)
    after = before + bonus
    after = torch.where(before > 0, after.clamp(min=0), torch.where(before < 0, after.clamp(max=0), 0.0))
    return torch.where(chosen, after - before, 0.0)


@dataclass(frozen=True)
class RLCSD(CreditMethod):
    """Adds a bonus for tokens that a right sibling in the prompt favours and wrong siblings do not.

    Args:
        scale: The largest bonus s, in units of the advantage (the official code's beta times lambda).
        temperature: tau, in nats: contrasts well above it get the whole bonus.
        threshold: delta: smaller bonuses are left out.
        clip: b, a bound on the bonus, which has no effect above `scale`.
        wrong_siblings: The most wrong siblings to contrast with. Each costs a forward.
        reward_threshold: Completions with a reward above it are right, the others wrong.
        template: The prompt with a sibling in it: `default`, or a text with the slots `{prompt}`, `{solution}` and, for
            what is in the sibling's box, `{answer}`.
    """

    scale: float = 0.5
    temperature: float = 0.02
    threshold: float = 0.02
    clip: float = 2.0
    wrong_siblings: int = 4
    reward_threshold: float = 0.0
    template: str = "default"

    name = "rlcsd"
    paper = Paper(
        title="RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation",
        id="2606.11709",
        citation=(
            "@article{pan2026rlcsd,\n"
            "    title        = {{RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation}},\n"
            "    author       = {Leyi Pan and Shuchang Tao and Yunpeng Zhai and Lingzhe Zhang and Zhaoyang Liu and Bolin "
            "Ding and Aiwei Liu and Lijie Wen},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2606.11709},\n"
            "}"
        ),
    )
    differences = (
        "The loss is TRL's, with one mean over all tokens; the official code adds the mean over the tokens with a bonus to "
        "the mean over the others, so that a rare kind weighs more.",
        "Completions without a right or without a wrong sibling train as in GRPO (`credit/without_siblings`); the official "
        "code leaves them out of the update, and whole groups of one kind, which have no advantage here.",
        "A sibling without a box is shown without the line that names its final answer; the official code uses no wrong "
        "sibling without one, and names the dataset's answer for a right one.",
        "The policy with the hint is the live policy; the official code uses a copy of it that is renewed every 10 steps of "
        "the optimizer.",
        "Siblings are drawn by a hash of the completions' tokens, so that a resumed run draws the same; the official code "
        "draws at random.",
        "The wording of the default template is ours.",
        "A hint that does not fit the model's context leaves its completion without a bonus, counted in "
        "`credit/nonfinite_tokens`; the official code cuts its beginning.",
        "The defaults are those of the official configurations; the code's own are tau 0.03, scale 0.1 and clip 0.5.",
    )
    reweights = False
    reads_sign = True
    min_generations = 3  # itself, a right and a wrong sibling
    on_its_own = "its bonus stops where the sequence advantage itself would change sign, and a list changes it first"
    policies = ("tokens",)

    def validate(self) -> None:
        check_sibling_template(self.template)
        for name in ("scale", "temperature", "clip"):
            self.require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self.require(
            0 <= self.threshold < min(self.scale, self.clip),
            "threshold",
            f"at least 0 and below the largest bonus ({min(self.scale, self.clip)})",
        )
        self.require(self.wrong_siblings >= 1, "wrong_siblings", "at least 1")
        self.require(math.isfinite(self.reward_threshold), "reward_threshold", "finite")

    @property
    def _right(self) -> Signal:
        return SiblingLogps("right", 0, self.template, self.reward_threshold)

    @property
    def _wrong(self) -> list[Signal]:
        return [
            SiblingLogps("wrong", place, self.template, self.reward_threshold) for place in range(self.wrong_siblings)
        ]

    def signals(self) -> tuple[Signal, ...]:
        hints = (self._right, *self._wrong)
        return (*hints, *map(HasSecondPrompt, hints))

    @property
    def credits_zero_advantage(self) -> bool:
        return False

    def _contrast(self, inputs: CreditInputs) -> tuple[Float[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """The contrasts, NaN in tokens with a NaN or infinite input, and the tokens with siblings of both kinds."""
        seen = inputs.signals
        has_wrong = torch.stack([seen[HasSecondPrompt(one)] > 0.5 for one in self._wrong])
        contrast = sibling_contrast(seen[self._right], torch.stack([seen[one] for one in self._wrong]), has_wrong)
        siblings = inputs.mask & (seen[HasSecondPrompt(self._right)] > 0.5) & has_wrong.any(0)
        return contrast.masked_fill(inputs.nonfinite, torch.nan), siblings | inputs.nonfinite

    def term(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        contrast, siblings = self._contrast(inputs)
        return rlcsd_term(
            contrast, inputs.advantages, siblings, self.scale, self.temperature, self.threshold, self.clip
        )

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """As without siblings the method is GRPO, it counts only tokens whose completion has them."""
        if metrics.get("credit/without_siblings", math.nan) == 1.0:
            return True
        return super().is_uniform(metrics)

    def remedy(self, inputs: CreditInputs) -> str:
        """See [`CreditMethod.remedy`]."""
        return (
            "no completion has a right and a wrong sibling, or the policy does not react to them; look at "
            f"`credit/without_siblings`, raise `num_generations`, or set `reward_threshold` ({self.reward_threshold:g}), "
            "above which a reward counts as right."
        )

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`sibling_contrast`: mean of c_t - W_t (nats) in completions with siblings of both kinds. `selected`: fraction of
        their tokens that get a bonus. `without_siblings`: fraction of tokens of the other completions."""
        contrast, siblings = self._contrast(inputs)
        bonus = (self.scale * torch.tanh(contrast / self.temperature)).clamp(-self.clip, self.clip)
        selected = (bonus.abs() > self.threshold).to(contrast.dtype)
        return {
            "sibling_contrast": contrast.masked_fill(~siblings, torch.nan),
            "selected": selected.masked_fill(~siblings | contrast.isnan(), torch.nan),
            "without_siblings": (~siblings).to(contrast.dtype),
        }
