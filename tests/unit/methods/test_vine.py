"""VinePPO: advantages of steps from values."""

from dataclasses import replace

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import credit, make_inputs, make_rollout, ragged_masks
from support.processes import on_processes

from trl_credit import Vine, build_credit
from trl_credit.methods.rollout import Continuations, SegmentValues


def rollout_of(values, rewards, lengths, width=None):
    """Completions of segments of the given lengths."""
    width = width or max(map(sum, lengths))
    segments = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, parts in enumerate(lengths):
        mask[row, : sum(parts)] = True
        segments[row, : sum(parts)] = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    found = SegmentValues(segments, torch.tensor(values))
    return replace(make_rollout(0, mask), rewards=torch.tensor(rewards), values={Continuations(): found})


@pytest.mark.parametrize("scale", ["whiten", "std", "none"])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 9), length=st.integers(1, 30))
def test_oracle(scale, seed, batch, length):
    rollout = make_rollout(seed, ragged_masks(seed, batch, length))
    known = rollout.values[Continuations()].values
    known[torch.rand(known.shape, generator=torch.Generator().manual_seed(seed)) < 0.05] = torch.nan
    found = Vine(scale=scale).rollout_stage(rollout)["advantages"]
    values = rollout.values[Continuations()]
    rows = oracles.vine(
        values.segments.tolist(), values.values.tolist(), rollout.rewards.tolist(), rollout.mask.tolist(), scale
    )
    for row, expected in zip(found, rows, strict=True):
        if expected is None:
            assert row.isnan().any()
        else:
            torch.testing.assert_close(row.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_by_hand():
    nan = torch.nan
    rollout = rollout_of(
        [[0.5, 0.75, 0.0, nan], [0.5, 0.5, 1.0, 1.0]],
        [0.0, 1.0],
        [[2, 1], [1, 1, 3]],
    )
    found = Vine(scale="none").rollout_stage(rollout)["advantages"]
    assert found.tolist() == [[0.25, 0.25, -0.75, 0, 0], [0, 0.5, 0, 0, 0]]
    assert Vine(scale="none").rows_with_credit(rollout).tolist() == [True, True]


def test_a_group_of_equal_rewards_has_credit_and_a_completion_that_nothing_decided_has_none():
    rollout = rollout_of(
        [[0.5, 0.25, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [0.0, 0.0, 0.0], [[1, 2], [2, 1], [1, 1]]
    )
    rollout = replace(rollout, groups=torch.zeros(3, dtype=torch.long))
    for scale in ("none", "std"):
        method = Vine(scale=scale)
        assert method.rows_with_credit(rollout).tolist() == [True, False, True]
        assert not method.rollout_stage(rollout)["advantages"][1].any()
    assert Vine().rows_with_credit(rollout).all()  # the mean is not 0


def test_equal_advantages_of_all_tokens_are_none():
    rollout = rollout_of([[0.1, 0.3], [0.1, 0.3]], [0.3, 0.3], [[3], [2]])
    for scale in ("whiten", "std"):
        assert not Vine(scale=scale).rollout_stage(rollout)["advantages"].any()
        assert not Vine(scale=scale).rows_with_credit(rollout).any()


@pytest.mark.parametrize("values", [[0.0, 1 / 3, 2 / 3, 1.0], [0.0, 0.1, 0.2, 0.3], [5.0, 5.1, 5.2, 5.3]])
def test_rounding_is_no_advantage(values):
    rollout = rollout_of([values, values], [values[-1]] * 2, [[1, 2, 3]] * 2)
    for scale in ("whiten", "std"):
        assert not Vine(scale=scale).rollout_stage(rollout)["advantages"].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_unknown_value_makes_the_completion_neutral_and_changes_no_other(bad):
    values = [[0.5, 0.25, 0.0], [0.0, 0.5, 1.0], [0.25, 0.5, 0.0]]
    lengths = [[1, 2], [2, 1], [1, 1]]
    whole = Vine().rollout_stage(rollout_of(values[:2], [0.0, 1.0], lengths[:2]))["advantages"]
    values[2][1] = bad
    rollout = rollout_of(values, [0.0, 1.0, 0.0], lengths)
    found = Vine().rollout_stage(rollout)["advantages"]
    assert torch.equal(found[:2], whole)
    assert not torch.isfinite(found[2, :2]).any()
    assert Vine().rows_with_credit(rollout)[2]  # so that it gets its sequence advantage, and is counted


def test_no_reward_is_no_advantage():
    rollout = rollout_of([[0.5, 0.25, 0.0], [0.5, 0.25, 0.0]], [torch.nan, 0.0], [[1, 2], [1, 2]])
    assert not Vine().rollout_stage(rollout)["advantages"][0].any()
    assert not Vine().rows_with_credit(rollout)[0]


def test_two_processes_have_one_scale():
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[:3, 6:] = False
    rollout = make_rollout(1, mask)
    whole = Vine().rollout_stage(rollout)["advantages"]
    parts = on_processes(rollout, lambda r: Vine().rollout_stage(r)["advantages"], (6, 11))
    for part, expected in zip(parts, (whole[:3, :6], whole[3:]), strict=True):
        torch.testing.assert_close(part, expected, equal_nan=True)


def test_without_values_each_token_has_the_sequence_advantage():
    """In evaluation."""
    inputs = make_inputs(Vine(), 3, 4, 9)
    rollout = replace(make_rollout(3, inputs.mask), values={})
    assert Vine().rollout_stage(rollout) == {}
    assert Vine().rows_with_credit(rollout) is None
    found = credit(Vine(), replace(inputs, rollout={}))[1]
    assert torch.equal(found, torch.where(inputs.mask, inputs.advantages.unsqueeze(1), 0.0))
    assert Vine().metrics(replace(inputs, rollout={})) == {}


def test_what_is_asked_for():
    assert Vine().continuations() == (Continuations("step", 9),)
    assert Vine(every="16").continuations() == Vine(every=16).continuations() == (Continuations(16, 9),)
    for several in (
        build_credit(["vine", "gcpo"]),
        build_credit({"method": "trl_credit.methods.compose.AllSignals", "methods": ["vine", "gcpo"]}),
    ):
        assert several.continuations() == Vine().continuations()
    assert build_credit(["otb", "gcpo"]).continuations() == ()


def test_a_list_multiplies_its_weights():
    method = build_credit(["vine", "forking"])
    inputs = make_inputs(method, 3, 4, 9)
    weights, found = credit(method, inputs)
    alone = {name.removeprefix("0/"): value for name, value in inputs.rollout.items()}
    own = credit(Vine(), replace(inputs, rollout=alone))[1]
    torch.testing.assert_close(found, own * weights)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"count": 0}, "`count` must be at least 1, got 0"),
        ({"scale": "group"}, "`scale` must be one of whiten, std, none, got 'group'"),
        ({"every": 0}, "credit method 'vine': `every` must be a number of tokens from 1"),
        ({"every": "("}, "credit method 'vine': `every` is no regular expression"),
        ({"every": True}, "`every` must be"),
    ],
    ids=str,
)
def test_settings_are_checked(settings_, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Vine(**settings_)
