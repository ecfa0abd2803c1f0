"""Five updates of a method on a tiny model, as text, to compare with those recorded earlier.

After a change that is meant to move them, rewrite them with `python tests/support/trajectory.py [METHOD ...]`. The
diff then shows by how much.
"""

import json
import sys
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import TESTS, config, fixed_rollout, letter_reward, prompts, save_tiny_model
from support.batching import CREDIT

from trl_credit import METHODS, CreditGRPOTrainer
from trl_credit.methods.registry import methods_for


FOLDER = TESTS / "data" / "trajectories"
UPDATES = 5
LOGGED = ("loss", "grad_norm", "credit/weight_std", "credit/weight_max", "credit/effective_fraction")
# Of methods without weights
LOGGED_ADVANTAGES = ("loss", "grad_norm", "credit/advantage_change")


def run(name: str, model: str, output_dir: str) -> dict:
    """Trains `UPDATES` updates on completions that the policy does not change; returns logs, credit and parameters.

    The weights, or the token advantages of a method without, are of the first completion that has an advantage in each
    update. SGD, because Adam's first steps turn
    rounding noise in gradients near zero into full steps.
    """
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_steps": UPDATES, "num_iterations": 2, "seed": 0}
    if name not in methods_for("tokens"):
        return _run_on_images(name, output_dir, settings)
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=letter_reward,
        rollout_func=fixed_rollout,
        args=config(output_dir, credit=CREDIT[name], logging_steps=1, **settings),
        train_dataset=prompts(),
    )
    return _record(trainer)


def _run_on_images(name: str, output_dir: str, settings: dict) -> dict:
    """As `run`, on the embedded image model and on trajectories from a seed."""
    from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer
    from trl_credit.toy.digits import digit_probability, make_dataset

    trainer = DiffusionGRPOTrainer(
        model="trl_credit:digits",
        reward_funcs=digit_probability,
        args=config(
            output_dir, kind=DiffusionGRPOConfig, max_completion_length=None, credit=name, loss_type="grpo", **settings
        ),
        train_dataset=make_dataset(40, seed=0),
    )
    return _record(trainer)


def _record(trainer: CreditGRPOTrainer) -> dict:
    credit = []
    weighted = trainer.credit_method.reweights or trainer.credit_method.name in ("uniform", "pcpo")
    name, logged = ("weights", LOGGED) if weighted else ("advantages", LOGGED_ADVANTAGES)

    def record(batch, result):
        mask = result.inputs.mask[0].bool()
        values = (result.weights if weighted else result.row_advantages)[0]
        credit.append([float(f"{value:.6g}") for value in values[mask].tolist()])

    trainer.credit_observers.append(record)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "updates": [
            {key: float(f"{entry[key]:.6g}") for key in logged if entry.get(key) is not None} | {name: row}
            for entry, row in zip(logs, credit, strict=True)
        ],
        "parameters": {
            name: float(f"{parameter.double().norm().item():.8g}")
            for name, parameter in trainer.model.named_parameters()
        },
    }


def write(name: str, found: dict) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import os
    import tempfile

    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(f"{folder}/tiny")
        for method in sys.argv[1:] or METHODS:
            write(method, run(method, model, f"{folder}/out"))
