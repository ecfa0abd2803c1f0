"""Turn-level rewards, and GiGPO's groups of turns."""

from dataclasses import replace

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import make_inputs, make_rollout
from support.processes import on_processes

from trl_credit import GiGPO, TurnRewards
from trl_credit.methods.turn import deviations, on_last_turn, returns_to_go, turns_present


def of(seed, batch=6, length=19):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 1.5 * torch.rand(batch, 1, generator=generator)
    mask[0] = False
    mask[-1] = False
    mask[-1, seed % length] = True
    rollout = make_rollout(seed, mask, torch.float64)
    rollout.turn_rewards[seed % batch, 0] = torch.nan
    return rollout


def lists(rollout, *names):
    return [getattr(rollout, name).tolist() for name in names]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 8), length=st.integers(1, 25))
def test_turn_oracle(seed, batch, length):
    rollout = of(seed, batch, length)
    expected = oracles.turn_level(*lists(rollout, "turn_rewards", "rewards", "groups", "turns", "mask"), 0.9)
    found = TurnRewards(0.9).rollout_stage(rollout)["advantages"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 8), length=st.integers(1, 25), divide=st.booleans())
def test_gigpo_oracle(seed, batch, length, divide):
    rollout = of(seed, batch, length)
    arguments = lists(rollout, "turn_rewards", "turn_states", "rewards", "groups", "turns", "mask")
    expected = oracles.gigpo(*arguments, 0.95, 0.7, divide)
    found = GiGPO(state_weight=0.7, divide_by_std=divide).rollout_stage(rollout)["advantages"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [TurnRewards(0.9), GiGPO()], ids=["turn", "gigpo"])
def test_two_processes_of_different_numbers_of_turns(method):
    mask = torch.ones(6, 12, dtype=torch.bool)
    mask[:3, 4:] = False
    rollout = make_rollout(1, mask, torch.float64)
    rollout.turn_rewards[:3, 1:] = 0
    rollout.turn_states[:3, 1:] = 0
    rollout = replace(rollout, rewards=torch.tensor([0.0, 1.0, 1.0, 0.5, 0.0, 1.0], dtype=torch.float64))
    rollout = replace(rollout, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
    whole = method.rollout_stage(rollout)["advantages"]

    def narrow(part):
        if part.first == 0:
            part = replace(
                part,
                mask=part.mask[:, :4],
                turns=part.turns[:, :4],
                turn_rewards=part.turn_rewards[:, :1],
                turn_states=part.turn_states[:, :1],
            )
        return method.rollout_stage(part)["advantages"], method.rows_with_credit(part)

    (first, with_first), (second, with_second) = on_processes(rollout, narrow)
    assert whole[2].any()
    torch.testing.assert_close(first, whole[:3, :4])
    torch.testing.assert_close(second, whole[3:])
    assert torch.equal(torch.cat([with_first, with_second]), whole.any(-1))


def test_a_terminal_reward_without_discount_is_grpo():
    rollout = make_rollout(0, torch.ones(4, 8, dtype=torch.bool), torch.float64)
    rewards = torch.tensor([0.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    present = torch.ones(4, 2, dtype=torch.bool)
    rollout = replace(
        rollout,
        rewards=rewards,
        groups=torch.zeros(4, dtype=torch.long),
        turn_rewards=on_last_turn(rewards, present),
    )
    expected = (rewards - rewards.mean()).unsqueeze(1).expand(4, 8)
    torch.testing.assert_close(TurnRewards().rollout_stage(rollout)["advantages"], expected)
    assert torch.equal(
        GiGPO().rollout_stage(replace(rollout, turn_rewards=None))["advantages"],
        GiGPO().rollout_stage(rollout)["advantages"],
    )


def test_gigpo_with_states_of_their_own_is_the_episode_s_advantage():
    rollout = make_rollout(0, torch.ones(4, 8, dtype=torch.bool), torch.float64)
    rewards = torch.tensor([0.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    rollout = replace(
        rollout,
        rewards=rewards,
        groups=torch.zeros(4, dtype=torch.long),
        turn_states=torch.arange(1, 9).view(4, 2),
    )
    stage = GiGPO().rollout_stage(rollout)
    torch.testing.assert_close(stage["advantages"], (rewards - rewards.mean()).unsqueeze(1).expand(4, 8))
    assert not stage["of_states"].any()


def test_equal_states_of_other_prompts_are_not_compared():
    rollout = make_rollout(0, torch.ones(4, 8, dtype=torch.bool), torch.float64)
    rollout = replace(
        rollout,
        rewards=torch.ones(4, dtype=torch.float64),
        groups=torch.arange(4),
        turn_states=torch.ones(4, 2, dtype=torch.long),
    )
    rollout.turn_rewards[:] = torch.tensor([[0.5, 0.5]])
    found = GiGPO(discount=1.0).rollout_stage(rollout)["advantages"]
    # Within a completion the same state comes twice
    torch.testing.assert_close(found[:, 0], torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found[:, 4], torch.full((4,), -0.25, dtype=torch.float64))


def test_a_run_without_turns_is_refused():
    rollout = make_rollout(0, torch.ones(4, 8, dtype=torch.bool))
    for method in (TurnRewards(), GiGPO()):
        with pytest.raises(ValueError, match=r"has none\. They come from a `rollout_func`, a field of the recipe"):
            method.rollout_stage(replace(rollout, turns=None, turn_rewards=None, turn_states=None))
    with pytest.raises(ValueError, match="return a list of numbers"):
        TurnRewards().rollout_stage(replace(rollout, turn_rewards=None))


def test_returns():
    rewards = torch.tensor([[1.0, torch.nan, 2.0]])
    assert returns_to_go(rewards, 0.5).tolist() == [[1.5, 1.0, 2.0]]
    present = turns_present(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[True, False, False, True]]), 3)
    assert present.tolist() == [[True, False, True]]
    assert on_last_turn(torch.tensor([3.0]), present).tolist() == [[0.0, 0.0, 3.0]]


def test_deviations_of_equal_values_are_exactly_zero():
    values, groups = torch.tensor([0.1, 0.1, 0.1, 5.0, 7.0]), torch.tensor([-9, -9, -9, 4, 4])
    assert deviations(values, groups).tolist() == [0.0, 0.0, 0.0, -1.0, 1.0]
    assert deviations(values[:0], groups[:0]).tolist() == []


def test_parameters_are_checked():
    for wrong in ({"discount": 1.5}, {"state_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GiGPO(**wrong)
    with pytest.raises(ValueError, match="discount"):
        TurnRewards(discount=-0.1)


def test_metrics():
    inputs = make_inputs(GiGPO(), 0, 6, 20)
    found = GiGPO().metrics(inputs)
    assert set(found) == {"token_advantage_size", "state_fraction"}
    assert 0 < found["state_fraction"][inputs.mask].mean() < 1
