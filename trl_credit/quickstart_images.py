"""The quickstart for images: trains the embedded digits model with several methods from the same start and seed.

    trl-credit quickstart --images [--output_dir DIR] [--max_steps 80] [--methods uniform pcpo] [--seed 0]

Writes the trained models, `results.json` and `images.png`: samples before and after, and the curves. Needs no network.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._util.quiet import quiet_libraries
from ._util.text import prepare_terminal, safe, safe_lines, safe_text


if TYPE_CHECKING:
    from PIL.Image import Image

NUM_IMAGES = 80  # per update: 10 prompts of 8 images
NUM_STEPS = 10
EVAL_IMAGES = 500
EVAL_EVERY = 4
GOAL = 0.9
SHOWN = 20  # images of each row of the picture


def draw(pipeline, number: int, seed: int) -> "list[Image]":
    """`number` images of the digits 0 to 9 in turn, by the deterministic sampler."""
    import torch

    from .toy.digits import NUM_DIGITS, prompt_of

    prompts = [prompt_of(i % NUM_DIGITS) for i in range(number)]
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompts, num_inference_steps=NUM_STEPS, generator=generator).images


def measure(pipeline, seed: int) -> dict[str, float]:
    """Mean reward and Frechet distance of [`EVAL_IMAGES`] images."""
    from .toy.digits import NUM_DIGITS, digit_probability, frechet_distance

    images = draw(pipeline, EVAL_IMAGES, seed)
    rewards = digit_probability(images, digit=[i % NUM_DIGITS for i in range(EVAL_IMAGES)])
    return {"reward": sum(rewards) / len(rewards), "distance": frechet_distance(images)}


def train(credit: dict[str, Any], output_dir: Path, max_steps: int, seed: int) -> "tuple[dict[str, Any], list[Image]]":
    """Trains and evaluates one method; returns the values for the table and the picture, and images after training."""
    from transformers import PrinterCallback, TrainerCallback

    from .toy.digits import NUM_DIGITS, digit_probability, make_dataset
    from .trainer.diffusion import DiffusionGRPOConfig, DiffusionGRPOTrainer

    name, evaluations = credit["method"], []

    class Progress(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % EVAL_EVERY == 0 or state.global_step == state.max_steps:
                evaluations.append({"update": state.global_step, **measure(trainer.pipeline, seed)})

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "reward" in logs and (state.global_step % 20 == 0 or state.global_step == 1):
                update = f"update {state.global_step:3d}/{state.max_steps}"
                print(f"  {safe(name):8} {update}   reward {logs['reward']:.2f}", flush=True)

    trainer = DiffusionGRPOTrainer(
        model="trl_credit:digits",
        reward_funcs=digit_probability,
        args=DiffusionGRPOConfig(
            output_dir=str(output_dir),
            credit=credit,
            num_inference_steps=NUM_STEPS,
            max_steps=max_steps,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            per_device_train_batch_size=NUM_IMAGES,
            num_generations=NUM_IMAGES // NUM_DIGITS,
            shuffle_dataset=False,  # so that every update has all digits
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=make_dataset(max_steps * NUM_DIGITS, seed=seed),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    evaluations.append({"update": 0, **measure(trainer.pipeline, seed)})
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    result = {
        "credit": credit,
        "evaluations": evaluations,
        "rewards": rewards,
        "mean_reward": sum(rewards) / len(rewards) if rewards else math.nan,
        "seconds_per_update": seconds / max_steps,
    }
    return result, draw(trainer.pipeline, SHOWN, seed + 1)


def at_goal(evaluations: Sequence[dict[str, float]], goal: float = GOAL) -> dict[str, float] | None:
    """Update and Frechet distance at which the reward first reaches the goal, by straight lines between evaluations.

    Args:
        evaluations: `update`, `reward` and `distance` of each, in order.
        goal: The reward.

    Returns:
        `update` and `distance`; `None` if the goal was not reached.
    """
    for before, after in zip([None, *evaluations], evaluations, strict=False):
        if after["reward"] >= goal:
            if before is None:
                return {name: after[name] for name in ("update", "distance")}
            share = (goal - before["reward"]) / (after["reward"] - before["reward"])
            return {name: before[name] + share * (after[name] - before[name]) for name in ("update", "distance")}
    return None


def report(results: dict[str, dict]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The digit asked for, from the same start and seed")
    headings = (
        "method",
        "before",
        "after",
        "mean reward",
        f"updates to {GOAL}",
        f"Frechet distance at {GOAL}",
        "s / update",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, result in results.items():
        goal = at_goal(result["evaluations"])
        table.add_row(
            safe_text(safe(name)),
            f"{result['evaluations'][0]['reward']:.3f}",
            f"{result['evaluations'][-1]['reward']:.3f}",
            f"{result['mean_reward']:.3f}",
            "\u2013" if goal is None else f"{goal['update']:.0f}",
            "\u2013" if goal is None else f"{goal['distance']:.2f}",
            f"{result['seconds_per_update']:.2f}",
        )
    console = Console()
    console.print(table)
    start = next(iter(results.values()))["evaluations"][0]["distance"]
    console.print(
        f"Frechet distance to the real digits: {start:.2f} before training. The reward does not see it; it grows as the "
        "images of a digit become alike. One seed: differences of a few updates between methods are noise."
    )


def picture(results: dict[str, dict], images: "dict[str, list[Image]]", path: Path) -> None:
    """Draws the curves above the rows of images."""
    import numpy as np
    from PIL import Image

    from .report.figure import new_figure, plain, tidy
    from .report.grid import image_grid
    from .toy.digits import NUM_DIGITS

    columns = max(map(len, images.values()))
    grid = image_grid(images, titles=[str(i % NUM_DIGITS) for i in range(columns)], cell=48)
    figure = new_figure(grid.width / 100, 3.2)
    rewards, distances = figure.subplots(1, 2)
    for name, result in results.items():
        values = np.array(result["rewards"])
        window = min(3, len(values))
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        rewards.plot(np.arange(window, len(values) + 1), smooth, label=plain(name))
        found = [(e["reward"], e["distance"]) for e in result["evaluations"]]
        distances.plot(*zip(*found, strict=True), marker=".", label=plain(name))
    rewards.set(xlabel="update", ylabel="reward", title=f"Learning (mean of {window} updates)")
    distances.set(xlabel="reward", ylabel="Frechet distance", title="Distance to real digits (smaller is better)")
    for axis in (rewards, distances):
        tidy(axis)
        axis.legend()
    figure.set_dpi(100)
    figure.canvas.draw()
    curves = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    whole = Image.new("RGB", (max(curves.width, grid.width), curves.height + grid.height), (255, 255, 255))
    whole.paste(curves, (0, 0))
    whole.paste(grid, (0, curves.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, format="PNG", optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trl-credit quickstart --images", description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart-images"))
    parser.add_argument("--max_steps", type=int, default=80, help="updates per method")
    parser.add_argument(
        "--methods", nargs="+", default=["uniform", "pcpo"], help="names, or mappings, separated by spaces"
    )
    parser.add_argument("--seed", type=int, default=0)
    prepare_terminal()
    arguments = parser.parse_args(argv)
    if arguments.max_steps < 1:
        parser.error(f"--max_steps must be at least 1, got {arguments.max_steps}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print("Loading torch, diffusers and TRL ...", flush=True)
    import torch

    from .extras.effect import NothingTrainedError
    from .methods.registry import build_credit

    # A model this small is fastest on one thread
    torch.set_num_threads(1)
    quiet_libraries()
    try:
        from .report.figure import new_figure
        from .toy.digits import load_digits_pipeline

        new_figure(1, 1)
        credits = [build_credit(method).to_dict() for method in arguments.methods]
    except (ValueError, TypeError, ImportError) as error:
        parser.error(safe_lines(error))

    results, images = {}, {"before": draw(load_digits_pipeline(), SHOWN, arguments.seed + 1)}
    for credit in credits:
        name = credit["method"].rpartition(".")[2]
        while name in results:  # the same method with different parameters
            name += "'"
        print(f"\n{safe(name)}: {arguments.max_steps} updates of {NUM_IMAGES} images", flush=True)
        try:
            results[name], images[name] = train(
                credit, arguments.output_dir / name, arguments.max_steps, arguments.seed
            )
        except (NothingTrainedError, FloatingPointError, ValueError) as error:
            raise SystemExit(f"trl-credit quickstart: error: {safe(name)}: {safe_lines(error)}") from error
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print()
    report(results)
    path = arguments.output_dir / "images.png"
    picture(results, images, path)
    print(f"Models and results are in {safe(arguments.output_dir)}, images and curves in {safe(path)}.")


if __name__ == "__main__":
    main()
