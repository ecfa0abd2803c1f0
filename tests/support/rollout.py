"""Trainers with dynamic sampling, and TRL's prompt order."""

from helpers import config
from trl.trainer.utils import RepeatSampler

from trl_credit import CreditGRPOTrainer


# Which prompts


def trl_order(size, batch_size, shuffle, seed, passes):
    sampler = RepeatSampler(range(size), mini_repeat_count=1, batch_size=batch_size, shuffle=shuffle, seed=seed)
    return [index for _ in range(passes) for index in sampler]


# Which completions


def make(model, path, data, reward, rollout_func=None, **overrides):
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        rollout_func=rollout_func,
        args=config(path, **{"dynamic_sampling": True, **overrides}),
        train_dataset=data,
    )


class Place:
    """An environment that knows which row it was reset with."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, answer, **kwargs) -> str:
        self.answer = answer
        return f"at {answer}"

    def add(self, number: int) -> int:
        """Adds one.

        Args:
            number: The number.

        Returns:
            The number plus one.
        """
        return number + 1
