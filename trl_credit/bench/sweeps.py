"""Parameter sweeps, and policies that drifted from the embedded model."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..methods import DGPO, GCPO, CreditMethod
from ..methods.registry import build_credit
from ..methods.shuffled import Shuffled


# Values by method and parameter. Combinations that a method rejects are skipped
SWEEPS: dict[type[CreditMethod], dict[str, tuple]] = {
    GCPO: {
        "top_fraction": (0.05, 0.1, 0.2, 0.4, 0.6),
        "top_mass": (0.5, 0.6, 0.8, 0.9, 0.99),  # at the default `top_fraction`, 0.4, it is uniform
        "divergence": ("sampled", "full"),
    },
    DGPO: {
        "temperature": (0.5, 0.1, 0.02, 0.004, 0.001, "adaptive"),
        "entropy_exponent": (0.0, 0.5, 1.0, 2.0),
    },
}


def sweep_methods(methods: Mapping[str, CreditMethod]) -> dict[tuple[str, str, Any], CreditMethod]:
    """Methods by (label, parameter, value), with each listed value of one parameter and the others unchanged.

    If several methods are of the same class, only the first is swept.
    """
    found: dict[tuple[str, str, Any], CreditMethod] = {}
    for kind, parameters in SWEEPS.items():
        label = next((label for label, method in methods.items() if type(method) is kind), None)
        if label is None:
            continue
        for parameter, values in parameters.items():
            # A numeric temperature does not aim at an effective fraction, so unset it
            others = {"effective_fraction": None} if parameter == "temperature" else {}
            for value in values:
                try:
                    found[label, parameter, value] = dataclasses.replace(methods[label], **{parameter: value}, **others)
                except ValueError:
                    continue
    return found


def with_reference(method: CreditMethod, reference: str | None) -> CreditMethod:
    """Sets the method's `reference`, if it takes one and names none; of a shuffled method, too."""
    if isinstance(method, Shuffled):
        return dataclasses.replace(method, of=with_reference(build_credit(method.of), reference).to_dict())
    if reference is not None and getattr(method, "reference", "") is None:
        return dataclasses.replace(method, reference=reference)
    return method


def with_model(method: CreditMethod, later: str, model: str) -> CreditMethod:
    """Replaces what stood for another model, if the method has it."""
    return dataclasses.replace(method, model=model) if getattr(method, "model", None) == later else method


def drifted_policies(
    model: str, updates: Sequence[int], output_dir: Path, seed: int, num_completions: int = 64
) -> dict:
    """Trains the embedded model with uniform GRPO, as in the quickstart, and keeps it after each number of updates.

    Args:
        model: Folder of the model.
        updates: Ascending numbers of updates. 0 is the model itself.
        output_dir: Folder of the policies. Existing ones are reused if made from the same model with the same settings.
        seed: Seed of data and training.
        num_completions: Completions per update.

    Returns:
        By number of updates: `path`, and `reward`, the mean reward of the last ten updates (`None` at 0).
    """
    weights = sorted(Path(model).glob("*.safetensors"))
    settings = {
        "model": [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights],
        "updates": list(updates),
        "seed": seed,
        "num_completions": num_completions,
    }
    record = output_dir / "drift.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("settings") != settings:
        rewards = _train(model, updates, output_dir, seed, num_completions) if max(updates) else []
        known = {"settings": settings, "rewards": rewards}
        output_dir.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(known))
    rewards = known["rewards"]
    return {
        step: {
            "path": str(output_dir / f"after-{step}") if step else model,
            "reward": sum(rewards[max(0, step - 10) : step]) / min(step, 10) if step else None,
        }
        for step in updates
    }


def _train(model: str, updates: Sequence[int], output_dir: Path, seed: int, num_completions: int) -> list[float]:
    from transformers import PrinterCallback, TrainerCallback

    from ..toy.arithmetic import correct_answer, make_dataset
    from ..trainer.config import CreditGRPOConfig
    from ..trainer.grpo import CreditGRPOTrainer

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
            if state.global_step in updates:
                folder = output_dir / f"after-{state.global_step}"
                model.save_pretrained(folder)
                processing_class.save_pretrained(folder)

    logging.getLogger("trl").setLevel(logging.ERROR)
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=correct_answer,
        args=CreditGRPOConfig(
            output_dir=str(output_dir / "training"),
            credit="uniform",
            max_steps=max(updates),
            learning_rate=5e-5,
            lr_scheduler_type="constant",
            per_device_train_batch_size=num_completions,
            num_generations=8,
            max_completion_length=40,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=make_dataset(max(updates) * num_completions // 8, seed=seed),
        callbacks=[Keep()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
