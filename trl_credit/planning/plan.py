"""Makes the plan of a recipe: which layout, what each GPU holds, and where the time goes."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..methods.base import CreditMethod
from ..methods.registry import build_credit
from ..model_files import LocalModel
from ..recipe.recipe import Recipe
from ..trainer.exactness import check_policy, is_off_policy, skip_refusal
from .cards import NETWORK, TRAINING_SHARE, DECODING_SHARE, LINK_SHARE, Card, card_of
from .config import PlanConfig
from .layouts import Layout, candidates, check_layout
from .memory import (
    CONTEXT,
    FRAGMENTS,
    Batch,
    Trained,
    activation_bytes,
    buffer_bytes,
    compared_bytes,
    frozen_bytes,
    generation_bytes,
    head_bytes,
    state_bytes,
    step_bytes,
)
from .passes import passes_of
from .sizes import Model, adapter_parameters, model_of
from .work import Pass, Update, continued_tokens, rollout_seconds, update_seconds


# Of the memory: nearer to the limit, an estimate cannot tell
CLOSE = 0.05


@dataclass(frozen=True)
class Run:
    """A recipe in numbers.

    Args:
        model: The policy.
        trained: What is trained, at the precision of the recipe.
        batch: A micro-batch, of the greatest lengths.
        update: The updates on a generation batch, of mean lengths.
        updates: How many they are.
        passes: What credit adds.
        penalty: The forward of TRL's KL penalty, if there is one.
        continued: Tokens that credit generates for each token of the rollout.
        rollout_states: Whether credit reads the hidden states of a whole generation batch at once.
        cache: Bytes at most of signals that iterations share.
        engine: `colocate`, `server`, or `None` if transformers generates.
        engine_share: vLLM's share of the GPU's memory, beside training.
        engine_split: GPUs that share a copy of the engine's weights.
        sleeps: Whether vLLM frees its memory in the updates.
        gathers: Whether transformers generates with gathered weights where they are split.
        rows: Completions of a generation batch, for each GPU.
    """

    model: Model
    trained: Trained
    batch: Batch
    update: Update
    updates: float
    passes: tuple[Pass, ...]
    penalty: Pass | None
    continued: float
    rollout_states: bool
    cache: float
    engine: str | None
    engine_share: float
    engine_split: int
    sleeps: bool
    gathers: bool
    rows: int

    def trained_in(self, layout: Layout) -> Trained:
        """What is trained, at the precision in which a layout needs the weights: in float32 where they are their own
        master."""
        if self.trained.adapters or layout.master:
            return self.trained
        return replace(self.trained, weight_bytes=4)

    def frozen(self) -> dict[str, Model]:
        """The models beside the policy, by what they are for. A reference that the KL penalty and a method share is one."""
        found = {} if self.penalty is None or self.penalty.model is None else {self.penalty.title: self.penalty.model}
        for extra in self.passes:
            if extra.model is not None and extra.model not in found.values():
                found[extra.title] = extra.model
        return found


@dataclass(frozen=True)
class Held:
    """What a GPU holds at its peak.

    Args:
        parts: Bytes by part.
        memory: Bytes of the GPU.
        peak: When the peak is: `loss`, `step` or `rollout`.
        engine_fits: Whether vLLM's share holds the weights and the cache of one completion.
    """

    parts: dict[str, float]
    memory: float
    peak: str
    engine_fits: bool

    @property
    def left(self) -> float:
        return self.memory - sum(self.parts.values())

    @property
    def close(self) -> bool:
        """Whether what is left or lacks is less than an estimate can tell."""
        return self.engine_fits and abs(self.left) < CLOSE * self.memory

    @property
    def fits(self) -> bool:
        return self.left >= 0 and self.engine_fits


def held(run: Run, layout: Layout, gpus: int, card: Card) -> Held:
    """What each GPU holds, at its peak."""
    model, trained, batch = run.model, run.trained_in(layout), run.batch
    compute = trained.compute_bytes
    frozen_width = compute if layout.master else run.trained.weight_bytes if layout.splits_weights else trained.weight_bytes
    parts = state_bytes(model, trained, layout, gpus)
    for title, other in run.frozen().items():
        parts[f"frozen model: {title}"] = frozen_bytes(other, frozen_width, layout, gpus)
    parts["communication and casts"] = buffer_bytes(model, trained, layout, gpus)
    engine = run.engine_share * card.memory if run.engine == "colocate" else 0.0
    compares = any(extra.compares for extra in run.passes)
    loss = {
        "activations": activation_bytes(model, trained, batch, not layout.casts),
        "logits and the head's gradient": head_bytes(model, trained, batch),
        "credit's hidden states": compared_bytes(model, compute, batch) if compares else 0.0,
    }
    kept = 0.0
    if run.update.iterations > 1 and any(extra.compares and not extra.repeated for extra in run.passes):
        kept = min(run.cache, compute * model.hidden * run.rows * batch.completion)
    gathers = layout.splits_weights and gpus > 1 and (run.trained.adapters if run.engine else run.gathers)
    rollout = compute * model.parameters if gathers else 0.0
    if run.engine is None:
        rollout += generation_bytes(model, compute, run.rows, batch.length)
    states = compute * model.hidden * run.rows * batch.completion if run.rollout_states else 0.0
    asleep = 0.0 if run.sleeps else engine
    phases = {
        "loss": sum(loss.values()) + asleep,
        "step": step_bytes(trained, layout, gpus) + asleep,
        "rollout": max(rollout + engine, states + asleep),
    }
    peak = max(phases, key=phases.get)
    parts |= {
        **loss,
        "signals kept for later iterations": kept,
        "vLLM": asleep,
        f"more at the peak, in the {peak}": phases[peak] - phases["loss"],
        "CUDA and fragments": CONTEXT + FRAGMENTS * card.memory,
    }
    one = 2 * model.parameters / run.engine_split + model.kv_bytes * batch.length / run.engine_split
    engine_fits = run.engine != "colocate" or one <= 0.9 * engine
    return Held({name: size for name, size in parts.items() if size}, card.memory, peak, engine_fits)


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


def changes(run: Run, gpus: int, per_machine: int) -> Iterator[tuple[str, Run, int]]:
    """Changes of a run that save memory, each by itself: what to write, the run and its GPUs."""
    if not run.batch.checkpointing:
        yield "--gradient_checkpointing true", replace(run, batch=replace(run.batch, checkpointing=True)), gpus
    rows = run.batch.rows
    while rows > 1:
        rows //= 2
        factor = run.batch.rows / rows
        words = f"--per_device_train_batch_size {rows}, and {factor:g} times the gradient_accumulation_steps"
        yield words, replace(run, batch=replace(run.batch, rows=rows)), gpus
    if run.engine == "colocate" and not run.sleeps:
        yield "--vllm_enable_sleep_mode true", replace(run, sleeps=True), gpus
    if run.engine == "colocate":
        yield "--vllm_mode server, with GPUs of its own for vLLM", replace(run, engine="server"), gpus
    more = max(gpus, per_machine // 2)
    while more < 512:
        more *= 2
        yield f"--gpus {more}", run, more


def remedies(run: Run, gpus: int, per_machine: int, card: Card, layouts: tuple[Layout, ...] | None) -> list[str]:
    """What to change so that a run fits: the least of each kind. If no change alone is enough, that is said."""
    found: dict[str, str] = {}
    for words, changed, number in changes(run, gpus, per_machine):
        kind = words.split()[0]
        among = layouts or candidates(number, run.trained.adapters, run.trained.bits is not None)
        sizes = ((layout, held(changed, layout, number, card)) for layout in among)
        fitting = next((layout for layout, size in sizes if size.fits and not size.close), None)
        if fitting is not None and kind not in found:
            found[kind] = f"{words} ({fitting.name})"
    return list(found.values())


def layout_for(run: Run, gpus: int, card: Card) -> tuple[Layout, bool]:
    """The first layout that fits; if none does, the one with most left, and `False`."""
    among = candidates(gpus, run.trained.adapters, run.trained.bits is not None)
    sizes = {layout: held(run, layout, gpus, card) for layout in among}
    for layout, size in sizes.items():
        if size.fits:
            return layout, True
    return max(sizes, key=lambda layout: sizes[layout].left), False


def read_run(recipe: Recipe, config: PlanConfig) -> Run:
    """A recipe in numbers, from its fields and its models' configs. Loads neither weights nor data.

    Raises:
        ValueError: It trains images, or a model's config cannot be read.
    """
    script, args, model_args = recipe.script, recipe.training, recipe.model
    if script.trainer != "grpo":
        raise ValueError(
            f"`trainer: {script.trainer}` trains images, and the formulas here are for language models. The header of each "
            "recipe of recipes/images and recipes/janus-pro-* estimates its memory."
        )
    trust = args.trust_remote_code
    found = LocalModel.find(
        model_args.model_name_or_path, model_args.model_revision, trust, field="model_name_or_path", needs=None
    )
    config_ = found.config()

    @functools.cache
    def sizes(name: str) -> Model:
        if name == found.path:
            return model_of(config_, found.path, trust)
        other = LocalModel.find(name, trust_remote_code=trust, adapter=False, needs=None)
        return model_of(other.config(), name, trust)

    model, method = sizes(found.path), build_credit(args.credit or "uniform")
    check_policy(method, "tokens")
    peft_config = recipe.peft_config(found.adapter)
    adapters = peft_config is not None
    parameters = adapter_parameters(config_, peft_config, trust) if adapters else model.parameters
    weight_bytes = _weight_bytes(model_args.dtype, config_)
    compute_bytes = 2 if args.bf16 or args.fp16 else weight_bytes
    completion = args.max_completion_length
    batch = Batch(
        rows=args.per_device_train_batch_size,
        prompt=config.prompt_tokens,
        completion=completion,
        checkpointing=bool(args.gradient_checkpointing),
        attention=_attention(model_args.attn_implementation),
    )
    update = Update(
        prompt=config.prompt_tokens,
        completion=min(config.mean_completion_tokens or completion, completion),
        completions=args.generation_batch_size,
        zero_advantage=config.zero_advantage,
        iterations=args.num_iterations,
        checkpointing=batch.checkpointing,
        old_logps=is_off_policy(args) or (args.use_vllm and args.vllm_importance_sampling_correction),
        skipping=_skips(args, method),
        adapters=adapters,
    )
    follows = bool(args.sync_ref_model)
    passes = passes_of(method, found.path, adapters, update.completion, sizes, follows)
    penalty = None
    if args.beta:
        title = "reference"
        penalty = Pass(title, every_row=True, fused=True, model=None if adapters else model)
    colocate = args.use_vllm and args.vllm_mode == "colocate"
    return Run(
        model=model,
        trained=Trained(parameters, weight_bytes, compute_bytes, adapters, _bits(model_args)),
        batch=batch,
        update=update,
        updates=args.num_iterations * args.steps_per_generation / args.gradient_accumulation_steps,
        passes=tuple(passes),
        penalty=penalty,
        continued=_continued(method, update, config.steps, args.num_generations),
        rollout_states="hidden_states" in method.rollout_needs,
        cache=2**30 * (4 if args.credit_cache_gib is None else args.credit_cache_gib),
        engine=args.vllm_mode if args.use_vllm else None,
        engine_share=args.vllm_gpu_memory_utilization if colocate else 0.0,
        engine_split=args.vllm_tensor_parallel_size if colocate else 1,
        sleeps=bool(args.vllm_enable_sleep_mode) and colocate,
        gathers=bool(args.ds3_gather_for_generation),
        rows=args.per_device_train_batch_size * args.steps_per_generation,
    )


def _weight_bytes(dtype: str | None, config: Any) -> int:
    if dtype == "auto":
        dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return 2 if dtype in ("bfloat16", "float16") else 4


def _attention(name: str | None) -> str:
    if name is not None and "flash" in name:
        return "flash"
    return "eager" if name == "eager" else "sdpa"


def _bits(model_args: Any) -> int | None:
    return 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None


def _skips(args: Any, method: CreditMethod) -> bool:
    if args.skip_zero_advantage is not None:
        return args.skip_zero_advantage
    return method.name != "uniform" and skip_refusal(args, method) is None


def _continued(method: CreditMethod, update: Update, steps: int, generations: int) -> float:
    return sum(
        continued_tokens(
            asked.count, update.completion / asked.every if isinstance(asked.every, int) else steps, generations
        )
        for asked in method.continuations()
    )


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
    layout, _ = (forced, True) if forced else layout_for(run, gpus, card)
    size = held(run, layout, gpus, card)
    others = {each.name: held(run, each, gpus, card) for each in candidates(gpus, run.trained.adapters, quantized)}
    machines = max(gpus // config.gpus_per_machine, 1)
    server = run.engine == "server"
    engine_gpus = (config.engine_gpus or config.gpus_per_machine) if server else gpus
    seconds = seconds_of(run, layout, gpus, engine_gpus, config.gpus_per_machine, card)
    trained = run.trained_in(layout)
    plan = {
        "model": {"name": recipe.model.model_name_or_path, "parameters": run.model.parameters, "trained": run.trained.parameters},
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
        "credit": {"method": build_credit(recipe.training.credit or "uniform").name, **credit_shares(seconds)},
        "remedies": [] if size.fits and not size.close else remedies(run, gpus, config.gpus_per_machine, card, forced and (forced,)),
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
    found = [
        f"{TRAINING_SHARE:.0%} of {card.flops / 1e12:g} bf16 TFLOP/s in training, {DECODING_SHARE:.0%} of "
        f"{card.bandwidth / 1e12:g} TB/s in decoding, collectives of {card.link * LINK_SHARE / 1e9:.0f} GB/s per GPU within a "
        f"machine of {config.gpus_per_machine} and {min(NETWORK, card.link * LINK_SHARE) / 1e9:.0f} GB/s between machines.",
        f"{config.prompt_tokens} tokens per prompt (`--prompt_tokens`). For memory, every completion has "
        f"{run.batch.completion} tokens; for the times, {run.update.completion} (`--mean_completion_tokens`), and "
        f"{run.update.zero_advantage:.0%} of them have no advantage (`--zero_advantage`).",
        f"{CONTEXT / 1e9:g} GB for CUDA's libraries and {FRAGMENTS:.0%} of the memory for fragments; AdamW; data, rewards and a "
        "reward model are not counted.",
    ]
    if run.engine == "server":
        found.append(f"vLLM runs on {engine_gpus} GPUs of its own, of the same kind (`--engine_gpus`).")
    if run.engine is None:
        found.append("transformers generates (no `use_vllm`): the rollout then takes longer than an engine's, given here.")
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
