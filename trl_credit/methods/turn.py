"""Turn-level rewards: each turn of a conversation with tools gets what the turns from it on were rewarded with.

    G_i,k = sum_{j >= k} gamma^(j - k) r_i,j            # return from turn k on, r_i,j the reward of turn j
    A_i,t = G_i,k(t) - mean_i G_i,k(t)                  # over the group; a completion that has ended has G = 0

k(t) is the turn of token t. A reward function gives the turns' rewards as a list of numbers for each completion; a plain
number counts for the last turn. GRPO without a standard deviation is the case of a reward on the last turn and gamma = 1.

Known weakness: the baseline compares turns by their number, not by what had happened before them. [`GiGPO`] compares
turns that start from the same state.

Reference: Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Reward Design (arXiv 2505.11821).
Differences from the paper are numbered in [`TurnRewards.differences`].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .base import Paper
from .ops import at_least_float32
from .rollout import Rollout
from .rollout_advantages import RolloutAdvantages


def turns_present(
    turns: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], count: int
) -> Bool[Tensor, "batch turns"]:
    """(B, K) bool, turns with a token in the loss."""
    places = turns.new_zeros(len(turns), count)
    return places.scatter_add(1, torch.where(mask, turns, 0).clamp(max=count - 1), mask.long()) > 0


def returns_to_go(rewards: Float[Tensor, "batch turns"], discount: float = 1.0) -> Float[Tensor, "batch turns"]:
    """G_k (see the module docstring), at least float32. NaN is no reward for that turn."""
    rewards = torch.where(torch.isnan(rewards), 0.0, at_least_float32(rewards))
    returns = rewards.clone()
    for k in range(rewards.size(1) - 2, -1, -1):
        returns[:, k] += discount * returns[:, k + 1]
    return returns


def on_last_turn(
    rewards: Float[Tensor, " batch"], present: Bool[Tensor, "batch turns"]
) -> Float[Tensor, "batch turns"]:
    """(B, K) turn rewards of completions that are rewarded as a whole: on the last turn that is present."""
    last = (present * torch.arange(1, present.size(1) + 1, device=present.device)).argmax(-1)
    result = rewards.new_zeros(present.shape)
    return result.scatter(1, last.unsqueeze(1), rewards.unsqueeze(1))


def deviations(
    values: Float[Tensor, " entries"],
    groups: Int[Tensor, " entries"],
    divide_by_std: bool = False,
    epsilon: float = 1e-6,
) -> Float[Tensor, " entries"]:
    """Each value minus its group's mean, exactly 0 in a group of equal values or of one.

    Args:
        values: Values, at least float32.
        groups: Int >= 0, the group of each.
        divide_by_std: Whether to divide by the group's unbiased standard deviation plus `epsilon`.
        epsilon: See there.
    """
    # Numbers without gaps, as groups may be hashes
    groups, size = torch.unique(groups, return_inverse=True)[1], len(values)
    zeros = values.new_zeros(size)
    count = zeros.index_add(0, groups, torch.ones_like(values))
    mean = zeros.index_add(0, groups, values) / count.clamp(min=1)
    high = zeros.scatter_reduce(0, groups, values, "amax", include_self=False)
    low = zeros.scatter_reduce(0, groups, values, "amin", include_self=False)
    result = torch.where((high > low)[groups], values - mean[groups], 0.0)
    if divide_by_std:
        variance = zeros.index_add(0, groups, result.square()) / (count - 1).clamp(min=1)
        result = result / (variance.sqrt()[groups] + epsilon)
    return result


def on_tokens(
    values: Float[Tensor, "batch turns"], turns: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Each token its turn's value, 0 off the mask."""
    return torch.where(mask, values.gather(1, torch.where(mask, turns, 0).clamp(max=values.size(1) - 1)), 0.0)


