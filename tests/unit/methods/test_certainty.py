"""Certainty: token advantages from a baseline fitted to the policy's doubt."""

import itertools
import math
from dataclasses import replace

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import credit, make_inputs, make_rollout, ragged_masks
from support.processes import on_processes

from trl_credit import Certainty, build_credit
from trl_credit.methods.certainty import EDGES, doubts, fitted_shares


def certain_rollout(seed: int, mask: torch.Tensor, **fields):
    """With every degree of certainty: the likeliest token's probability is 1 - u^3 / 2, and it is sampled or the other."""
    generator = torch.Generator().manual_seed(seed)
    doubt = torch.rand(mask.shape, generator=generator, dtype=torch.float64) ** 3 / 2
    rare = torch.rand(mask.shape, generator=generator, dtype=torch.float64) < doubt
    squared = doubt.square() + (1 - doubt).square()
    squared = torch.where(torch.rand(mask.shape, generator=generator) < 0.2, 0.1, squared)  # or many tokens
    logps = torch.where(rare, doubt, 1 - doubt).log()
    return replace(make_rollout(seed, mask), logps=logps, sum_squared_probs=squared, **fields)


def expected_of(rollout, prior=0.2):
    values = (getattr(rollout, name).tolist() for name in ("logps", "sum_squared_probs", "rewards", "groups", "mask"))
    rows = oracles.certainty(*values, prior)
    broken = torch.tensor([row is None for row in rows])
    return torch.tensor([[0.0] * rollout.mask.size(1) if row is None else row for row in rows]).double(), broken


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(2, 13),
    length=st.integers(1, 20),
    prior=st.sampled_from([0.01, 0.2, 3.0]),
)
def test_oracle(seed, batch, length, prior):
    rollout = certain_rollout(seed, ragged_masks(seed, batch, length))
    found = Certainty(prior).rollout_stage(rollout)["advantages"]
    torch.testing.assert_close(found.double(), expected_of(rollout, prior)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["logps", "sum_squared_probs"])
