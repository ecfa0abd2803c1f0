"""What a method sees of a generation batch: whole groups, before TRL deals the completions to updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .._util.once import Once


def alone(tensor: Tensor) -> Tensor:
    """What gathering or summing over the processes gives, if there is one."""
    return tensor


@dataclass(frozen=True)
class Continuations:
    """What a method asks for to know values: continuations of the beginnings of completions, sampled from the policy that
    generated. Equal requests are answered together.

    Args:
        every: Where completions are cut into segments: a number of tokens, `step`, or a regular expression
            ([`~trl_credit.values.steps.segment_ends`]). Each is continued from the start of each of its segments.
        count: Continuations of each beginning.
    """

    every: int | str = "step"
    count: int = 9


@dataclass(frozen=True)
class SegmentValues:
    """Values at the ends of the segments of B completions. A value is the expected reward of what the policy would write
    from there on.

    Args:
        segments: (B, T) int, the segment of each token, from 0. Meaningless off the mask.
        values: (B, S + 1) float, that at the start of segment k in column k. After a completion's last segment it is the
            completion's own reward. NaN where unknown, and for a completion without a reward or a token in the loss.
    """

    segments: Int[Tensor, "batch tokens"]
    values: Float[Tensor, "batch ends"]


@dataclass(frozen=True)
class Rollout(Once):
    """This process's B completions of a generation batch, of at most T tokens. No tensor carries a gradient.

    A group's completions may lie on several processes: [`all`] and [`sum`] reach those of the others. Every process
    must call them equally often. What a method's hooks share, they compute with [`once`].

    Args:
        mask: (B, T) bool, the tokens in the loss.
        token_ids: (B, T) int.
        advantages: (B,) float, TRL's sequence advantages.
        rewards: (B,) float, the weighted sum of the reward functions; NaN if none gave a reward,
            or if no token is in the loss.
        groups: (B,) int, the number of the completion's prompt, unique over all processes.
        logps: (B, T) float32, nats; log-probs under the policy that generated, at the rollout temperature. `None`
            unless the method needs them ([`CreditMethod.rollout_needs`]), like the next two. All three are 0 in completions
            that it does not read ([`CreditMethod.rollout_rows`]).
        sum_squared_probs: (B, T) float32; sum over the vocabulary of the squared next-token probabilities.
        hidden_states: (B, T, H); the states from which the head computes each token's logits.
        turns: (B, T) int, the turn of each token, from 0; `None` without tools.
        turn_rewards: (B, K) float, the reward of each turn, weighted over the reward functions; NaN for none. K is the most
            turns of this process. `None` without tools or if no function gives a reward for each turn.
        turn_states: (B, K) int64, a hash of what a tool or the environment returned just before each turn (the prompt, for
            the first); 0 if there is no such turn. `None` without tools.
        values: What [`CreditMethod.continuations`] asks for. Empty in evaluation, where nothing is continued.
        gather: Concatenates a tensor of equal shape over the processes; the default is for a single process.
        first: Place of this process's first completion among all.
    """

    mask: Bool[Tensor, "batch tokens"]
    token_ids: Int[Tensor, "batch tokens"]
    advantages: Float[Tensor, " batch"]
    rewards: Float[Tensor, " batch"]
    groups: Int[Tensor, " batch"]
    logps: Float[Tensor, "batch tokens"] | None = None
    sum_squared_probs: Float[Tensor, "batch tokens"] | None = None
    hidden_states: Float[Tensor, "batch tokens hidden"] | None = None
    turns: Int[Tensor, "batch tokens"] | None = None
    turn_rewards: Float[Tensor, "batch turns"] | None = None
    turn_states: Int[Tensor, "batch turns"] | None = None
    values: Mapping[Continuations, SegmentValues] = field(default_factory=dict)
    gather: Callable[[Tensor], Tensor] = field(default=alone, repr=False)
    first: int = 0

    def filled(self, **fields: Any) -> Rollout:
        """The same completions with fields that were empty so far. What was computed [`once`] stays."""
        filled = replace(self, **fields)
        filled.keep_from(self)
        return filled

    def all(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*all"]:
        """All processes' rows of a tensor, in order. If it has columns, shorter ones are filled with zeros."""
        if tensor.dim() > 1:
            longest = int(self.gather(torch.tensor([tensor.size(1)], device=tensor.device)).max())
            filled = tensor.new_zeros(tensor.size(0), longest, *tensor.shape[2:])
            filled[:, : tensor.size(1)] = tensor
            tensor = filled
        return self.gather(tensor)

    def own(self, tensor: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*shape"]:
        """This process's part of a tensor with all processes' rows: what [`all`] would make it from."""
        tensor = tensor[self.first : self.first + len(self.mask)]
        return tensor[:, : self.mask.size(1)] if tensor.dim() > 1 else tensor

    def own_turns(self, tensor: Shaped[Tensor, "all most"], count: int) -> Shaped[Tensor, "batch turns"]:
        """This process's part of a tensor with all processes' rows, of as many turns as it has itself."""
        return tensor[self.first : self.first + len(self.mask), :count]

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of a tensor over all processes."""
        return self.gather(tensor.unsqueeze(0)).sum(0)

    @property
    def all_rewards(self) -> Float[Tensor, " all"]:
        """(N,) [`rewards`] of all processes, gathered once."""
        return self.once("rewards", lambda: self.all(self.rewards))

    @property
    def all_groups(self) -> Int[Tensor, " all"]:
        """(N,) [`groups`] of all processes, gathered once."""
        return self.once("groups", lambda: self.all(self.groups))

    @property
    def group_rewards(self) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"], Float[Tensor, " groups"]]:
        """(G,) each: least, mean and greatest reward of every group, by its number, over all processes. NaN is no reward; a
        group without any has infinity, NaN and -infinity."""
        return self.once("group rewards", self._group_rewards)

    def _group_rewards(self) -> tuple[Tensor, Tensor, Tensor]:
        known = ~torch.isnan(self.all_rewards)
        rewards, groups = self.all_rewards[known], self.all_groups[known]
        size = int(self.all_groups.max()) + 1 if len(self.all_groups) else 0
        low = rewards.new_full((size,), torch.inf).scatter_reduce(0, groups, rewards, "amin")
        high = rewards.new_full((size,), -torch.inf).scatter_reduce(0, groups, rewards, "amax")
        # Of deviations from the least, which round less than rewards
        count = rewards.new_zeros(size).index_add(0, groups, torch.ones_like(rewards))
        mean = low + rewards.new_zeros(size).index_add(0, groups, rewards - low[groups]) / count
        return low, mean, high

    @property
    def groups_with_signal(self) -> Bool[Tensor, " batch"]:
        """(B,) bool, completions whose group has more than one reward. NaN is no reward."""
        low, _, high = self.group_rewards
        return (high > low)[self.groups]