def turn_advantages(
    turn_rewards: Float[Tensor, "batch turns"],
    present: Bool[Tensor, "batch turns"],
    groups: Int[Tensor, " batch"],
    known: Bool[Tensor, " batch"],
    discount: float = 1.0,
) -> Float[Tensor, "batch turns"]:
    """Advantages of turns, given whole groups.

    Args:
        turn_rewards: (B, K); NaN is no reward for that turn.
        present: (B, K) bool, turns with a token in the loss.
        groups: (B,) int >= 0.
        known: (B,) bool; the other completions have no reward, count nowhere and get 0.
        discount: gamma.
    """
    returns = returns_to_go(turn_rewards, discount)
    count = returns.size(1)
    entries = groups[known].unsqueeze(1) * count + torch.arange(count, device=groups.device)
    result = torch.zeros_like(returns)
    result[known] = deviations(returns[known].flatten(), entries.flatten()).view(-1, count)
    return torch.where(present, result, 0.0)


# Arguments of TRL's trainer that a rollout can have its turns from
TURN_SOURCES = ("rollout_func", "tools", "environment_factory")


def no_turns(name: str) -> str:
    """The message for a method that credits turns, in a run without any."""
    return (
        f"credit method {name!r} needs turns, and this run has none. They come from a `rollout_func`, a field of the recipe "
        "or an argument of the trainer, whose output has `env_mask` (0 for tokens that a tool or an environment wrote; see "
        "examples/turns.py), or from the trainer's `tools` or `environment_factory`. Without turns, use another method."
    )


class TurnMethod(RolloutAdvantages):
    """Base of the methods whose token advantages are those of turns."""

    needs_turns = True

    def of_turns(self, rollout: Rollout) -> Float[Tensor, "batch turns"]:
        """(B, K) advantages of this process's turns."""
        raise NotImplementedError

    def need_turns(self, rollout: Rollout) -> None:
        """Raises `ValueError` if the run has no turns."""
        if rollout.turns is None:
            raise ValueError(no_turns(self.name))

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        return {"advantages": on_tokens(self._of_turns(rollout), rollout.turns, rollout.mask)}

    def rows_with_credit(self, rollout: Rollout) -> Bool[Tensor, " batch"]:
        return (self._of_turns(rollout) != 0).any(-1)

    def _of_turns(self, rollout: Rollout) -> Float[Tensor, "batch turns"]:
        """[`of_turns`], gathered once."""
        return self.once(rollout, "turns", lambda: self.of_turns(rollout))


@dataclass(frozen=True)
class TurnRewards(TurnMethod):
    """Each turn is credited with the rewards from it on, compared with the same turn of the group's other completions.

    Args:
        discount: gamma, by which a reward counts less for each turn before it.
    """

    discount: float = 1.0

    name = "turn"
    paper = Paper(
        title="Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Reward Design",
        id="2505.11821",
        citation=(
            "@article{wei2025turn,\n"
            "    title        = {{Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Reward Design}},\n"
            "    author       = {Quan Wei and Siliang Zeng and Chenliang Li and William Brown and Oana Frunza and "
            "Wei Deng and Anderson Schneider and Yuriy Nevmyvaka and Yang Katie Zhao and Alfredo Garcia and Mingyi Hong},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2505.11821},\n"
            "}"
        ),
    )
    differences = (
        "A turn's advantage comes from its return, the sum of the rewards from it on; the paper adds the advantages of one "
        "rewarded turn and of the outcome.",
        "Nothing is divided by a standard deviation, so `scale_rewards` has no effect on the advantages.",
        "A completion that ended earlier has a return of 0 in the mean of a turn.",
        "A completion without a reward, or without a token in the loss (`mask_truncated_completions`), does not count and "
        "gets no advantage.",
    )

    def validate(self) -> None:
        self.require(0 <= self.discount <= 1, "discount", "between 0 and 1")

    def of_turns(self, rollout: Rollout) -> Float[Tensor, "batch turns"]:
        self.need_turns(rollout)
        if rollout.turn_rewards is None:
            raise ValueError(
                f"credit method {self.name!r} needs a reward for each turn, and every reward function returned one number "
                "for each completion: return a list of numbers, one for each turn, from at least one of them (in a file of "
                "completions, let `reward` be such a list), or use 'gigpo', which does with one number."
            )
        present = turns_present(rollout.turns, rollout.mask, rollout.turn_rewards.size(1))
        return rollout.own_turns(
            turn_advantages(
                rollout.all(rollout.turn_rewards),
                rollout.all(present),
                rollout.all_groups,
                ~torch.isnan(rollout.all_rewards),
                self.discount,
            ),
            present.size(1),
        )
