"""What the numbers of a plan assume."""

from ..recipe.recipe import Recipe
from .cards import DECODING_SHARE, LINK_SHARE, NETWORK, TRAINING_SHARE, Card
from .config import PlanConfig
from .engine import MOST
from .from_recipe import DEFAULT_STEPS
from .layouts import Layout
from .memory import CONTEXT, FRAGMENTS, waiting_bytes
from .read import Given
from .run import Run


def notes(run: Run, layout: Layout, config: PlanConfig, card: Card, recipe: Recipe, given: Given) -> list[str]:
    """What the numbers assume, in sentences."""
    link = card.link * LINK_SHARE / 1e9
    found = [
        f"{TRAINING_SHARE:.0%} of {card.flops / 1e12:g} bf16 TFLOP/s in training, {DECODING_SHARE:.0%} of "
        f"{card.bandwidth / 1e12:g} TB/s in decoding, collectives of {link:.0f} GB/s per GPU within a machine "
        f"of {config.gpus_per_machine} and {min(NETWORK / 1e9, link):.0f} GB/s between machines.",
        f"{config.prompt_tokens} tokens per prompt (`--prompt_tokens`). For memory, every completion has "
        f"{run.batch.completion} tokens; for the times, {run.update.completion} (`--mean_completion_tokens`), and "
        f"{100 * run.update.zero_advantage:g} % of them have no advantage (`--zero_advantage`).",
        f"torch finds {card.memory / 2**30:.1f} GiB on {card.name}: {CONTEXT / 1e9:g} GB of it for CUDA's libraries and "
        f"{FRAGMENTS:.0%} for fragments. AdamW; data, rewards and a reward model are not counted.",
    ]
    engine = run.engine_on(card, config.gpus)
    concurrent = _counted(engine.concurrent(run.model, card, run.update.length), "completion")
    at_once = f"each copy of the model decodes {concurrent} at a time"
    if run.engine is None:
        found.append(
            "transformers generates (no `use_vllm`): the rollout takes longer than the time given, which is an engine's."
        )
    else:
        where = "beside training"
        if run.engine == "server":
            where = f"on {_counted(engine.gpus, 'GPU')} of the same kind of its own (`--engine_gpus`)"
        found.append(
            f"vLLM {where}, {_counted(engine.split, 'GPU')} for a copy: {at_once} (at most {MOST}, or what its cache holds)."
        )
    if run.continued:
        steps = config.steps or DEFAULT_STEPS
        found.append(f"Completions have {steps} steps, if they are continued from each (`--steps`).")
    if recipe.training.dynamic_sampling:
        found.append("Dynamic sampling in one round; further rounds lengthen the rollout.")
    if run.trained.bits:
        found.append(f"Matrices of the layers in {run.trained.bits} bits.")
    if waiting_bytes(run.trained, layout, config.gpus):
        found.append(
            "FSDP2 keeps whole gradients until the last micro-batch of an update. `--accelerator_config "
            '\'{"gradient_accumulation_kwargs": {"sync_each_batch": true}}\'` splits them at once, for more traffic.'
        )
    if given.on_cpu:
        found.append("The recipe trains on a CPU; the launch command sets `use_cpu: false`.")
    if run.precision != "bf16":
        found.append("The times are bf16's; this recipe has another precision.")
    if run.uncounted:
        found.append(f"Not counted: {', '.join(run.uncounted)}.")
    return found


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
