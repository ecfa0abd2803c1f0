"""Certainty: advantages from a baseline fitted to how certain the policy was before each token.

    w_t = 1 - 2 pi(y_t) + S_t,   S_t = sum_v pi(v)^2                # squared norm of the token's gradient at the logits
    c_t = (1 - sqrt(2 S_t - 1)) / 2, at most 1/2                    # doubt: 1 - the likeliest token's probability if one
                                                                    # other token has the rest
    theta_k = (n + sum s_i^2 w_t m_i r_i) / (n + sum s_i^2 w_t m_i^2)    # over the tokens with c_t in bin k, of the other
                                                                         # groups
    b_t = low_i + theta_k(t) (mean_i - low_i), at most high_i
    A_t = R_i - b_t

mean_i, low_i and high_i are the mean, least and greatest reward of completion i's group, r_i = (R_i - low_i) / (high_i -
low_i), and m_i the same of the mean; s_i is high_i - low_i in units of the batch's greatest. theta is the regression of the
rewards on the group's mean in each bin, with weights w: of the baselines of this form, the one with the least mean square of
the gradient, where a token's gradient is taken by itself,

    E |sum_t grad log pi(y_t) (R - b_t)|^2  ~  E sum_t w_t (R - b_t)^2

(Greensmith, Bartlett and Baxter, Variance Reduction Techniques for Gradient Estimates in Reinforcement Learning, JMLR 2004).
Where certain tokens decide the outcome, the long gradients belong to rare wrong tokens, so theta is near 0: a right answer
confirms its certain tokens, and a wrong one hardly blames its own. Where they decide nothing, theta is 1, which is GRPO's
baseline. What is the case, the regression finds in the run's own rewards.

A baseline may depend on anything but the token itself. So S_t says only what the policy knew before it, and theta comes from
the batch's other groups; a batch with a single group of unequal rewards has theta 1. What the group's own rewards do to the
gradient is the second of the differences.

Without a paper: found by comparing methods with true advantages, see docs/certainty.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Paper
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION, at_least_float32
from .otb import squared_gradients
from .rollout import Rollout
from .rollout_advantages import TokenBaseline


# Bins of doubt, from [0, 0.001) to [0.5, 0.5]
EDGES = (0.001, 0.01, 0.03, 0.1, 0.25, 0.5)


def doubts(sum_squared_probs: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """c_t (see the module docstring), in [0, 1/2]; NaN where the argument is."""
    squared = at_least_float32(sum_squared_probs)
    return (1 - (2 * squared - 1).clamp(0.0, 1.0).sqrt()) / 2


def fitted_shares(
    weights: Float[Tensor, "all bins"],
    rewards: Float[Tensor, " all"],
    means: Float[Tensor, " all"],
    groups: Int[Tensor, " all"],
    prior: float,
) -> Float[Tensor, "groups bins"]:
    """theta_k (see the module docstring) of each group, from the other groups.

    Args:
        weights: (N, K) s_i^2 w_t, summed over each completion's tokens in each bin; 0 for completions that do not count.
        rewards: (N,) r_i.
        means: (N,) m_i.
        groups: (N,) int >= 0.
        prior: n.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    both = torch.cat([weights * (means * rewards).unsqueeze(1), weights * means.square().unsqueeze(1)], dim=1)
    own = both.new_zeros(count, both.size(1)).index_add(0, groups, both)
    along, square = (own.sum(0) - own).clamp(min=0.0).chunk(2, dim=1)
    return (prior + along) / (prior + square)


