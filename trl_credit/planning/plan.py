"""Makes the plan of a recipe: which layout, what each GPU holds, and where the time goes."""

import re
from dataclasses import replace
from typing import Any

from ..recipe.recipe import Recipe
from .cards import DECODING_SHARE, LINK_SHARE, NETWORK, TRAINING_SHARE, Card, card_of
from .config import PlanConfig
from .held import held
from .layouts import Layout, candidates, check_layout
from .memory import CONTEXT, FRAGMENTS, activation_bytes
from .remedies import remedies
from .run import Run, read_run
from .work import rollout_seconds, update_seconds


def seconds_of(run: Run, layout: Layout, gpus: int, engine_gpus: int, per_machine: int, card: Card) -> dict[str, float]:
    """Seconds of an update, by part, and of the rollout's share that falls on it."""
    settings = (card, gpus, run.batch.rows, per_machine, layout.splits_weights, run.trained.parameters)
    penalty = [] if run.penalty is None else [run.penalty]
    found = {
        "rollout": rollout_seconds(run.model, run.update, card, engine_gpus),
        "loss": update_seconds(run.model, run.update, [], *settings)["loss"],
        "KL penalty": update_seconds(run.model, run.update, penalty, *settings)["credit"],
        "credit": update_seconds(run.model, run.update, run.passes, *settings)["credit"],
    }
    found["credit's continuations"] = run.continued * found["rollout"]
    return {part: value / run.updates for part, value in found.items()}


def layout_for(run: Run, gpus: int, card: Card) -> Layout:
    """The first layout that fits; if none does, the one with most left."""
    among = candidates(gpus, run.trained.adapters, run.trained.bits is not None)
    sizes = {layout: held(run, layout, gpus, card) for layout in among}
    for layout, size in sizes.items():
        if size.fits:
            return layout
    return max(sizes, key=lambda layout: sizes[layout].left)


