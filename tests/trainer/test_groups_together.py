"""`keep_groups_together`: all completions of a prompt are in one optimizer step."""

import itertools

import pytest
import qwen_vision
import torch
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts
from support.resumed import GCPO, assert_same_run, make, outcome

from trl_credit import CreditGRPOTrainer
from trl_credit.batching import GROUPS


# A generation batch has four groups of four, and two optimizer steps of two micro-batches of four
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "optim": "sgd",
    "max_grad_norm": 0.0,
}


def run(model, path, **settings):
    """Trains; returns the completions of each optimizer step, as (group, advantage, tokens), and its gradient."""
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=place_reward,
        rollout_func=fixed_rollout,
        args=config(path, **SETTINGS | settings),
        train_dataset=prompts(),
    )
    steps, gradients = [], []

    def see(module, inputs):
        step = trainer.state.global_step
        steps.extend([] for _ in range(step + 1 - len(steps)))
        groups = inputs.get(GROUPS, inputs["advantages"])
        rows = zip(groups.tolist(), inputs["advantages"].tolist(), inputs["completion_ids"].tolist(), strict=True)
        steps[step] += [(group, advantage, tuple(ids)) for group, advantage, ids in rows]
        return loss(module, inputs)

    loss, trainer._compute_loss = trainer._compute_loss, see
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    )
    trainer.train()
    return steps, gradients


@pytest.mark.parametrize("credit", ["uniform", {**GCPO, "negative_prompt": "wrong! {prompt}"}], ids=["uniform", "gcpo"])
def test_each_optimizer_step_has_whole_groups(credit, tiny_model, tmp_path):
    """Over two iterations, and with rows regrouped by length, which `gcpo` does by default."""
    steps, _ = run(tiny_model, tmp_path, credit=credit, keep_groups_together=True, num_iterations=2, max_steps=8)
    assert len(steps) == 8
    orders = set()
    for number, rows in enumerate(steps):
        groups = [group for group, _, _ in rows]
        assert sorted(groups.count(group) for group in set(groups)) == [4, 4]
        assert sum(advantage for _, advantage, _ in rows) == pytest.approx(0.0, abs=1e-4)
        if number % 4 == 0:  # a generation batch, and its second iteration
            assert sorted(groups + [group for group, _, _ in steps[number + 1]]) == sorted([0, 1, 2, 3] * 4)
            assert [set(steps[number + i]) for i in (2, 3)] == [set(steps[number + i]) for i in (0, 1)]
            orders.add(frozenset(groups))
    assert orders != {frozenset({0, 1})}  # shuffled


def test_the_gradient_of_the_generation_batch_is_the_same(tiny_model, tmp_path):
    settings = {"learning_rate": 1e-12, "max_steps": 2}
    apart, expected = run(tiny_model, tmp_path, **settings)
    together, gradients = run(tiny_model, tmp_path, keep_groups_together=True, **settings)
    completions = [[sorted(row[2] for row in rows) for rows in steps] for steps in (apart, together)]
    assert completions[0] != completions[1]
    assert sorted(itertools.chain(*completions[0])) == sorted(itertools.chain(*completions[1]))
    assert (gradients[0] - expected[0]).norm() > 0.01 * expected[0].norm()
    assert (sum(gradients) - sum(expected)).norm() < 1e-5 * sum(expected).norm()


def test_resumed_exactly(tiny_model, tmp_path):
    settings = {"keep_groups_together": True, "credit": GCPO, "max_steps": 6}
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    for stop in (1, 3):
        resumed = make(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(resumed), outcome(whole), f"stopped after {stop}")


@pytest.mark.parametrize("before", [True, False])
def test_a_batch_dealt_otherwise_is_not_continued(before, tiny_model, tmp_path, caplog):
    make(tiny_model, tmp_path, keep_groups_together=before, max_steps=1).train()
    changed = make(tiny_model, tmp_path, keep_groups_together=not before, max_steps=2)
    changed.train(resume_from_checkpoint=True)
    assert "`keep_groups_together` changed since the checkpoint was saved" in caplog.text


def test_images_go_with_their_rows(tmp_path):
    model, processor = qwen_vision.tiny_model()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=letter_reward,
        args=config(
            tmp_path, keep_groups_together=True, max_steps=2, per_device_train_batch_size=4, steps_per_generation=2
        ),
        train_dataset=qwen_vision.make_dataset(),
    )
    trainer.train()
    for batch in trainer._buffered_inputs:
        assert len(set(batch[GROUPS].tolist())) == 1
        assert len(set(batch["num_images"])) == 1
        patches = batch["image_grid_thw"].prod(-1)
        assert len(batch["pixel_values"]) == patches.sum()
        tokens = (batch["prompt_ids"] == model.config.image_token_id).sum(-1)
        assert tokens.tolist() == (patches // 4).view(4, -1).sum(-1).tolist()
