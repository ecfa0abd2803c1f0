"""Stopped and resumed runs, and the values that must match."""

from pathlib import Path

import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from safetensors.torch import save_file
from support.runs import TIMES

from trl_credit import CreditGRPOTrainer


GCPO = {"method": "gcpo", "negative_prompt": "!{prompt}"}


def make(model, path, reward=letter_reward, peft=False, iterable=False, size=6, evaluate=False, **overrides):
    data = prompts(size)
    settings = {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 14,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
    }
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **settings | overrides),
        train_dataset=data.to_iterable_dataset() if iterable else data,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if peft else None,
        eval_dataset=prompts(2, seed=1) if evaluate else None,
    )


def outcome(trainer):
    logs = [
        {key: value for key, value in entry.items() if not any(time in key for time in TIMES)}
        for entry in trainer.state.log_history
        if "train_loss" not in entry
    ]
    return logs, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same_run(resumed, whole, context=""):
    for ours, theirs in zip(resumed[0], whole[0], strict=True):
        assert ours == theirs, (context, ours["step"], {k for k in theirs if ours.get(k) != theirs[k]})
    for name, parameter in whole[1].items():
        assert torch.equal(resumed[1][name], parameter), (context, name)


# Whole or not there


def checkpoint(path, step, *, state="{}"):
    folder = Path(path) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder
