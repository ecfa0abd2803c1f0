"""OTB: token advantages from the baseline with the least variance."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import credit, make_inputs, make_rollout, ragged_masks
from support.processes import on_processes

from trl_credit import OTB
from trl_credit.methods.otb import squared_gradients, token_baselines


def expected_of(rollout, zero_tail=False):
    rows = oracles.otb(
        *(getattr(rollout, name).tolist() for name in ("logps", "sum_squared_probs", "rewards", "groups", "mask")),
        zero_tail,
    )
    width = rollout.mask.size(1)
    broken = [row is None for row in rows]
    return torch.tensor([[0.0] * width if row is None else row for row in rows], dtype=torch.float64), broken


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 9), length=st.integers(1, 30), zero_tail=st.booleans())
def test_oracle(seed, batch, length, zero_tail):
    rollout = make_rollout(seed, ragged_masks(seed, batch, length))
    found = OTB(zero_tail).rollout_stage(rollout)["advantages"]
    torch.testing.assert_close(found.double(), expected_of(rollout, zero_tail)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["logps", "sum_squared_probs"])
def test_a_broken_completion_counts_in_no_baseline(name, value):
    rollout = make_rollout(3, torch.ones(6, 7, dtype=torch.bool))
    rollout = replace(rollout, rewards=torch.tensor([0.0, 1.0, 0.5, 1.0, 1.0, 0.0]), groups=torch.arange(6) // 3)
    getattr(rollout, name)[1, 2] = value
    expected, broken = expected_of(rollout)
    found = OTB().rollout_stage(rollout)["advantages"]
    assert broken == [False, True, False, False, False, False]
    assert found[1].isnan().all()
    kept = ~torch.tensor(broken)
    torch.testing.assert_close(found[kept].double(), expected[kept], rtol=1e-5, atol=1e-6)


def test_two_processes_with_a_group_on_both():
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[:3, 6:] = False
    mask[3, 4:6] = False
    rollout = replace(
        make_rollout(1, mask),
        rewards=torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 1.0]),
        groups=torch.tensor([0, 0, 1, 1, 2, 2]),
    )
    whole = OTB().rollout_stage(rollout)["advantages"]
    parts = on_processes(rollout, lambda r: OTB().rollout_stage(r)["advantages"], (6, 11))
    assert whole[2].any()
    assert not torch.equal(whole[2, :4], (rollout.rewards[2] - 0.5).expand(4))
    assert torch.equal(parts[0], whole[:3, :6])
    assert torch.equal(parts[1], whole[3:])


def test_equal_rewards_get_exactly_nothing():
    rollout = make_rollout(0, ragged_masks(0, 6, 9))
    rollout = replace(rollout, rewards=torch.full((6,), 0.1))
    assert not OTB().rollout_stage(rollout)["advantages"].any()
    assert not OTB().rows_with_credit(rollout).any()


def test_equal_gradients_give_the_group_mean():
    rollout = make_rollout(0, torch.ones(4, 5, dtype=torch.bool))
    rewards = torch.tensor([0.0, 1.0, 0.25, 1.0])
    rollout = replace(
        rollout,
        logps=torch.full((4, 5), -1.0),
        sum_squared_probs=torch.full((4, 5), 0.3),
        rewards=rewards,
        groups=torch.zeros(4, dtype=torch.long),
    )
    found = OTB().rollout_stage(rollout)["advantages"]
    torch.testing.assert_close(found, (rewards - rewards.mean()).unsqueeze(1).expand(4, 5))


def test_the_weighted_advantages_sum_to_zero_at_each_place():
    """The definition of the least-variance baseline: sum_i W_i,t (R_i - b_t) = 0."""
    rollout = make_rollout(2, torch.ones(4, 6, dtype=torch.bool))
    rollout = replace(rollout, rewards=torch.tensor([0.0, 1.0, 1.0, 0.5]), groups=torch.zeros(4, dtype=torch.long))
    gathered = squared_gradients(rollout.logps, rollout.sum_squared_probs).cumsum(-1)
    found = OTB().rollout_stage(rollout)["advantages"]
    torch.testing.assert_close((gathered * found).sum(0), torch.zeros(6), rtol=0, atol=1e-5)


def test_squared_gradients_are_those_at_the_logits():
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(7)
    logps = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad(logps[torch.arange(7), ids].sum(), logits)
    probs = logps.detach().exp()
    found = squared_gradients(logps.detach()[torch.arange(7), ids][None], probs.square().sum(-1)[None])
    torch.testing.assert_close(found[0], gradient.square().sum(-1))


def test_a_certain_policy_falls_back_to_the_mean():
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = token_baselines(torch.zeros(2, 3), torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long), mask)
    assert torch.equal(found, torch.full((2, 3), 0.5))


def test_rows_with_a_zero_advantage_can_have_token_advantages():
    """Two completions with the mean reward: their sequence advantage is 0, their token advantages are not."""
    rollout = make_rollout(4, torch.ones(3, 6, dtype=torch.bool))
    rollout = replace(rollout, rewards=torch.tensor([0.0, 1.0, 0.5]), groups=torch.zeros(3, dtype=torch.long))
    assert OTB().rows_with_credit(rollout).all()
    assert OTB().rollout_stage(rollout)["advantages"][2].abs().min() > 1e-4


def test_large_rewards_do_not_cancel():
    rollout = make_rollout(5, torch.ones(4, 6, dtype=torch.bool))
    rollout = replace(rollout, rewards=torch.tensor([0.0, 1.0, 0.5, 1.0]), groups=torch.zeros(4, dtype=torch.long))
    plain = OTB().rollout_stage(rollout)["advantages"]
    shifted = OTB().rollout_stage(replace(rollout, rewards=rollout.rewards + 4096))["advantages"]
    torch.testing.assert_close(shifted, plain, rtol=0, atol=2e-3)
    assert np.isfinite(shifted.numpy()).all()


def test_metrics():
    inputs = make_inputs(OTB(), 0, 6, 9)
    size = OTB().metrics(inputs)["token_advantage_size"]
    assert torch.equal(size, credit(OTB(), inputs)[1].abs())
