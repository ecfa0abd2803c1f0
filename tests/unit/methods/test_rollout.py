"""What a method sees of a generation batch, on one process and on two."""

import math
from dataclasses import dataclass, make_dataclass, replace

import pytest
import torch
from support.inputs import make_rollout
from support.processes import on_processes

from trl_credit import OTB, GiGPO, TurnRewards, Vine
from trl_credit.methods.rollout import Rollout
from trl_credit.methods.turn import TurnMethod


def ragged(rows: int, width: int) -> torch.Tensor:
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for i in range(rows):
        mask[i, : 1 + (5 * i) % width] = True
    return mask


def narrow_first(rows: int = 6, width: int = 9, narrow: int = 4):
    """A rollout whose first half fits into fewer columns, and the widths of the two processes."""
    mask = ragged(rows, width)
    mask[: rows // 2, narrow:] = False
    return make_rollout(0, mask), (narrow, width)


def test_all_has_every_process_s_rows_in_order():
    rollout, widths = narrow_first()
    for found in on_processes(rollout, lambda r: r.all(torch.where(r.mask, r.logps, 0.0)), widths):
        assert torch.equal(found, torch.where(rollout.mask, rollout.logps, 0.0))
    for found in on_processes(rollout, lambda r: r.all(r.rewards), widths):
        torch.testing.assert_close(found, rollout.rewards, equal_nan=True, rtol=0, atol=0)


def test_all_of_more_than_two_dimensions():
    rollout, widths = narrow_first()
    on = rollout.mask.unsqueeze(-1)
    for found in on_processes(rollout, lambda r: r.all(r.hidden_states * r.mask.unsqueeze(-1)), widths):
        assert torch.equal(found, rollout.hidden_states * on)


def test_own_is_the_inverse_of_all():
    rollout, widths = narrow_first()
    for logps, own, groups, own_groups in on_processes(
        rollout, lambda r: (r.logps, r.own(r.all(r.logps)), r.groups, r.own(r.all(r.groups))), widths
    ):
        assert torch.equal(own, logps)
        assert torch.equal(own_groups, groups)


def test_sum_is_over_processes():
    rollout, widths = narrow_first()
    for found in on_processes(rollout, lambda r: r.sum(r.logps[:, :4].sum(0)), widths):
        torch.testing.assert_close(found, rollout.logps[:, :4].sum(0))
    assert torch.equal(rollout.sum(rollout.advantages), rollout.advantages)


def test_groups_with_signal_on_one_process_and_on_two():
    """The middle group lies on both."""
    rollout, widths = narrow_first()
    nan = torch.nan
    cases = {
        (1.0, 1.0, 0.0, 1.0, 2.0, 2.0): [False, False, True, True, False, False],
        (1.0, nan, nan, nan, 0.0, 3.0): [False, False, False, False, True, True],
        (0.0, 1.0, 0.5, 0.5, nan, 0.0): [True, True, False, False, False, False],
    }
    for rewards, expected in cases.items():
        rollout = replace(rollout, rewards=torch.tensor(rewards), groups=torch.tensor([0, 0, 1, 1, 2, 2]))
        assert rollout.groups_with_signal.tolist() == expected
        parts = on_processes(rollout, lambda r: r.groups_with_signal, widths)
        assert torch.cat(parts).tolist() == expected


def test_a_group_with_a_completion_without_a_reward_is_judged_by_the_others():
    rollout = replace(
        narrow_first()[0],
        rewards=torch.tensor([torch.nan, 1.0, 0.0, 1.0, 1.0, torch.nan]),
        groups=torch.tensor([0, 0, 0, 1, 1, 1]),
    )
    assert rollout.groups_with_signal.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("method", "gathers"), [(OTB(), 6), (TurnRewards(), 6), (GiGPO(), 8)], ids=lambda value: getattr(value, "name", "")
)
def test_what_two_hooks_read_is_gathered_once(method, gathers):
    """Two gathers for a tensor with columns, whose number may differ, and one for another."""
    calls = []

    def gather(tensor):
        calls.append(tensor.shape)
        return tensor

    alone = make_rollout(1, ragged(6, 9))
    rollout = replace(alone, gather=gather)
    stage = method.rollout_stage(rollout)
    assert len(calls) == gathers
    rows = method.rows_with_credit(rollout)
    assert len(calls) == gathers
    assert rows.any()
    assert torch.equal(rows, method.rows_with_credit(alone))
    torch.testing.assert_close(stage["advantages"], method.rollout_stage(alone)["advantages"], rtol=0, atol=0)


