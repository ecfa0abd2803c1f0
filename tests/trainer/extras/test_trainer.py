"""The extras without credit."""

import pytest
import torch
from helpers import letter_reward, prompts
from trl import GRPOConfig, GRPOTrainer

from trl_credit.extras import GRPOExtrasConfig, GRPOExtrasTrainer


SETTINGS = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def run(cls, kind, model, path, resume=None, **settings):
    args = kind(output_dir=str(path), **SETTINGS | settings)
    trainer = cls(model=model, reward_funcs=letter_reward, args=args, train_dataset=prompts(16))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def parameters(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_equal(ours, theirs):
    assert all(torch.equal(ours[name], parameter) for name, parameter in theirs.items())


@pytest.mark.parametrize("kind", [GRPOConfig, GRPOExtrasConfig])
def test_trl_bit_for_bit(kind, tiny_model, tmp_path):
    ours = run(GRPOExtrasTrainer, kind, tiny_model, tmp_path / "ours")
    theirs = run(GRPOTrainer, GRPOConfig, tiny_model, tmp_path / "theirs")
    assert_equal(parameters(ours), parameters(theirs))


def test_exact_resume_with_dynamic_sampling(tiny_model, tmp_path):
    settings = {"dynamic_sampling": True, "steps_per_generation": 2, "num_iterations": 2}
    whole = run(GRPOExtrasTrainer, GRPOExtrasConfig, tiny_model, tmp_path, **settings)
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed = run(GRPOExtrasTrainer, GRPOExtrasConfig, tiny_model, tmp_path, resume=checkpoint, **settings)
    assert_equal(parameters(resumed), parameters(whole))
    assert any("dynamic_sampling/rounds" in row for row in whole.state.log_history)


def test_a_reward_that_fails_names_the_completion(tiny_model, tmp_path):
    def failing(completions, **kwargs):
        raise RuntimeError("broken")

    args = GRPOExtrasConfig(output_dir=str(tmp_path), **SETTINGS)
    trainer = GRPOExtrasTrainer(model=tiny_model, reward_funcs=failing, args=args, train_dataset=prompts(16))
    with pytest.raises(RuntimeError, match="failing"):
        trainer.train()


def test_without_a_configuration(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"training data has 1 row|bf16|BF16"):
        GRPOExtrasTrainer(model=tiny_model, reward_funcs=letter_reward, train_dataset=prompts(1)).train()
