"""Makes the plan of a recipe: which layout, what each GPU holds, and where the time goes."""

from dataclasses import replace
from typing import Any

from ..recipe.recipe import Recipe
from .cards import Card, card_of
from .config import PlanConfig
from .from_recipe import read_run
from .held import held
from .layouts import Layout, candidates, check_layout
from .memory import activation_bytes
from .notes import notes
from .read import Given
from .remedies import remedies
from .run import Run
from .work import rollout_seconds, update_seconds


def seconds_of(run: Run, layout: Layout, gpus: int, per_machine: int, card: Card) -> dict[str, float]:
    """Seconds of an update, by part, and of the rollout's share that falls on it."""
    settings = (card, layout, gpus, run.batch.rows, per_machine, run.trained.parameters)
    penalty = [] if run.penalty is None else [run.penalty]
    found = {
        "rollout": rollout_seconds(run.model, run.update, card, run.engine_on(card, gpus)),
        "loss": update_seconds(run.model, run.update, [], *settings)["loss"],
        "KL penalty": update_seconds(run.model, run.update, penalty, *settings)["credit"],
        "credit": update_seconds(run.model, run.update, run.passes, *settings)["credit"],
    }
    found["credit's continuations"] = run.continued * found["rollout"]
    return {part: value / run.updates for part, value in found.items()}


def layout_for(run: Run, gpus: int, card: Card) -> Layout:
    """The first layout that fits with room to spare, or else that fits; if none does, the one with most left."""
    sizes = {
        layout: held(run, layout, gpus, card)
        for layout in candidates(gpus, run.trained.adapters, run.trained.bits is not None)
    }
    fitting = [layout for layout in sizes if sizes[layout].roomy] or [layout for layout in sizes if sizes[layout].fits]
    return fitting[0] if fitting else max(sizes, key=lambda layout: sizes[layout].left)


def make_plan(recipe: Recipe, config: PlanConfig, given: Given | None = None) -> dict[str, Any]:
    """The plan of a recipe, as numbers and texts for [`~trl_credit.planning.report`] and JSON.

    Args:
        recipe: The recipe, read for this number of GPUs.
        config: The command's settings.
        given: What the user wrote.

    Raises:
        ValueError: As [`read_run`], or settings that do not go together.
    """
    given = given or Given()
    card, gpus, per_machine = card_of(config.gpu), config.gpus, config.gpus_per_machine
    if gpus > per_machine and gpus % per_machine:
        raise ValueError(
            f"`gpus` ({gpus}) do not fill machines of {per_machine}. Set `gpus_per_machine`, or use "
            f"{gpus // per_machine * per_machine}."
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
    machines = max(gpus // per_machine, 1)
    # Without an engine there is no rollout
    seconds = seconds_of(run, layout, gpus, per_machine, card) if size.engine_fits else {}
    trained, engine = run.trained_in(layout), run.engine_on(card, gpus)
    sized = "generation_batch_size" in given.fields
    return {
        "model": {
            "name": recipe.model.model_name_or_path,
            "parameters": run.model.parameters,
            "trained": run.trained.parameters,
        },
        "gpus": gpus,
        "machines": machines,
        "card": {"name": card.name, "memory": card.memory},
        "completions": {
            "per_update": run.batch.rows * run.accumulation * gpus,
            "per_rollout": run.update.completions,
        },
        "layout": layout.name,
        "fits": size.fits,
        "close": size.close,
        "peak": size.peak,
        "memory": size.parts,
        "left": size.left,
        "engine_fits": size.engine_fits,
        "layouts": {name: {"left": each.left, "fits": each.fits, "close": each.close} for name, each in others.items()},
        "activations": {
            words: activation_bytes(run.model, trained, replace(run.batch, checkpointing=on), not layout.casts)
            for words, on in (("with checkpointing", True), ("without checkpointing", False))
        },
        "checkpointing": run.batch.checkpointing,
        "engine": {
            "mode": run.engine,
            "engines": engine.engines,
            "gpus_of_each": engine.split,
            "completions_at_a_time": engine.concurrent(run.model, card, run.update.length),
        },
        "seconds": seconds,
        "updates_per_rollout": run.updates,
        "credit": {"method": run.method} | (credit_shares(seconds) if seconds else {}),
        "remedies": [] if size.roomy else remedies(run, gpus, per_machine, card, forced, sized),
        "launch": launch_command(layout, run, gpus, machines, given),
        "notes": notes(run, layout, config, card, recipe, given),
    }


def credit_shares(seconds: dict[str, float]) -> dict[str, float]:
    """What credit adds to an update of TRL, and to the whole step with its rollout."""
    credit = seconds["credit"] + seconds["credit's continuations"]
    update = seconds["loss"] + seconds["KL penalty"]
    return {"of_update": credit / update, "of_step": credit / (update + seconds["rollout"])}


def launch_command(layout: Layout, run: Run, gpus: int, machines: int, given: Given) -> str:
    """The command that launches the recipe in a layout, with the options that were given."""
    words = f"accelerate launch --config_file recipes/accelerate/{layout.file_for(machines)} --num_processes {gpus}"
    if machines > 1:
        words += f" --num_machines {machines} --machine_rank RANK --main_process_ip HEAD"
    if run.precision != "bf16":
        words += f" --mixed_precision {run.precision}"
    words += f" -m trl_credit.train {given.launch}"
    if layout.casts and not run.trained.adapters and run.trained.weight_bytes < 4:
        words += " --dtype float32"
    return words + " --use_cpu false" * given.on_cpu
