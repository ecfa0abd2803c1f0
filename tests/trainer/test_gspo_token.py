"""GSPO-token: the sequence's ratio with each token's gradient."""

import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, prompts
from trl import GRPOTrainer

from trl_credit import CreditGRPOTrainer


# In an update


def gradients(tiny_model, path, level, *, credit="uniform", weights=None, **overrides):
    """(gradients, batches, logs) of the updates of a run with SGD, whose later ones are off-policy."""
    settings = {"num_iterations": 3, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        rollout_func=fixed_rollout,
        args=config(path, credit=credit, importance_sampling_level=level, **settings | overrides),
        train_dataset=prompts(),
    )
    batches, found = [], []

    def record(batch_, result):
        if weights is not None:
            batch_["advantages"] = (
                batch_["advantages"].view(len(weights), -1) * weights[:, : batch_["completion_ids"].size(1)]
            )
        batches.append(dict(batch_))

    trainer.credit_observers.append(record)
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: found.append(torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters()]))
    )
    trainer.train()
    return found, batches, trainer


LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_with_uniform_weights_the_gradient_is_gspos(loss_type, tiny_model, tmp_path):
    settings = {"loss_type": loss_type, "epsilon": 0.01, "learning_rate": 0.3}
    ours, _, trainer = gradients(tiny_model, tmp_path / "a", "sequence_token", **settings)
    theirs, _, other = gradients(tiny_model, tmp_path / "b", "sequence", **settings)
    tokens, _, _ = gradients(tiny_model, tmp_path / "c", "token", **settings)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        assert (ours_ - theirs_).norm() <= 2e-5 * theirs_.norm()
    assert any((a - b).norm() > 1e-2 * b.norm() for a, b in zip(ours[1:], tokens[1:], strict=True))
    if loss_type not in ("sapo",):  # some completions are clipped
        log, theirs_log = trainer.state.log_history[2], other.state.log_history[2]
        assert log["clip_ratio/region_mean"] > 0
        assert log["clip_ratio/high_max"] == theirs_log["clip_ratio/high_max"]  # of a completion: all its tokens


def naive(trainer, batch_, loss_type, weights, epsilon):
    """The gradient of GSPO-token's objective, token by token from the model."""
    model, total = trainer.model, 0.0
    args = trainer.args
    prompt_mask, mask = batch_["prompt_mask"].bool(), batch_["completion_mask"].bool()
    for row in range(len(mask)):
        prompt = batch_["prompt_ids"][row][prompt_mask[row]]
        completion = batch_["completion_ids"][row][mask[row]]
        logits = type(model).forward(model, input_ids=torch.cat([prompt, completion])[None]).logits[0]
        logps = torch.log_softmax(logits[len(prompt) - 1 : -1] / args.temperature, -1)
        logps = logps[range(len(completion)), completion]
        old = batch_["true_old"][row][mask[row]]
        s = torch.exp((logps - old).mean()).detach()
        advantage = batch_["scalar"][row]
        loss = 0.0
        for t in range(len(completion)):
            ratio = s * logps[t].exp() / logps[t].exp().detach()
            a = advantage * weights[row, t]
            loss = loss - torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        total = total + (loss / len(completion) / len(mask) if loss_type == "grpo" else loss / mask.sum())
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_with_unequal_weights_it_is_the_naive_gradient(loss_type, tiny_model, tmp_path):
    weights = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) * 2
    settings = {"loss_type": loss_type, "epsilon": 0.1, "learning_rate": 0.1, "weights": weights}
    expected = []

    # The naive gradient is taken where the update's is: before the optimizer's step
    original = CreditGRPOTrainer._compute_loss

    def both(self, model, inputs):
        batch_ = {**inputs, "true_old": inputs["old_per_token_logps"], "scalar": inputs["advantages"]}
        expected.append(naive(self, batch_, loss_type, weights, 0.1))
        return original(self, model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CreditGRPOTrainer, "_compute_loss", both)
        ours, _, trainer = gradients(tiny_model, tmp_path / "a", "sequence_token", **settings)
    assert trainer.state.log_history[2]["clip_ratio/region_mean"] > 0
    for step, (gradient, naive_gradient) in enumerate(zip(ours, expected, strict=True)):
        assert naive_gradient.norm() > 1e-2
        assert (gradient - naive_gradient).norm() <= 2e-4 * naive_gradient.norm(), step
    for level in ("token", "sequence"):
        others, _, _ = gradients(tiny_model, tmp_path / level, level, **settings)
        assert (others[1] - ours[1]).norm() > 1e-2 * ours[1].norm(), level


def test_token_credit_matters(tiny_model, tmp_path):
    """It is what 'sequence' is refused for."""
    credit = {"method": "gcpo", "negative_prompt": "!{prompt}"}
    ours, batches, _ = gradients(tiny_model, tmp_path / "a", "sequence_token", credit=credit)
    uniform, _, _ = gradients(tiny_model, tmp_path / "b", "sequence_token")
    assert batches[0]["advantages"].dim() == 2
    assert (ours[1] - uniform[1]).norm() > 0.05 * uniform[1].norm()


def test_the_buffer_keeps_the_true_old_logps(tiny_model, tmp_path):
    _, _, trainer = gradients(tiny_model, tmp_path, "sequence_token", num_iterations=2, max_steps=2)
    _, _, other = gradients(tiny_model, tmp_path, "token", num_iterations=2, max_steps=2)
    for ours, theirs in zip(trainer._buffered_inputs, other._buffered_inputs, strict=True):
        assert torch.equal(ours["old_per_token_logps"], theirs["old_per_token_logps"])


def test_off_policy_masking_measures_the_true_drift(tiny_model, tmp_path):
    """It keeps what 'token' keeps: the mask is TRL's, of the log-probs of what generated."""
    kept = {}
    for level in ("token", "sequence_token"):
        masks = []
        original = GRPOTrainer.get_off_policy_mask

        def record(*args, masks=masks, original=original, **kwargs):
            masks.append(original(*args, **kwargs))
            return masks[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(record))
            gradients(
                tiny_model, tmp_path / level, level, off_policy_mask_threshold=1e-3, max_steps=2, learning_rate=0.3
            )
        kept[level] = masks
    for ours, theirs in zip(kept["sequence_token"], kept["token"], strict=True):
        assert torch.equal(ours, theirs)
    assert 0 < kept["token"][1].sum() < kept["token"][1].numel()


@pytest.mark.parametrize("overrides", [{"beta": 0.1, "use_bias_correction_kl": False}, {"delta": 1.05}])
def test_trls_other_options(overrides, tiny_model, tmp_path):
    """With uniform weights: what they do with a sequence-level ratio, they do with its tokens."""
    settings = {"loss_type": "grpo", **overrides}
    ours, _, _ = gradients(tiny_model, tmp_path / "a", "sequence_token", **settings)
    theirs, _, _ = gradients(tiny_model, tmp_path / "b", "sequence", **settings)
    plain, _, _ = gradients(tiny_model, tmp_path / "c", "sequence_token", loss_type="grpo")
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm()
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(ours, plain, strict=True))


def test_a_run_in_which_it_does_nothing_says_so(tiny_model, tmp_path, caplog):
    gradients(tiny_model, tmp_path, "sequence_token", num_iterations=1, max_steps=1)
    assert "`importance_sampling_level='sequence_token'` has no effect here" in caplog.text
    caplog.clear()
    gradients(tiny_model, tmp_path, "sequence_token", max_steps=1)
    assert "has no effect here" not in caplog.text
