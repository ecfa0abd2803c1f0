"""Trains and reads back the credit log."""

from helpers import config, fixed_rollout, place_reward, prompts

from trl_credit import CreditGRPOTrainer


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def train(model, path, reward=place_reward, **settings):
    settings = {"credit": GCPO, "num_completions_to_print": 0} | settings
    rollout = settings.pop("rollout", fixed_rollout)
    trainer = CreditGRPOTrainer(
        model=model, reward_funcs=reward, rollout_func=rollout, args=config(path, **settings), train_dataset=prompts()
    )
    trainer.train()
    return trainer