@dataclass(frozen=True)
class Certainty(TokenBaseline):
    """Advantages from a baseline fitted to how certain the policy was before each token.

    Args:
        prior: Weight of the prior theta of 1, as so many tokens with a squared gradient of 1 in groups of the greatest span
            whose mean reward is their greatest. Without it, a theta from a few tokens would be noise.
    """

    prior: float = 0.2

    name = "certainty"
    paper = Paper(title="A baseline fitted to the policy's certainty", id="", citation="")
    differences = (
        "The advantages come from the weighted sum of the rewards and replace TRL's: nothing is divided by a standard "
        "deviation, so `scale_rewards` and `multi_objective_aggregation` have no effect on them.",
        "The expected gradient is not exactly that of the expected reward. A group's mean and least reward contain the "
        "completion's own, and a group with equal rewards gets 0. With N completions, rewards of 0 and 1 and a success rate "
        "of p, tokens in bin k keep (1 - theta_k / N) - (1 - theta_k) p^(N - 1) of it, where GRPO keeps 1 - 1 / N: tokens "
        "with a small theta count for less where success is nearly sure. Crediting groups that are all right would be "
        "exact, at the price of training on them.",
        "The baseline counts from the group's least reward. A rare penalty far below the other rewards, for format or "
        "length, makes an ordinary wrong answer look good where theta is small.",
        "Completions without a reward, or without a token in the loss (`mask_truncated_completions`), are in no regression "
        "and no group's mean, and get no advantage.",
        "A completion with a NaN or infinite probability is in no regression and gets its sequence advantage.",
    )
    min_prompts = 2  # theta comes from other groups
    rollout_needs = ("logps", "sum_squared_probs")
    when_uniform = "every token's baseline was the mean of its group"
    then_equals = "GRPO without the division by the standard deviation"

    def validate(self) -> None:
        self.require(self.prior > 0 and math.isfinite(self.prior), "prior", "a finite number > 0")

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        mask, groups = rollout.mask, rollout.groups
        gradients = squared_gradients(rollout.logps, rollout.sum_squared_probs)
        doubt = doubts(rollout.sum_squared_probs)
        with_credit = self.rows_with_credit(rollout)
        low, mean, high = (at_least_float32(part) for part in rollout.group_rewards)
        span = high - low
        broken = with_credit & ~((torch.isfinite(gradients) | ~mask).all(-1) & torch.isfinite(span)[groups])
        usable = (with_credit & ~broken).unsqueeze(1) & mask
        bins = torch.bucketize(doubt.nan_to_num(), doubt.new_tensor(EDGES), right=True)
        weights = gradients.new_zeros(len(mask), len(EDGES) + 1)
        weights = weights.scatter_add(1, bins, torch.where(usable, gradients, 0.0))
        every = rollout.all_groups
        spans = span.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
        relative = spans / spans.max().clamp(min=torch.finfo(spans.dtype).tiny) if len(spans) else spans
        scaled = (at_least_float32(rollout.all_rewards) - low[every]) / span[every]
        # 0 / 0 of those that are not usable
        shares = fitted_shares(
            rollout.all(weights) * relative[every].square().unsqueeze(1),
            scaled.nan_to_num(),
            ((mean - low) / span)[every].nan_to_num(),
            every,
            self.prior,
        )
        share = torch.where(usable, shares[groups].gather(1, bins), 0.0)
        low, mean, high = (part[groups].unsqueeze(1) for part in (low, mean, high))
        baselines = torch.minimum(low + share * (mean - low), high)
        advantages = torch.where(usable, at_least_float32(rollout.rewards).unsqueeze(1) - baselines, 0.0)
        return {
            # The update counts these tokens and falls back to the sequence advantage
            "advantages": torch.where(broken.unsqueeze(1) & mask, torch.nan, advantages),
            "baseline_share": share,
            "doubt": torch.where(usable, doubt, 0.0),
        }

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`token_advantage_size`: mean size of the token advantages. `baseline_share`: mean theta; `baseline_share_certain`
        that of tokens with a doubt below 0.01, `baseline_share_uncertain` from 0.25 on. `baseline_change`: mean of
        abs(theta - 1)."""
        advantages, share, doubt = (inputs.rollout[name] for name in ("advantages", "baseline_share", "doubt"))
        share = torch.where(share > 0, share, torch.nan)  # no theta is 0
        return {
            "token_advantage_size": advantages.abs(),
            "baseline_share": share,
            "baseline_share_certain": torch.where(doubt < EDGES[1], share, torch.nan),
            "baseline_share_uncertain": torch.where(doubt >= EDGES[4], share, torch.nan),
            "baseline_change": (share - 1).abs(),
        }

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        change = metrics.get("credit/baseline_change", math.nan)
        return None if math.isnan(change) else change < 1 - UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        return (
            "theta comes from other groups with unequal rewards in the same generation batch: have more prompts in it "
            "(`per_device_train_batch_size`, `steps_per_generation`)."
        )
