"""A credit pass without a trainer: inputs of a custom method and signal, against the definition."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import save_tiny_model
from transformers import AutoModelForCausalLM

from trl_credit import CreditInputs, CreditMethod, Paper, PolicyForward, Signal, SignalSource, mean_one
from trl_credit.batching import PLAN, PlanSettings, Savings, UpdatePlan, plan_updates
from trl_credit.credit_pass import CreditPass
from trl_credit.methods.mix import Mix


class Source(SignalSource):
    """Twice the token ids, from a forward of its own, of which the widths are kept."""

    has_forward = True

    def __init__(self):
        self.shapes = []

    def forward(self, context, model, batch):
        assert not torch.is_grad_enabled()
        self.shapes.append(tuple(batch["completion_ids"].shape))
        return 2.0 * batch["completion_ids"]


@dataclasses.dataclass(frozen=True)
class Twice(Signal):
    def source(self):
        return Source()


@dataclasses.dataclass(frozen=True)
class Method(CreditMethod):
    name = "ids"
    paper = Paper(title="", id="", citation="")
    factor: float = 1.0

    def signals(self):
        return (Twice(),)

    def weights(self, inputs: CreditInputs):
        return self.factor * mean_one(inputs.signals[Twice()], inputs.mask)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("model")))
    accelerator = SimpleNamespace(device=torch.device("cpu"), unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(model=model, accelerator=accelerator, forward_dtype=torch.float32)


def batch():
    ids = torch.tensor([[3, 5, 1, 0], [2, 2, 0, 0], [4, 1, 1, 6]])
    return {
        "prompt_ids": torch.ones(3, 2, dtype=torch.long),
        "prompt_mask": torch.ones(3, 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": (ids > 0).long(),
        "advantages": torch.tensor([2.0, 0.0, -1.0]),
    }


def policy():
    logps = torch.full((3, 4), -1.0, requires_grad=True)
    return PolicyForward(logps.detach(), torch.ones(3, 4), None)


def test_token_advantages(context):
    """Rows 0 and 2 need credit, in two forwards; row 0 counts half."""
    credit_pass, made = CreditPass(Method(), context), batch()
    plan = UpdatePlan([0, 2], {Twice(): [[0], [2]]}, rows=3, most_rows=3, scale=torch.tensor([0.5, 1.0, 1.0]))
    result = credit_pass.finish(credit_pass.start(context.model, made, plan), policy())
    expected = torch.tensor(
        [[0.5 * 2 * 3 * 3 / 9, 0.5 * 2 * 5 * 3 / 9, 0.5 * 2 * 1 * 3 / 9, 0], [0, 0, 0, 0], [-4 / 3, -1 / 3, -1 / 3, -2]]
    )
    torch.testing.assert_close(result.token_advantages, expected)
    torch.testing.assert_close(result.row_advantages, expected[[0, 2]] / torch.tensor([[0.5], [1.0]]))
    assert result.view["advantages"].tolist() == [2.0, -1.0]
    assert made["advantages"].tolist() == [2.0, 0.0, -1.0]
    assert credit_pass.sources[Twice()].shapes == [(1, 3), (1, 4)]  # without the padding of others
    assert result.inputs.vocab_size == context.model.config.vocab_size == credit_pass.vocab_size


def test_observers_see_sequence_advantages_when_every_row_needs_credit(context):
    credit_pass, made = CreditPass(Method(), context), batch()
    plan = UpdatePlan([0, 1, 2], {Twice(): [[0, 1, 2]]}, rows=3, most_rows=3)
    result = credit_pass.finish(credit_pass.start(context.model, made, plan), policy())
    made["advantages"] = result.token_advantages
    assert result.view["advantages"].tolist() == [2.0, 0.0, -1.0]


@dataclasses.dataclass(frozen=True)
class Adding(CreditMethod):
    """Adds one to every advantage."""

    name = "adding"
    paper = Paper(title="", id="", citation="")
    reweights = False

    def term(self, inputs: CreditInputs):
        return inputs.mask.float()


@pytest.mark.parametrize("advantages", [[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [2.0, 1.0, -1.0]])
def test_a_signal_is_computed_where_a_method_that_reads_it_can_use_it(advantages, context):
    """Every row gets a term, and those with an advantage weights."""
    mix = Mix([Method().to_dict(), Adding().to_dict()])
    credit_pass, made = CreditPass(mix, context), batch() | {"advantages": torch.tensor(advantages)}
    source, seen = credit_pass.sources[Twice()], []

    def compute(context, part, own, policy):
        seen.append((len(part["advantages"]), int(part["completion_mask"].sum()), len(policy.logps)))
        return own

    source.compute = compute
    assert credit_pass.partial == {Twice()}
    settings = PlanSettings(
        Savings(),
        every_row=True,
        loss_type="grpo",
        window=1,
        overhead=0,
        forward_overhead=0,
        partial=credit_pass.partial,
    )
    (planned,), _ = plan_updates([made], {Twice(): source.lengths}, lambda tensor: tensor, settings)
    plan = planned.pop(PLAN)
    result = credit_pass.finish(credit_pass.start(context.model, planned, plan), policy())
    with_advantage = [row for row, value in enumerate(advantages) if value]
    assert sum(rows for rows, _ in source.shapes) == len(with_advantage)
    tokens = int(made["completion_mask"][with_advantage].sum())
    assert seen == ([(len(with_advantage), tokens, len(with_advantage))] if with_advantage else [])
    mask = made["completion_mask"]
    weights = mask * made["completion_ids"] * mask.sum(-1, keepdim=True) / made["completion_ids"].sum(-1, keepdim=True)
    torch.testing.assert_close(result.token_advantages, made["advantages"].unsqueeze(1) * weights + mask)
    complete = result.inputs.complete.any(-1).nonzero().flatten().tolist()
    assert complete == with_advantage


def test_processes_compute_a_signal_equally_often(context):
    """One has a completion without an advantage, the other a cut one with an advantage: nobody computes, or both."""
    mix = Mix([Method().to_dict(), Adding().to_dict()])
    credit_pass, made, counts = CreditPass(mix, context), batch(), []
    source = credit_pass.sources[Twice()]
    source.compute = lambda context, part, own, policy: counts.append(len(policy.logps)) or policy.logps
    for advantage, kept in ((0.0, 1), (1.0, 0)):
        one = {key: value[:1] for key, value in made.items()}
        one |= {"advantages": torch.tensor([advantage]), "completion_mask": one["completion_mask"] * kept}
        # What both processes agree on: no row in the loss has an advantage
        plan = UpdatePlan([0] if kept else [], {Twice(): []}, rows=1, any_advantage=False)
        part = PolicyForward(policy().logps[:1], torch.ones(1, 4), None)
        credit_pass.finish(credit_pass.start(context.model, one, plan), part)
    assert counts == []


def test_nothing_needs_credit(context):
    credit_pass, made = CreditPass(Method(), context), batch()
    started = credit_pass.start(context.model, made, UpdatePlan([], {Twice(): []}, any_credit=False))
    result = credit_pass.finish(started, policy())
    assert result.token_advantages is None
    assert result.view is None
    assert not result.inputs.mask.any()
    assert credit_pass.sources[Twice()].shapes == []


def test_weights_of_another_mean_are_refused(context):
    credit_pass = CreditPass(Method(factor=1.5), context)
    started = credit_pass.start(context.model, batch(), UpdatePlan([0], {Twice(): [[0]]}))
    with pytest.raises(ValueError, match=r"credit method 'ids': .* of mean 1 .* off by up to 0.5"):
        credit_pass.finish(started, policy())
