"""A custom credit method in twenty lines: the less likely a sampled token was, the more credit it gets.

python examples/custom_method.py
trl-credit methods examples.custom_method.Surprisal          # from the repository's root
trl-credit train --config recipes/quickstart.yaml --credit examples.custom_method.Surprisal
"""

from dataclasses import dataclass

import torch

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer, CreditInputs, CreditMethod, Paper, mean_one


@dataclass(frozen=True)
class Surprisal(CreditMethod):
    """Credit by surprisal, -log p of the sampled token.

    Args:
        power: Exponent of the surprisal. 0 is uniform.
    """

    power: float = 1.0

    name = "surprisal"
    paper = Paper(title="An example", id="none", citation="")

    def validate(self) -> None:
        self.require(self.power >= 0, "power", "non-negative")

    def weights(self, inputs: CreditInputs) -> torch.Tensor:
        return mean_one((-inputs.policy_logps).clamp(min=1e-6).pow(self.power), inputs.mask)


if __name__ == "__main__":
    from trl_credit.model_files import embedded_model_path
    from trl_credit.toy.arithmetic import correct_answer, make_dataset

    torch.set_num_threads(1)  # fastest for such a small model
    trainer = CreditGRPOTrainer(
        model=embedded_model_path(),
        reward_funcs=correct_answer,
        args=CreditGRPOConfig(
            output_dir="outputs/custom_method",
            credit=Surprisal(power=0.5),
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
