"""Trains with TRL's trainer and with ours, and compares logs, gradients and parameters."""

import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig


TIMES = ("step_time", "runtime", "per_second", "_seconds", "total_flos")


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
