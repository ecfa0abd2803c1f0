"""GiGPO: groups of completions, and groups of turns that start from the same state.

    G_i,k = sum_{j >= k} gamma^(j - k) r_i,j            # return from turn k on
    A^E_i = R_i - mean R                                # over the group's completions
    A^S_i,k = G_i,k - mean G                            # over the group's turns that start from the same state
    A_i,t = A^E_i + omega A^S_i,k(t)                    # k(t): the turn of token t

The state at a turn's start is what a tool or the environment returned just before it, token by token; at the first turn
it is the prompt. If no reward function gives a reward for each turn, the whole reward belongs to the last turn.

Known weakness: what is returned must tell the whole state. If it does not, turns are compared that start from different
states; if it also tells the number of the turn, no two turns are compared. `credit/state_fraction` shows it.

Reference: Group-in-Group Policy Optimization for LLM Agent Training (arXiv 2505.10978); official code in verl-agent.
Differences from paper and code are numbered in [`GiGPO.differences`].
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .base import Paper
from .ops import at_least_float32
from .rollout import Rollout
from .turn import TurnMethod, deviations, on_last_turn, on_tokens, returns_to_go, turns_present


def state_advantages(
    returns: Float[Tensor, "batch turns"],
    states: Int[Tensor, "batch turns"],
    counted: Bool[Tensor, "batch turns"],
    groups: Int[Tensor, " batch"],
    divide_by_std: bool = False,
) -> Float[Tensor, "batch turns"]:
    """A^S (see the module docstring), given whole groups; 0 where `counted` is False or no other turn has the state."""
    rows = counted.nonzero(as_tuple=True)[0]
    pairs = torch.stack([groups[rows], states[counted]])
    anchors = torch.unique(pairs, dim=1, return_inverse=True)[1]
    result = torch.zeros_like(returns)
    result[counted] = deviations(returns[counted], anchors, divide_by_std)
    return result


@dataclass(frozen=True)
class GiGPO(TurnMethod):
    """The completion's advantage within its group, plus each turn's among turns that start from the same state.

    Args:
        discount: gamma, by which a reward counts less for each turn before it.
        state_weight: omega, the weight of the turns' advantages.
        divide_by_std: Whether both are divided by the standard deviation of what they compare.
    """

    discount: float = 0.95
    state_weight: float = 1.0
    divide_by_std: bool = False

    name = "gigpo"
    paper = Paper(
        title="Group-in-Group Policy Optimization for LLM Agent Training",
        id="2505.10978",
        citation=(
            "@article{feng2025gigpo,\n"
            "    title        = {{Group-in-Group Policy Optimization for LLM Agent Training}},\n"
            "    author       = {Lang Feng and Zhenghai Xue and Tingcong Liu and Bo An},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2505.10978},\n"
            "}"
        ),
    )
    differences = (
        "The state at a turn's start is the text that a tool or the environment returned just before it, compared token by "
        "token; in the code the environment gives it, and similar texts can count as equal.",
        "`discount` is that of the recipes, 0.95; the code's own default is 1.",
        "A group of one completion gets no advantage; in the code it gets its reward.",
        "The advantages come from the weighted sum of the rewards and replace TRL's, so `scale_rewards` has no effect on "
        "them; `divide_by_std` takes its place.",
        "All turns of a completion are one sequence for the loss; in the code each turn is a sample of its own, with the "
        "prompt that its memory makes.",
        "A completion without a reward, or without a token in the loss (`mask_truncated_completions`), does not count and "
        "gets no advantage.",
    )

    def validate(self) -> None:
        self.require(0 <= self.discount <= 1, "discount", "between 0 and 1")
        self.require(0 <= self.state_weight < math.inf, "state_weight", "non-negative and finite")

    def _parts(self, rollout: Rollout) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch turns"]]:
        """A^E and A^S of this process's completions, gathered once."""
        return self.once(rollout, "parts", lambda: self._gathered_parts(rollout))

    def _gathered_parts(self, rollout: Rollout) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch turns"]]:
        self.need_turns(rollout)
        states = rollout.turn_states
        present = turns_present(rollout.turns, rollout.mask, states.size(1))
        turn_rewards = rollout.turn_rewards
        if turn_rewards is None:
            turn_rewards = on_last_turn(at_least_float32(rollout.rewards), present)
        rewards, groups = at_least_float32(rollout.all_rewards), rollout.all_groups
        known = ~torch.isnan(rewards)
        episode = torch.zeros_like(rewards)
        episode[known] = deviations(rewards[known], groups[known], self.divide_by_std)
        states, everywhere = rollout.all(states), rollout.all(present)
        counted = everywhere & known.unsqueeze(1) & (states != 0)
        step = state_advantages(
            returns_to_go(rollout.all(turn_rewards), self.discount), states, counted, groups, self.divide_by_std
        )
        return rollout.own(episode).unsqueeze(1), rollout.own_turns(step, present.size(1))

    def of_turns(self, rollout: Rollout) -> Float[Tensor, "batch turns"]:
        episode, step = self._parts(rollout)
        return episode + self.state_weight * step

    def rollout_stage(self, rollout: Rollout) -> dict[str, Float[Tensor, "batch tokens"]]:
        episode, step = self._parts(rollout)
        turns, mask = rollout.turns, rollout.mask
        return {
            "advantages": on_tokens(episode + self.state_weight * step, turns, mask),
            "of_states": on_tokens((step != 0).to(step.dtype), turns, mask),
        }

    def metrics(self, inputs):
        """`token_advantage_size`: mean size of the token advantages. `state_fraction`: fraction of tokens in turns that
        another turn from the same state makes better or worse."""
        return super().metrics(inputs) | {"state_fraction": inputs.rollout["of_states"]}
