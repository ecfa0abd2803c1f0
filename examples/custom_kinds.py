"""Two custom credit methods that do more than weight tokens: a term of the advantage, and advantages of their own.

python examples/custom_kinds.py
trl-credit methods examples.custom_kinds.EntropyBonus        # from the repository's root
"""

from dataclasses import dataclass

import torch

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer, CreditInputs, CreditMethod, Paper, Rollout


@dataclass(frozen=True)
class EntropyBonus(CreditMethod):
    """Adds the policy's entropy to the advantage, so that it keeps its options open.

    Args:
        coefficient: Weight of the entropy, in units of the advantage per nat.
    """

    coefficient: float = 0.05

    name = "entropy_bonus"
    paper = Paper(title="An example", id="none", citation="")
    reweights = False

    def term(self, inputs: CreditInputs) -> torch.Tensor:
        usable = inputs.mask & ~inputs.nonfinite.any(-1, keepdim=True)
        return torch.where(usable, self.coefficient * inputs.policy_entropy, 0.0)


@dataclass(frozen=True)
class PlaceBaseline(CreditMethod):
    """The reward minus the mean reward of the group's completions that reach the token's place."""

    name = "place_baseline"
    paper = Paper(title="An example", id="none", citation="")
    reweights = False
    own_advantages = True

    def rollout_stage(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        rewards, groups, mask = map(rollout.all, (rollout.rewards, rollout.groups, rollout.mask))
        known = (mask & ~rewards.isnan().unsqueeze(1)).float()
        group = (groups.unsqueeze(1) == groups).float()
        baselines = group @ (known * rewards.nan_to_num().unsqueeze(1)) / (group @ known).clamp(min=1)
        return {"advantages": rollout.own(known * (rewards.unsqueeze(1) - baselines).nan_to_num())}

    def token_advantages(self, advantages, weights, inputs: CreditInputs) -> torch.Tensor:
        return inputs.rollout["advantages"]


if __name__ == "__main__":
    from trl_credit.model_files import embedded_model_path
    from trl_credit.toy.arithmetic import correct_answer, make_dataset

    torch.set_num_threads(1)  # fastest for such a small model
    trainer = CreditGRPOTrainer(
        model=embedded_model_path(),
        reward_funcs=correct_answer,
        args=CreditGRPOConfig(
            output_dir="outputs/custom_kinds",
            credit=[PlaceBaseline(), EntropyBonus(coefficient=0.02)],
            per_device_train_batch_size=64,
            max_completion_length=40,
            learning_rate=5e-5,
            max_steps=20,
            logging_steps=5,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=make_dataset(1000),
    )
    trainer.train()
