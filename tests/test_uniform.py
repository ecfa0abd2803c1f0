"""`uniform` is TRL's GRPOTrainer to the last bit."""

import pytest
import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer


TIMES = ("step_time", "runtime", "per_second", "total_flos")


def record_gradients(trainer):
    """Keeps every gradient that an optimizer step sees."""
    gradients = []

    def keep(optimizer, args, kwargs):
        gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    return gradients


def run(trainer_class, config_class, model, output_dir, peft=False, **settings):
    trainer = trainer_class(
        model=model,
        reward_funcs=letter_reward,
        args=config(output_dir, kind=config_class, **settings),
        train_dataset=prompts(),
        eval_dataset=prompts(4, seed=1) if settings.get("eval_strategy") else None,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0) if peft else None,
    )
    gradients = record_gradients(trainer)
    trainer.train()
    logs = [
        {key: value for key, value in entry.items() if "credit/" not in key and not any(t in key for t in TIMES)}
        for entry in trainer.state.log_history
    ]
    return logs, gradients, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(ours, theirs):
    (our_logs, our_gradients, our_parameters), (their_logs, their_gradients, their_parameters) = ours, theirs
    assert our_logs == their_logs
    assert len(our_gradients) == len(their_gradients) > 0
    for step, (a, b) in enumerate(zip(our_gradients, their_gradients, strict=True)):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), f"gradients of step {step}"
    assert any(g.abs().max() > 0 for step in their_gradients for g in step)
    for name, parameter in their_parameters.items():
        assert torch.equal(our_parameters[name], parameter), name


CASES = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "mask_truncated_completions": True,
        "max_completion_length": 60,
        "temperature": 3.0,
    },
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "kl": {"loss_type": "grpo", "beta": 0.1},
    "lora": {"loss_type": "dapo", "peft": True},
    "lora_kl": {"loss_type": "grpo", "beta": 0.1, "peft": True},
    "entropy": {"loss_type": "dapo", "entropy_coef": 0.01, "top_entropy_quantile": 0.5},
    "eval": {"loss_type": "grpo", "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_bit_for_bit(case, tiny_model, tmp_path):
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "max_steps": 3,
        **CASES[case],
    }
    theirs = run(GRPOTrainer, GRPOConfig, tiny_model, tmp_path / "trl", **settings)
    ours = run(CreditGRPOTrainer, CreditGRPOConfig, tiny_model, tmp_path / "ours", **settings)
    assert_same(ours, theirs)


def test_plain_grpo_config_means_uniform(tiny_model, tmp_path):
    theirs = run(GRPOTrainer, GRPOConfig, tiny_model, tmp_path / "trl")
    ours = run(CreditGRPOTrainer, GRPOConfig, tiny_model, tmp_path / "ours")
    assert_same(ours, theirs)


def test_no_extra_forward_and_no_reference(tiny_model, tmp_path):
    counts = []
    for cls, kind in ((GRPOTrainer, GRPOConfig), (CreditGRPOTrainer, CreditGRPOConfig)):
        trainer = cls(
            model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, kind=kind), train_dataset=prompts()
        )
        assert trainer.ref_model is None
        calls = []
        trainer.model.base_model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        counts.append(len(calls))
    assert counts[0] == counts[1]
