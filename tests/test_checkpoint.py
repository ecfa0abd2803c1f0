"""A run that was stopped and resumed is the run that was not."""

import pytest
import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from test_uniform import TIMES

from trl_credit import CreditGRPOTrainer


GCPO = {"method": "gcpo", "negative_prompt": "!{prompt}"}
DGPO = {"method": "dgpo", "temperature": 0.01}


def parity_reward(completion_ids, **kwargs) -> list[float]:
    """0 or 1, so that some groups agree; by the tokens, so that a policy can learn it."""
    return [float(sum(ids) % 5 < 2) for ids in completion_ids]


def make(model, path, reward=letter_reward, peft=False, iterable=False, size=6, rollout_func=None, **overrides):
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
        rollout_func=rollout_func,
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


# Four updates to a generation batch and twelve to a pass
CASES = {
    "uniform": {},
    "gcpo": {"credit": GCPO},
    "dgpo": {"credit": DGPO},
    "lora": {"credit": DGPO, "peft": True, "beta": 0.05},
    "accumulation": {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "save_steps": 2, "credit": GCPO},
    "misaligned": {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "num_iterations": 1, "size": 12},
    "iterable": {"iterable": True, "max_steps": 27},
    "synced_reference": {
        "credit": DGPO, "sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.6,
    },
    "adaptive_entropy": {"use_adaptive_entropy": True, "entropy_target": 1.0, "entropy_coef_delta": 0.01},
    "dynamic_sampling": {"dynamic_sampling": True, "credit": GCPO, "reward": parity_reward, "size": 9},
    "dynamic_iterable": {
        "dynamic_sampling": True, "iterable": True, "reward": parity_reward, "size": 9, "max_steps": 27,
    },
    "sparse_logs": {"logging_steps": 3, "credit": GCPO},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_any_update(case, tiny_model, tmp_path):
    settings = CASES[case]
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    expected = outcome(whole)
    last = whole.args.max_steps
    assert any(parameter.abs().sum() > 0 for parameter in expected[1].values())
    every = settings.get("save_steps", 1)
    stops = (
        range(every, last, every)
        if case in ("uniform", "dynamic_sampling")
        else [2, 4, last // 2 // 2 * 2 + every, last - every]
    )
    for stop in stops:
        resumed = make(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)  # not the state of the run that was stopped
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(resumed), expected, f"{case}, stopped after {stop}")