def test_a_broken_completion_is_in_no_regression(name, value):
    rewards = torch.tensor([0.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    rollout = certain_rollout(3, torch.ones(6, 7, dtype=torch.bool), rewards=rewards, groups=torch.arange(6) // 3)
    getattr(rollout, name)[1, 2] = value
    expected, broken = expected_of(rollout)
    found = Certainty().rollout_stage(rollout)
    assert broken.tolist() == [False, True, False, False, False, False]
    assert found["advantages"][1].isnan().all()
    torch.testing.assert_close(found["advantages"][~broken].double(), expected[~broken], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(found["baseline_share"]).all()
    assert torch.isfinite(found["doubt"]).all()


def test_a_group_with_an_infinite_reward_is_in_no_regression():
    rewards = torch.tensor([0.0, torch.inf, 0.0, 1.0, 1.0, 0.0])
    mask = torch.ones(6, 7, dtype=torch.bool)
    rollout = certain_rollout(3, mask, rewards=rewards, groups=torch.arange(6) // 2)
    found = Certainty().rollout_stage(rollout)["advantages"]
    without = certain_rollout(3, mask, rewards=torch.tensor([1.0, 1, 0, 1, 1, 0]), groups=torch.arange(6) // 2)
    assert found[:2].isnan().all()
    assert torch.equal(found[2:], Certainty().rollout_stage(without)["advantages"][2:])


def test_two_processes_with_a_group_on_both():
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[:3, 6:] = False
    mask[3, 4:6] = False
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
    rollout = certain_rollout(1, mask, rewards=rewards, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
    whole = Certainty().rollout_stage(rollout)["advantages"]
    parts = on_processes(rollout, lambda r: Certainty().rollout_stage(r)["advantages"], (6, 11))
    assert len(set(whole[2, :4].tolist())) > 1
    torch.testing.assert_close(parts[0], whole[:3, :6], rtol=0, atol=1e-12)
    torch.testing.assert_close(parts[1], whole[3:], rtol=0, atol=1e-12)


def test_equal_rewards_get_exactly_nothing():
    rollout = certain_rollout(0, ragged_masks(0, 6, 9), rewards=torch.full((6,), 0.1))
    assert not Certainty().rollout_stage(rollout)["advantages"].any()
    assert not Certainty().rows_with_credit(rollout).any()


def test_a_group_alone_has_grpos_baseline():
    rewards = torch.tensor([0.0, 1.0, 0.25, 1.0])
    mask = torch.ones(4, 5, dtype=torch.bool)
    rollout = certain_rollout(0, mask, rewards=rewards, groups=torch.zeros(4, dtype=torch.long))
    found = Certainty().rollout_stage(rollout)
    torch.testing.assert_close(found["advantages"], (rewards - rewards.mean()).unsqueeze(1).expand(4, 5).double())
    assert torch.equal(found["baseline_share"], torch.ones(4, 5).double())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_shifted_and_scaled_rewards(scale):
    """Move no theta."""
    rewards = torch.tensor([0.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    rollout = certain_rollout(5, torch.ones(6, 6, dtype=torch.bool), rewards=rewards, groups=torch.arange(6) // 3)
    plain = Certainty().rollout_stage(rollout)["advantages"]
    moved = Certainty().rollout_stage(replace(rollout, rewards=scale * rewards - 7))["advantages"]
    torch.testing.assert_close(moved, scale * plain, rtol=1e-4, atol=1e-4)


def test_the_fitted_baseline_has_the_least_weighted_error():
    """Of all baselines that are a share of the mean in each bin; the prior is out of the way."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(9, 3, generator=generator, dtype=torch.float64)
    rewards, means = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    found = fitted_shares(weights, rewards, means, groups, prior=1e-12)
    for group in range(3):
        other = groups != group
        shares = found[group].clone().requires_grad_()
        error = (
            weights[other] * (rewards - means)[other].unsqueeze(1).add((1 - shares) * means[other, None]).square()
        ).sum()
        (gradient,) = torch.autograd.grad(error, shares)
        torch.testing.assert_close(gradient, torch.zeros(3).double(), rtol=0, atol=1e-9)


def test_one_decision_between_two_tokens_leaves_no_variance():
    """The likeliest token is right with probability p, all else fails: the gradient at the decision is the same whatever was
    sampled, as far as theta is known."""
    chance, groups, size = 0.97, 200, 8
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(groups * size, generator=generator, dtype=torch.float64) < chance
    rollout = replace(
        make_rollout(0, torch.ones(groups * size, 1, dtype=torch.bool)),
        rewards=right.double(),
        groups=torch.arange(groups * size) // size,
        logps=torch.where(right, chance, 1 - chance).log().unsqueeze(1),
        sum_squared_probs=torch.full((groups * size, 1), chance**2 + (1 - chance) ** 2, dtype=torch.float64),
    )
    found = Certainty().rollout_stage(rollout)["advantages"].squeeze(1)
    rows = rollout.groups_with_signal
    # d log pi / d logit of the right token
    score = torch.where(right, 1 - chance, -chance)
    ours, grpo = ((score * advantages)[rows] for advantages in (found, right.double() - chance))
    assert ours.std() / ours.mean() < 0.25 * grpo.std() / grpo.mean()


@pytest.mark.parametrize("chance", [0.6, 0.9])
def test_what_is_kept_of_the_expected_gradient(chance):
    """Over all outcomes of a group of four, equal rewards included: what the second difference says."""
    size, others = 4, [0, 1, 1, 1, 1, 0, 1, 1]
    true = chance * (1 - chance)
    kept = 0.0
    for outcome in itertools.product([0, 1], repeat=size):
        right = torch.tensor([*outcome, *others], dtype=torch.float64)
        rollout = replace(
            make_rollout(0, torch.ones(len(right), 1, dtype=torch.bool)),
            rewards=right,
            groups=torch.arange(len(right)) // size,
            logps=torch.where(right.bool(), chance, 1 - chance).log().unsqueeze(1),
            sum_squared_probs=torch.full((len(right), 1), chance**2 + (1 - chance) ** 2, dtype=torch.float64),
        )
        found = Certainty().rollout_stage(rollout)
        if 0 < sum(outcome) < size:
            share = float(found["baseline_share"][0, 0])
        score = torch.where(right.bool(), 1 - chance, -chance)[:size]
        probability = math.prod(chance if one else 1 - chance for one in outcome)
        kept += probability * float((score * found["advantages"][:size, 0]).mean()) / true
    assert share < 0.9
    assert kept == pytest.approx((1 - share / size) - (1 - share) * chance ** (size - 1))


def test_groups_of_different_spans():
    """theta minimizes the weighted square of R - b, in the rewards' own units."""
    rewards = torch.tensor([0.0, 1.0, 1.0, 5.0, 5.1, 5.1, 0.0, 1.0, 1.0], dtype=torch.float64)
    groups = torch.arange(9) // 3
    mask = torch.ones(9, 6, dtype=torch.bool)
    rollout = replace(
        certain_rollout(4, mask), rewards=rewards, groups=groups, sum_squared_probs=torch.full((9, 6), 0.9).double()
    )
    found = Certainty(prior=1e-9).rollout_stage(rollout)["baseline_share"][8, 0]
    weights = (1 - 2 * rollout.logps.exp() + 0.9).clamp(min=0.0).sum(-1)[:6]
    low, mean = torch.tensor([0.0, 5.0]).double()[groups[:6]], torch.tensor([2 / 3, 5 + 0.2 / 3]).double()[groups[:6]]
    share = torch.tensor(float(found), dtype=torch.float64, requires_grad=True)
    error = (weights * (rewards[:6] - low - share * (mean - low)).square()).sum()
    (gradient,) = torch.autograd.grad(error, share)
    assert abs(gradient) < 1e-6


def test_where_certain_tokens_decide_nothing_the_baseline_is_the_mean():
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(4000, generator=generator) < 0.5).double()
    mask = torch.ones(4000, 4, dtype=torch.bool)
    rollout = certain_rollout(2, mask, rewards=rewards, groups=torch.arange(4000) // 8)
    found = Certainty().rollout_stage(rollout)
    often = found["doubt"] >= EDGES[2]  # the others have few rare tokens
    assert found["baseline_share"][often].sub(1).abs().max() < 0.08


def test_the_baseline_stays_among_the_rewards():
    """Rare tokens that were right where success is rare, in the other group, ask for more than the mean."""
    rewards = torch.tensor([1.0] + [0.0] * 7 + [0.0] + [1.0] * 7)
    rollout = replace(
        make_rollout(0, torch.ones(16, 1, dtype=torch.bool)),
        rewards=rewards,
        groups=torch.arange(16) // 8,
        logps=torch.full((16, 1), 0.99).log(),
        sum_squared_probs=torch.full((16, 1), 0.9802),
    )
    rollout.logps[0] = rollout.logps[8] = torch.tensor(0.01).log()
    found = Certainty(prior=1e-6).rollout_stage(rollout)
    assert found["baseline_share"][8:].min() > 2
    assert found["advantages"][9:].abs().max() == 0


def test_doubt_is_what_the_likeliest_token_leaves():
    for top in (0.5, 0.75, 0.99, 1.0):
        squared = torch.tensor([[top**2 + (1 - top) ** 2]], dtype=torch.float64)
        torch.testing.assert_close(doubts(squared), torch.tensor([[1 - top]], dtype=torch.float64))
    assert doubts(torch.tensor([[0.3, 0.01, 1.0000001]])).tolist() == [[0.5, 0.5, 0.0]]
    assert doubts(torch.tensor([[torch.nan]])).isnan().all()


def test_metrics():
    method = Certainty()
    inputs = make_inputs(method, 0, 9, 12)
    found = method.metrics(inputs)
    assert torch.equal(found["token_advantage_size"], credit(method, inputs)[1].abs())
    share, doubt = inputs.rollout["baseline_share"], inputs.rollout["doubt"]
    rows = share > 0
    assert 0 < rows.sum() < inputs.mask.sum()
    assert not (rows & ~inputs.mask).any()
    assert torch.equal(found["baseline_share"][rows], share[rows])
    assert found["baseline_share"][~rows].isnan().all()
    assert torch.equal(found["baseline_share_certain"].isfinite(), (doubt < EDGES[1]) & rows)
    assert torch.equal(found["baseline_share_uncertain"].isfinite(), (doubt >= EDGES[4]) & rows)
    assert torch.equal(found["baseline_change"][rows], (share[rows] - 1).abs())


def test_a_theta_of_one_is_uniform():
    method = Certainty()
    assert method.is_uniform({"credit/baseline_change": 1e-6, "credit/advantage_change": 0.5})
    assert not method.is_uniform({"credit/baseline_change": 0.1})
    assert method.is_uniform({}) is None
    assert "more prompts" in method.remedy(make_inputs(method, 0, 4, 5))


@pytest.mark.parametrize("prior", [0, -1.0, float("inf"), float("nan")])
def test_prior(prior):
    with pytest.raises(ValueError, match="`prior` must be a finite number > 0"):
        build_credit({"method": "certainty", "prior": prior})
