"""Which rows the rollout stage runs through the policy, and in which forwards."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.inputs import make_rollout

from trl_credit import DelTA, SignalSource, build_credit
from trl_credit.batching import GROUPS, SHARED
from trl_credit.methods.compose import AllSignals
from trl_credit.methods.mix import shared_rows
from trl_credit.trainer.rollout_stage import extend_rollout, stage_forwards


LENGTHS = [9, 1, 8, 0, 2, 9]  # a row without a token in the loss among them


def batch(**entries):
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in LENGTHS])
    ones = torch.ones(len(LENGTHS), 3, dtype=torch.long)
    return {
        "prompt_ids": ones, "prompt_mask": ones, "completion_ids": torch.ones_like(mask), "completion_mask": mask,
        "advantages": torch.ones(len(LENGTHS)),
    } | entries  # fmt: skip


def trainer(other=None, padding=None, most_rows=2):
    """One of several processes, another of which gathers `other`."""
    accelerator = SimpleNamespace(gather=lambda own: own if other is None else torch.cat([own, torch.tensor([other])]))
    credit_pass = SimpleNamespace(padding_affects_output=padding, max_forwards=1 if padding else 8, forward_overhead=0)
    return SimpleNamespace(
        accelerator=accelerator, credit_pass=credit_pass, args=SimpleNamespace(per_device_train_batch_size=most_rows)
    )


def wanted(*rows):
    return torch.tensor([row in rows for row in range(len(LENGTHS))])


def test_rows_that_are_read_run_with_others_of_their_length():
    assert stage_forwards(trainer(), None, batch()) == [[1], [4], [2], [0, 5]]
    assert stage_forwards(trainer(), wanted(0, 1, 3, 5), batch()) == [[1], [0, 5]]
    assert stage_forwards(trainer(), wanted(3), batch()) == []
    assert stage_forwards(trainer(padding="why"), wanted(0, 1, 2, 5), batch()) == [[0, 1], [2, 5]]  # in TRL's order


def test_all_processes_run_equally_many_forwards():
    assert stage_forwards(trainer(other=[0, 3]), wanted(0, 5), batch()) == [[0, 5], [], []]
    assert stage_forwards(trainer(other=[0, 1]), wanted(), batch()) == [[]]


def test_if_some_rows_of_any_process_have_images_all_run():
    """A process that left out its rows with images would not run the vision tower."""
    every = [[0, 1], [2, 3], [4, 5]]
    mixed = batch(num_images=[1, 0, 1, 1, 1, 1])
    assert stage_forwards(trainer(), wanted(0), mixed) == every
    assert stage_forwards(trainer(other=[1, 1]), wanted(0), batch()) == every
    assert stage_forwards(trainer(), wanted(0), batch(num_images=[1] * 6)) == [[0]]


def test_what_signals_share_of_a_generation_batch_is_not_buffered():
    seen = []

    class Source(SignalSource):
        needs_groups = True

        def extend_rollout(self, context, examples, prompts, batch):
            seen.append(batch[SHARED].once("numbers", object))
            assert batch[GROUPS].tolist() == [0, 0, 1, 1]

    sources = {"one": Source(), "two": Source()}
    context = SimpleNamespace(
        credit_pass=SimpleNamespace(sources=sources), accelerator=SimpleNamespace(process_index=0)
    )
    made = {}
    extend_rollout(context, [], [""] * 4, made, lambda: torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    assert seen[0] is seen[1]
    assert made == {}


def test_of_several_methods_any_may_read_a_row():
    rollout = replace(
        make_rollout(0, torch.ones(4, 5, dtype=torch.bool)),
        rewards=torch.tensor([0.0, 1.0, 1.0, 1.0]),
        groups=torch.tensor([0, 0, 1, 1]),
        advantages=torch.tensor([0.0, 1.0, 0.0, -1.0]),
    )
    assert build_credit("otb").rollout_rows(rollout).tolist() == [True, True, False, False]
    assert DelTA().rollout_rows(rollout).tolist() == [False, True, False, True]
    both = AllSignals([{"method": "otb"}, {"method": "delta"}, {"method": "gcpo"}])
    assert both.rollout_rows(rollout).tolist() == [True, True, False, True]
    assert AllSignals([{"method": "gcpo"}]).rollout_rows(rollout) is None
    listed = build_credit(["delta", "gcpo"])
    shuffled = build_credit({"method": "shuffled", "of": "delta"})
    for method in (listed, shuffled):
        assert method.rollout_rows(rollout).tolist() == [False, True, False, True]


def test_a_method_that_does_not_say_has_all():
    class All(DelTA):
        def rollout_rows(self, rollout):
            return None

    rollout = make_rollout(0, torch.ones(4, 5, dtype=torch.bool))
    assert shared_rows([DelTA(), All()], rollout) is None


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_no_forward_has_more_rows_than_a_micro_batch(rows):
    found = stage_forwards(trainer(most_rows=rows), None, batch())
    assert max(map(len, found)) <= rows
    assert sorted(row for rows in found for row in rows) == [0, 1, 2, 4, 5]
