"""A NaN from the policy skips the update."""

import itertools

import pytest
import torch
from helpers import config, letter_reward, prompts
from support.guard import make

from trl_credit import CreditGRPOTrainer
from trl_credit.extras.checkpoints import load_tree


NAN, INF = float("nan"), float("inf")


# Updates that are not finite


def poison(trainer, steps):
    compute_loss = trainer._compute_loss

    def nan_loss(model, inputs):
        loss = compute_loss(model, inputs)
        return loss * NAN if trainer.state.global_step in steps else loss

    trainer._compute_loss = nan_loss


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_nan_changes_nothing(max_grad_norm, tiny_model, tmp_path):
    settings = {"max_steps": 5, "max_grad_norm": max_grad_norm, "weight_decay": 0.1, "max_nonfinite_updates": 3}
    trainer = make(tiny_model, tmp_path, letter_reward, gradient_accumulation_steps=2, **settings)
    poison(trainer, {1, 2})
    states = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, *_: states.append(
            [p.detach().clone() for p in trainer.model.parameters()]
            + [v.clone() for state in optimizer.state.values() for v in state.values()]
        )
    )
    trainer.train()
    assert len(states) == 5
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(states)]
    assert same == [True, True, False, False]
    assert [log.get("nonfinite_updates") for log in trainer.state.log_history[:5]] == [None, 1.0, 2.0, 2.0, 2.0]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_too_many_in_a_row_end_the_run(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, letter_reward, max_steps=9, max_nonfinite_updates=2)
    poison(trainer, {1, 3, 4, 5})
    batches = {}
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (
        batches.setdefault(trainer.state.global_step, inputs),
        compute_loss(model, inputs),
    )[1]
    with pytest.raises(
        FloatingPointError, match=r"Update 5 has a non-finite loss.*number 2 in a row \(`max_nonfinite_updates`\)"
    ):
        trainer.train()
    assert trainer.state.global_step == 4
    saved = load_tree(tmp_path / "nonfinite_batch" / "rank_0.safetensors")
    assert saved["global_step"] == 3  # the first of the two
    for name in ("prompt_ids", "completion_ids", "completion_mask", "advantages"):
        assert torch.equal(saved["batches"][0][name], batches[3][name])


def test_a_run_after_one_that_ended(tiny_model, tmp_path):
    trainer = make(
        tiny_model, tmp_path, letter_reward, max_steps=3, max_nonfinite_updates=1, gradient_accumulation_steps=2
    )
    bad = {0}
    poison(trainer, bad)
    with pytest.raises(FloatingPointError):
        trainer.train()
    bad.clear()
    trainer.train()
    assert trainer.state.global_step == 3
    assert not trainer._update_batches


def test_a_loss_of_the_users_own(tiny_model, tmp_path):
    class Own(CreditGRPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return self._compute_loss(model, inputs)

    trainer = Own(model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path), train_dataset=prompts())
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_gradient_that_overflows(tiny_model, tmp_path):
    """The loss is finite, its gradient is not."""
    trainer = make(tiny_model, tmp_path, letter_reward, max_steps=2)
    parameter = next(iter(trainer.model.parameters()))
    parameter.register_hook(lambda gradient: gradient * INF if trainer.state.global_step == 0 else gradient)
    before = parameter.detach().clone()
    seen = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(lambda *_: seen.append(parameter.detach().clone()))
    trainer.train()
    assert torch.equal(seen[0], before)
    assert not torch.equal(seen[1], before)
    assert trainer.state.log_history[0]["nonfinite_updates"] == 1.0
