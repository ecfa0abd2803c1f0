"""Baselines that were tried before `certainty`, as methods for `trl-credit bench --true`:

    trl-credit bench --true --style letters --num_prompts 128 --methods otb certainty benchmarks/baselines.py:Odds \\
      benchmarks/baselines.py:WholeCompletion '{method: trl_credit.bench.baselines.MeanShare, share: 0.0}'

docs/certainty.md shows what came out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trl_credit import Rollout
from trl_credit.methods.base import Paper
from trl_credit.methods.certainty import doubts
from trl_credit.methods.otb import squared_gradients
from trl_credit.methods.rollout_advantages import TokenBaseline


@dataclass(frozen=True)
class Odds(TokenBaseline):
    """What would have the least variance if the likeliest token always were the right one and all others failed: the group's
    mean times the odds against it, at most 1. Nothing is fitted.

    Args:
        others: The mean of the group's other completions, as long as the own one would make it.
    """

    others: bool = False

    name = "odds"
    paper = Paper(title="Baselines by odds", id="", citation="")
    rollout_needs = ("logps", "sum_squared_probs")

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, torch.Tensor]:
        doubt = doubts(rollout.sum_squared_probs)
        mean = rollout.group_rewards[1][rollout.groups]
        size = 1
        if self.others:
            known = (~torch.isnan(rollout.all_rewards)).float()
            count = known.new_zeros(len(rollout.group_rewards[1])).index_add(0, rollout.all_groups, known)
            size = count[rollout.groups].clamp(min=2)
            mean, size = (mean * size - rollout.rewards) / (size - 1), size / (size - 1)
        advantages = rollout.rewards.unsqueeze(1) - mean.unsqueeze(1) * doubt / (1 - doubt)
        with_credit = self.rows_with_credit(rollout).unsqueeze(1) & rollout.mask
        scale = torch.as_tensor(size).reshape(-1, 1)
        return {"advantages": torch.where(with_credit, advantages / scale, 0.0)}


@dataclass(frozen=True)
class WholeCompletion(TokenBaseline):
    """One baseline for each group, the one with the least variance: its mean reward, weighted by the squared gradient of
    each completion (the sum over its tokens)."""

    name = "whole_completion"
    paper = Paper(title="The least-variance baseline of a group", id="", citation="")
    rollout_needs = ("logps", "sum_squared_probs")

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, torch.Tensor]:
        gradients = torch.where(rollout.mask, squared_gradients(rollout.logps, rollout.sum_squared_probs), 0.0)
        weights, rewards = rollout.all(gradients.sum(-1)), rollout.all_rewards.nan_to_num()
        weights = torch.where(rollout.all_rewards.isnan(), 0.0, weights)
        total, along = (
            weights.new_zeros(len(rollout.group_rewards[0])).index_add(0, rollout.all_groups, part)
            for part in (weights, weights * rewards)
        )
        baselines = (along / total.clamp(min=1e-12))[rollout.groups]
        with_credit = self.rows_with_credit(rollout).unsqueeze(1) & rollout.mask
        return {"advantages": torch.where(with_credit, (rollout.rewards - baselines).unsqueeze(1), 0.0)}
