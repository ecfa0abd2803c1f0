"""Five updates of a method on a tiny model, as text, to compare with those recorded earlier.

After a change that is meant to move them, rewrite them with `python tests/support/trajectory.py [METHOD ...]`. The
diff then shows by how much.
"""

import json
import sys
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import qwen_vision
from helpers import (
    TESTS,
    config,
    fixed_rollout,
    fixed_turn,
    letter_reward,
    prompts,
    save_tiny_model,
    vision_rollout,
)
from support.batching import CREDIT

from trl_credit import METHODS, CreditGRPOTrainer
from trl_credit.methods.registry import methods_for


FOLDER = TESTS / "data" / "trajectories"
UPDATES = 5
LOGGED = ("loss", "grad_norm", "credit/weight_std", "credit/weight_max", "credit/effective_fraction")
# Of methods without weights
LOGGED_ADVANTAGES = ("loss", "grad_norm", "credit/advantage_change")


def two_turns(prompts_, trainer) -> dict:
    """`fixed_rollout` with two tokens of an environment after the first token."""
    rollout = fixed_rollout(prompts_, trainer)
    ids = rollout["completion_ids"]
    rollout["completion_ids"] = [[row[0], 20 + row[0] % 2, 22, *row[1:]] for row in ids]
    rollout["env_mask"] = [[1, 0, 0] + [1] * (len(row) - 1) for row in ids]
    return rollout


def turn_reward(completion_ids, **kwargs) -> list[list[float]]:
    """A reward for each of two turns."""
    return [[float(row[0] % 3), float(sum(row) % 5)] for row in completion_ids]


def run(name: str, model: str, output_dir: str) -> dict:
    """Trains `UPDATES` updates on completions that the policy does not change; returns logs, credit and parameters.

    The weights are of the first completion that has an advantage in each update; of a method without weights, the token
    advantages of the first completion where they differ. SGD, because Adam's first steps turn
    rounding noise in gradients near zero into full steps.
    """
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_steps": UPDATES, "num_iterations": 2, "seed": 0}
    if name not in methods_for("tokens"):
        return _run_on_images(name, output_dir, settings)
    if name == "vppo":
        return _run_with_images(name, output_dir, settings)
    turns = name in ("turn", "gigpo")
    credit = {"method": name, "every": 3} if name == "vine" else CREDIT.get(name, name)
    if name == "teacher":
        credit = {"method": name, "model": save_tiny_model(f"{output_dir}/teacher", seed=1)}
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=turn_reward if turns else letter_reward,
        rollout_func=two_turns if turns else None if name == "vine" else fixed_rollout,
        args=config(output_dir, credit=credit, logging_steps=1, **settings),
        train_dataset=prompts(),
    )
    if name == "vine":
        trainer._generate_single_turn = fixed_turn(trainer)
    return _record(name, trainer)


def _run_with_images(name: str, output_dir: str, settings: dict) -> dict:
    """As `run`, on a tiny vision-language model."""
    model, processor = qwen_vision.tiny_model()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=letter_reward,
        rollout_func=vision_rollout,
        args=config(output_dir, credit=name, logging_steps=1, **settings),
        train_dataset=qwen_vision.make_dataset(),
    )
    return _record(name, trainer)


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
    return _record(name, trainer)


def _record(name: str, trainer: CreditGRPOTrainer) -> dict:
    credit = []
    weighted = trainer.credit_method.reweights or name in ("uniform", "pcpo")
    kind, logged = ("weights", LOGGED) if weighted else ("advantages", LOGGED_ADVANTAGES)

    def record(batch, result):
        mask = result.inputs.mask.bool()
        values = result.weights if weighted else result.row_advantages
        rows = [[float(f"{value:.6g}") for value in row[on].tolist()] for row, on in zip(values, mask, strict=True)]
        uneven = (row for row in rows if not weighted and row and max(row) > min(row))
        credit.append(next(uneven, rows[0]))

    trainer.credit_observers.append(record)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "updates": [
            {key: float(f"{entry[key]:.6g}") for key in logged if entry.get(key) is not None} | {kind: row}
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
