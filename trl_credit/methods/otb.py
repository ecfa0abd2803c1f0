"""OTB: advantages from a baseline for each token, the one with the least variance.

    w_t = 1 - 2 pi(y_t) + sum_v pi(v)^2                 # squared norm of the token's gradient at the logits
    W_i,t = sum_{s <= t} w_i,s                          # gradient gathered so far
    b_t = sum_i W_i,t R_i / sum_i W_i,t                 # over the group's completions that have a token t
    A_i,t = R_i - b_t

t counts a completion's tokens in the loss. pi is the policy that generated. The rewards R are weighted sums of the
reward functions. GRPO's baseline is the case of equal W.

Known weakness: beyond the end of a group's second-longest completion, only one completion is left, so b_t is its own
reward and the tokens get no advantage. `zero_tail` gives them the reward instead.

Reference: The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL (arXiv 2602.07078); official code in
verl.
Differences from paper and code are numbered in [`OTB.differences`].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .base import Paper
from .ops import at_least_float32
from .rollout import Rollout
from .rollout_advantages import TokenBaseline


def squared_gradients(
    logps: Float[Tensor, "batch tokens"], sum_squared_probs: Float[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """w_t (see the module docstring), at least float32; NaN where an argument is NaN or infinite."""
    logps, sum_squared_probs = at_least_float32(logps), at_least_float32(sum_squared_probs)
    # Rounding can make it negative where the policy is certain
    squares = (1 - 2 * logps.exp() + sum_squared_probs).clamp(min=0.0)
    return torch.where(torch.isfinite(logps) & torch.isfinite(sum_squared_probs), squares, torch.nan)


def token_baselines(
    energies: Float[Tensor, "batch tokens"],
    rewards: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
    zero_tail: bool = False,
) -> Float[Tensor, "batch tokens"]:
    """b_t (see the module docstring) at each token, given whole groups.

    Args:
        energies: (B, T) W_i,t >= 0.
        rewards: (B,) rewards; NaN for none. Completions without a reward, or with a NaN or infinite energy, do not count.
        groups: (B,) int >= 0.
        mask: (B, T) bool, the tokens in the loss.
        zero_tail: Whether the baseline is 0 where only one completion of the group is left.

    Returns:
        (B, T), 0 off the mask. Where no completion of the group counts, the mean reward of the group.
    """
    energies, rewards = at_least_float32(energies), at_least_float32(rewards)
    known = torch.isfinite(rewards)
    rewards = torch.where(known, rewards, 0.0)
    count = int(groups.max()) + 1 if len(groups) else 0
    members = rewards.new_zeros(count).index_add(0, groups, known.to(rewards.dtype))
    means = rewards.new_zeros(count).index_add(0, groups, rewards) / members.clamp(min=1)
    usable = known & (torch.isfinite(energies) | ~mask).all(-1)
    counted = mask & usable.unsqueeze(1)
    # Each token's group and place. A sum per group and place, of deviations from the mean, which round less than rewards
    rows, columns = counted.nonzero(as_tuple=True)
    places = (mask.long().cumsum(-1) - 1).clamp(min=0)
    of_token = (groups[rows], places[rows, columns])
    weights = energies[rows, columns]
    deviations = (rewards - means[groups])[rows]
    zeros = energies.new_zeros(count, mask.size(1))
    total = zeros.index_put(of_token, weights, accumulate=True)
    shift = zeros.index_put(of_token, weights * deviations, accumulate=True)
    baselines = means.unsqueeze(1) + torch.where(total > 0, shift / torch.where(total > 0, total, 1.0), 0.0)
    if zero_tail:
        alone = zeros.index_put(of_token, torch.ones_like(weights), accumulate=True) == 1
        baselines = torch.where(alone, 0.0, baselines)
    return torch.where(mask, baselines[groups].gather(1, places), 0.0)


@dataclass(frozen=True)
class OTB(TokenBaseline):
    """Advantages from the baseline with the least variance for each token.

    Args:
        zero_tail: Whether tokens beyond the end of the group's second-longest completion get the reward itself; by default
            they get no advantage.
    """

    zero_tail: bool = False

    name = "otb"
    paper = Paper(
        title="The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL",
        id="2602.07078",
        citation=(
            "@inproceedings{li2026otb,\n"
            "    title        = {{The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL}},\n"
            "    author       = {Yingru Li and Jiawei Xu and Ziniu Li and Jiacai Liu and Wei Liu and Yuxuan Tong and "
            "Longtao Zheng and Zhenghai Xue and Yaxiang Zhang and Tianle Cai and Ge Zhang and Qian Liu and Baoxiang "
            "Wang},\n"
            "    year         = 2026,\n"
            "    eprint       = {arXiv:2602.07078},\n"
            "}"
        ),
    )
    differences = (
        "The advantages come from the weighted sum of the rewards and replace TRL's: nothing is divided by a standard "
        "deviation, so `scale_rewards` and `multi_objective_aggregation` have no effect on them.",
        "Tokens are counted without the text of tools, as in the code's variant for several turns; without tools both "
        "variants are the same.",
        "`zero_tail` is off for several turns, too; there the code turns it on.",
        "A group with equal rewards, or with a single completion, gets exactly 0; the code leaves rounding errors, and "
        "gives a single completion its reward.",
        "No epsilon is added to the sum of W: where it is 0, the baseline is the group's mean reward.",
        "Completions without a reward, or without a token in the loss (`mask_truncated_completions`), do not count in a "
        "baseline and get no advantage.",
        "W is not scaled by importance weights of the engine that generated.",
        "A completion with a NaN or infinite probability does not count in a baseline and gets its sequence advantage.",
    )
    rollout_needs = ("logps", "sum_squared_probs")

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        gradients = squared_gradients(rollout.logps, rollout.sum_squared_probs)
        energies = torch.where(rollout.mask, gradients, 0.0).cumsum(-1)
        rewards = at_least_float32(rollout.rewards)
        baselines = rollout.own(
            token_baselines(
                rollout.all(energies),
                at_least_float32(rollout.all_rewards),
                rollout.all_groups,
                rollout.all(rollout.mask),
                self.zero_tail,
            )
        )
        with_credit = self.rows_with_credit(rollout).unsqueeze(1) & rollout.mask
        advantages = torch.where(with_credit, rewards.unsqueeze(1) - baselines, 0.0)
        broken = with_credit & ~(torch.isfinite(gradients) | ~rollout.mask).all(-1, keepdim=True)
        # The update counts these tokens and falls back to the sequence advantage
        return {"advantages": torch.where(broken, torch.nan, advantages)}
