"""The quickstart: trains the embedded model with uniform, GCPO and DGPO credit from the same start and seed, and compares.

    trl-credit quickstart [--output_dir outputs/quickstart] [--max_steps 80] [--methods uniform gcpo dgpo] [--seed 0]
    trl-credit quickstart --images

Writes the trained models, `results.json` and `reward_curves.png`. Needs no network. With `--images`, see
[`trl_credit.quickstart_images`].
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ._util.quiet import quiet_libraries
from ._util.text import prepare_terminal, safe, safe_lines, safe_text


__path__: list[str] = []  # lets `_util/moved.py` find release 0.1's submodules

NUM_COMPLETIONS = 64  # per update: 8 problems of 8 completions
EVAL_PROBLEMS = 512


def train(credit: dict[str, Any], output_dir: Path, max_steps: int, seed: int) -> dict[str, Any]:
    """Trains and evaluates one method; returns the values for the table and the picture."""
    from transformers import PrinterCallback, TrainerCallback

    from .model_files import embedded_model_path
    from .toy.arithmetic import correct_answer, make_dataset
    from .trainer import CreditGRPOConfig, CreditGRPOTrainer

    name = credit["method"]

    class Progress(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "reward" in logs and (state.global_step % 10 == 0 or state.global_step == 1):
                fraction = logs["credit/effective_fraction"]  # None if every group was all right or all wrong
                print(
                    f"  {safe(name):8} update {state.global_step:3d}/{state.max_steps}   reward {logs['reward']:.2f}   "
                    + ("no completion with an advantage" if fraction is None else f"effective fraction {fraction:.3f}"),
                    flush=True,
                )

    train_dataset = make_dataset(max_steps * NUM_COMPLETIONS // 8, seed=seed)
    trainer = CreditGRPOTrainer(
        model=embedded_model_path(),
        reward_funcs=correct_answer,
        args=CreditGRPOConfig(
            output_dir=str(output_dir),
            credit=credit,
            max_steps=max_steps,
            learning_rate=5e-5,
            lr_scheduler_type="constant",
            per_device_train_batch_size=NUM_COMPLETIONS,
            num_generations=8,
            max_completion_length=40,
            per_device_eval_batch_size=EVAL_PROBLEMS,
            num_generations_eval=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=train_dataset,
        eval_dataset=make_dataset(EVAL_PROBLEMS, seed=seed + 1, exclude=train_dataset),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()["eval_reward"]
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    after = trainer.evaluate()["eval_reward"]
    trainer.save_model()
    trainer.create_model_card(model_name=f"quickstart-{name}")
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    last = history[-max(1, len(history) // 4) :]

    def mean(key: str, entries: list[dict]) -> float:
        """Mean over the updates that had tokens to weight."""
        values = [entry[key] for entry in entries if entry[key] is not None]
        return sum(values) / len(values) if values else float("nan")

    return {
        "credit": credit,
        "accuracy_before": before,
        "accuracy_after": after,
        "mean_reward": mean("reward", history),
        "weight_std": mean("credit/weight_std", last),
        "effective_fraction": mean("credit/effective_fraction", last),
        "seconds_per_update": seconds / max_steps,
        "rewards": [entry["reward"] for entry in history],
    }


def plot(results: dict[str, dict], path: Path) -> None:
    """Plots the reward, smoothed over ten updates."""
    import numpy as np

    from .report.figure import new_figure, plain, save, tidy

    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name, result in results.items():
        rewards = np.array(result["rewards"])
        window = min(10, len(rewards))
        smooth = np.convolve(rewards, np.ones(window) / window, mode="valid")
        axes.plot(np.arange(window, len(rewards) + 1), smooth, label=plain(name))
    axes.set_xlabel("update")
    axes.set_ylabel(f"reward (mean of {window} updates)")
    axes.set_title("Three-term sums, embedded model")
    tidy(axes)
    axes.legend()
    save(figure, path)


def report(results: dict[str, dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .methods.ops import UNIFORM_FRACTION

    table = Table(title="Accuracy on held-out problems, from the same start and seed")
    for heading in ("method", "before", "after", "mean reward", "weight std", "effective fraction"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, result in results.items():
        table.add_row(
            safe_text(safe(name)),
            f"{result['accuracy_before']:.3f}",
            f"{result['accuracy_after']:.3f}",
            f"{result['mean_reward']:.3f}",
            f"{result['weight_std']:.3f}",
            f"{result['effective_fraction']:.4f}",
        )
    console = Console()
    console.print(table)
    for name, result in results.items():
        if result["credit"]["method"] != "uniform" and result["effective_fraction"] > UNIFORM_FRACTION:
            text = (
                f"{name}: the weights were effectively uniform (effective fraction {result['effective_fraction']:.5f}), so "
                f"this run is plain GRPO. `trl-credit methods {result['credit']['method']}` shows the parameters that "
                "sharpen them."
            )
            console.print(safe_text(safe(text)))
    console.print("One seed: differences of a few points between methods are noise.")
    words = "--problem_column problem --answer_column answer --reward_funcs accuracy --credit certainty"
    console.print("Next, your own data, as rows of problem and answer:")
    console.print(
        f"  trl-credit train --model_name_or_path MODEL --dataset_name rows.jsonl {words}",
        soft_wrap=True,
        highlight=False,
    )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if "--images" in argv:
        from .quickstart_images import main as main_images

        main_images([word for word in argv if word != "--images"])
        return
    parser = argparse.ArgumentParser(prog="trl-credit quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--max_steps", type=int, default=80, help="updates per method")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["uniform", "gcpo", "dgpo"],
        help="names, or mappings, separated by spaces (default: uniform gcpo dgpo)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", action="store_true", help="train the embedded image model instead (needs diffusers)"
    )
    prepare_terminal()
    arguments = parser.parse_args(argv)
    if arguments.max_steps < 1:
        parser.error(f"--max_steps must be at least 1, got {arguments.max_steps}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print("Loading torch, transformers and TRL ...", flush=True)
    import torch

    from .extras.effect import NothingTrainedError

    # A model this small is fastest on one thread
    torch.set_num_threads(1)
    quiet_libraries()
    try:
        from .methods.registry import build_credit
        from .report.figure import new_figure

        credits = [build_credit(method).to_dict() for method in arguments.methods]
        new_figure(1, 1)  # raises without matplotlib: now, and not after minutes
    except (ValueError, TypeError) as error:
        parser.error(safe_lines(error))

    results = {}
    for credit in credits:
        name = credit["method"].rpartition(".")[2]
        while name in results:  # the same method with different parameters
            name += "'"
        print(f"\n{safe(name)}: {arguments.max_steps} updates of {NUM_COMPLETIONS} completions", flush=True)
        try:
            results[name] = train(credit, arguments.output_dir / name, arguments.max_steps, arguments.seed)
        except (NothingTrainedError, FloatingPointError) as error:
            raise SystemExit(f"trl-credit quickstart: error: {safe(name)}: {safe_lines(error)}") from error
        (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print()
    report(results)
    picture = arguments.output_dir / "reward_curves.png"
    plot(results, picture)
    print(f"Models and results are in {safe(arguments.output_dir)}, the curves in {safe(picture)}.")


if __name__ == "__main__":
    main()
