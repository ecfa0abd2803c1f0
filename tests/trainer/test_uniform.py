"""`uniform` equals TRL's GRPOTrainer, bit for bit."""

import pytest
from helpers import config, letter_reward, prompts
from support.runs import assert_same, run
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer


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
