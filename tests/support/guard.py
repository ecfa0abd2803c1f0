"""Trainers with rewards that fail."""

from helpers import config, fixed_rollout, prompts

from trl_credit import CreditGRPOTrainer


def length_reward(completions, **kwargs):
    return [float(len(text)) for text in completions]


# In training


def make(model, path, reward, **overrides):
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **overrides),
        train_dataset=prompts(),
        rollout_func=fixed_rollout,
    )