def test_a_changed_rollout_starts_anew():
    rollout = make_rollout(0, ragged(4, 9))
    rewards = torch.tensor([0.0, 1.0, 2.0, 2.0])
    assert rollout.all_rewards is rollout.all_rewards
    assert torch.equal(replace(rollout, rewards=rewards).all_rewards, rewards)


@dataclass(frozen=True)
class Listed(TurnMethod):
    """Advantages of turns that a list gives.

    Args:
        values: The list, which cannot be hashed.
    """

    values: list

    name = "listed"

    def of_turns(self, rollout):
        return torch.full_like(rollout.turn_rewards, sum(self.values))


def test_equal_methods_share_what_they_compute_and_others_do_not():
    """Whatever their parameters are, and whatever others are called."""
    rollout = make_rollout(0, torch.ones(4, 6, dtype=torch.bool))
    for one, equal, other in (
        (TurnRewards(0.5), TurnRewards(0.5), TurnRewards(0.25)),
        (GiGPO(), GiGPO(), GiGPO(state_weight=0.5)),
        (Vine(scale="std"), Vine(scale="std"), Vine(scale="none")),
        (Listed([1.0]), Listed([1.0]), Listed([2.0])),
        (TurnRewards(0.5), TurnRewards(0.5), namesake(TurnRewards)(0.5)),
    ):
        found = one.once(rollout, "it", object)
        assert equal.once(rollout, "it", object) is found
        assert equal.once(rollout, "else", object) is not found
        assert other.once(rollout, "it", object) is not found
        assert one.once(replace(rollout), "it", object) is not found


def namesake(kind):
    return make_dataclass(kind.__qualname__, [], bases=(kind,), frozen=True)


@pytest.mark.parametrize("method", [TurnRewards(), GiGPO(), Vine(), Listed([1.0])], ids=lambda m: m.name)
def test_both_hooks_share_one_computation(method, monkeypatch):
    """In either order."""
    computed = []
    once = Rollout.once

    def counted(self, key, compute):
        return once(self, key, lambda: computed.append(key) or compute())

    monkeypatch.setattr(Rollout, "once", counted)
    results = []
    for hooks in (("rollout_stage", "rows_with_credit"), ("rows_with_credit", "rollout_stage")):
        rollout = make_rollout(0, torch.ones(4, 6, dtype=torch.bool))
        computed.clear()
        found = {hook: getattr(method, hook)(rollout) for hook in hooks}
        assert len(computed) == len(set(computed))
        results.append((found["rollout_stage"]["advantages"], found["rows_with_credit"]))
    (first, rows), (second, others) = results
    torch.testing.assert_close(first, second, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(rows, others)


def test_rewards_of_groups():
    mask = torch.ones(7, 2, dtype=torch.bool)
    rollout = replace(
        make_rollout(0, mask),
        rewards=torch.tensor([0.5, torch.nan, 2.0, torch.nan, 0.25, 0.25, 0.25]),
        groups=torch.tensor([0, 0, 0, 1, 2, 2, 2]),
    )
    low, mean, high = rollout.group_rewards
    assert low.tolist() == [0.5, math.inf, 0.25]
    assert high.tolist() == [2.0, -math.inf, 0.25]
    assert mean[[0, 2]].tolist() == [1.25, 0.25]
    assert mean[1].isnan()
    assert rollout.groups_with_signal.tolist() == [True, True, True, False, False, False, False]