def make_plan(recipe: Recipe, config: PlanConfig, file: str | None = None) -> dict[str, Any]:
    """The plan of a recipe, as numbers and texts for [`~trl_credit.planning.report`] and JSON.

    Args:
        recipe: The recipe, read for this number of GPUs.
        config: The command's settings.
        file: The recipe's file, for the command that launches it.

    Raises:
        ValueError: As [`read_run`], or settings that do not go together.
    """
    card, gpus = card_of(config.gpu), config.gpus
    if gpus > config.gpus_per_machine and gpus % config.gpus_per_machine:
        raise ValueError(
            f"`gpus` ({gpus}) do not fill machines of {config.gpus_per_machine}. Set `gpus_per_machine`, or use "
            f"{gpus // config.gpus_per_machine * config.gpus_per_machine}."
        )
    run = read_run(recipe, config)
    if config.engine_gpus is not None and run.engine != "server":
        raise ValueError(
            f"`engine_gpus` ({config.engine_gpus}) has no effect: only `vllm_mode: server` has GPUs of its own. Remove it."
        )
    quantized = run.trained.bits is not None
    forced = None if config.layout == "auto" else check_layout(config.layout, gpus, quantized)
    layout = forced or layout_for(run, gpus, card)
    size = held(run, layout, gpus, card)
    others = {each.name: held(run, each, gpus, card) for each in candidates(gpus, run.trained.adapters, quantized)}
    machines = max(gpus // config.gpus_per_machine, 1)
    server = run.engine == "server"
    engine_gpus = (config.engine_gpus or config.gpus_per_machine) if server else gpus
    seconds = seconds_of(run, layout, gpus, engine_gpus, config.gpus_per_machine, card)
    trained = run.trained_in(layout)
    plan = {
        "model": {
            "name": recipe.model.model_name_or_path,
            "parameters": run.model.parameters,
            "trained": run.trained.parameters,
        },
        "gpus": gpus,
        "machines": machines,
        "card": {"name": card.name, "memory": card.memory},
        "layout": layout.name,
        "fits": size.fits,
        "close": size.close,
        "memory": size.parts,
        "left": size.left,
        "engine_fits": size.engine_fits,
        "layouts": {name: {"left": each.left, "fits": each.fits} for name, each in others.items()},
        "activations": {
            words: activation_bytes(run.model, trained, replace(run.batch, checkpointing=on), not layout.casts)
            for words, on in (("with checkpointing", True), ("without checkpointing", False))
        },
        "checkpointing": run.batch.checkpointing,
        "seconds": seconds,
        "updates_per_rollout": run.updates,
        "credit": {"method": run.method, **credit_shares(seconds)},
        "remedies": [] if size.fits and not size.close else remedies(run, gpus, config.gpus_per_machine, card, forced),
        "launch": launch_command(layout, run, gpus, machines, file),
        "notes": notes(run, config, card, engine_gpus, recipe),
    }
    return plan


def credit_shares(seconds: dict[str, float]) -> dict[str, float]:
    """What credit adds to an update of TRL, and to the whole step with its rollout."""
    credit = seconds["credit"] + seconds["credit's continuations"]
    update = seconds["loss"] + seconds["KL penalty"]
    return {"of_update": credit / update, "of_step": credit / (update + seconds["rollout"])}


def launch_command(layout: Layout, run: Run, gpus: int, machines: int, file: str | None) -> str:
    """The command that launches the recipe in a layout."""
    words = f"accelerate launch --config_file recipes/accelerate/{layout.file_for(machines)} --num_processes {gpus}"
    if machines > 1:
        words += f" --num_machines {machines} --machine_rank RANK --main_process_ip HEAD"
    words += f" -m trl_credit.train --config {file or 'RECIPE'}"
    needs_float32 = layout.casts and not run.trained.adapters and run.trained.weight_bytes < 4
    return words + " --dtype float32" * needs_float32


def notes(run: Run, config: PlanConfig, card: Card, engine_gpus: int, recipe: Recipe) -> list[str]:
    """What the numbers assume."""
    link = card.link * LINK_SHARE / 1e9
    found = [
        f"{TRAINING_SHARE:.0%} of {card.flops / 1e12:g} bf16 TFLOP/s in training, {DECODING_SHARE:.0%} of "
        f"{card.bandwidth / 1e12:g} TB/s in decoding, collectives of {link:.0f} GB/s per GPU within a machine "
        f"of {config.gpus_per_machine} and {min(NETWORK / 1e9, link):.0f} GB/s between machines.",
        f"{config.prompt_tokens} tokens per prompt (`--prompt_tokens`). For memory, every completion has "
        f"{run.batch.completion} tokens; for the times, {run.update.completion} (`--mean_completion_tokens`), and "
        f"{run.update.zero_advantage:.0%} of them have no advantage (`--zero_advantage`).",
        f"{CONTEXT / 1e9:g} GB for CUDA's libraries and {FRAGMENTS:.0%} of the memory for fragments; AdamW; data, "
        "rewards and a reward model are not counted.",
    ]
    if run.engine == "server":
        found.append(f"vLLM runs on {engine_gpus} GPUs of its own, of the same kind (`--engine_gpus`).")
    if run.engine is None:
        found.append(
            "transformers generates (no `use_vllm`): the rollout then takes longer than an engine's, given here."
        )
    if run.continued:
        found.append(f"Completions have {config.steps} steps, if they are continued from each (`--steps`).")
    if recipe.training.dynamic_sampling:
        found.append("Dynamic sampling in one round; further rounds lengthen the rollout.")
    if run.trained.bits:
        found.append(f"Matrices of the layers in {run.trained.bits} bits.")
    if recipe.training.optim is not None and not re.match("adamw_torch|adamw_apex", str(_value(recipe.training.optim))):
        found.append(f"The recipe's optimizer is {_value(recipe.training.optim)}; the numbers are AdamW's.")
    return found


def _value(option: Any) -> Any:
    return getattr(option, "value", option)
