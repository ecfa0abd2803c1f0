"""What to change so that a run fits."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .cards import Card
from .held import held
from .layouts import Layout, candidates
from .run import Run


# Beyond so many GPUs no remedy is looked for
_MOST_GPUS = 512
# Those that are taken together, if none is enough by itself
_TOGETHER = ("--gradient_checkpointing", "--per_device_train_batch_size", "--vllm_mode", "--gpus")
# Gradients travel in each micro-batch, quoted for a shell
_AT_ONCE = """'{"gradient_accumulation_kwargs":{"sync_each_batch":true}}'"""
# Options to write, with their values; the run that they make, and its GPUs
Change = tuple[dict[str, Any], Run, int]


def changes(run: Run, gpus: int, per_machine: int, sized: bool) -> Iterator[Change]:
    """Changes of a run that save memory, each by itself. None changes the number of completions.

    Args:
        run: The run.
        gpus: All GPUs.
        per_machine: GPUs of a machine.
        sized: Whether the recipe has `generation_batch_size`, from which the steps per generation follow.
    """

    def batched(accumulation: int, steps: int) -> dict[str, int]:
        return {"--gradient_accumulation_steps": accumulation} | ({} if sized else {"--steps_per_generation": steps})

    if not run.batch.checkpointing:
        yield {"--gradient_checkpointing": "true"}, replace(run, batch=replace(run.batch, checkpointing=True)), gpus
    if run.trained.accumulates:
        yield {"--accelerator_config": _AT_ONCE}, replace(run, trained=replace(run.trained, accumulates=False)), gpus
    factor = 2
    while run.batch.rows % factor == 0:
        rows, accumulation, steps = run.batch.rows // factor, run.accumulation * factor, run.steps * factor
        trained = replace(run.trained, accumulates=run.trained.accumulates or run.accumulation == 1)
        changed = replace(
            run, batch=replace(run.batch, rows=rows), accumulation=accumulation, steps=steps, trained=trained
        )
        yield {"--per_device_train_batch_size": rows} | batched(accumulation, steps), changed, gpus
        factor *= 2
    if run.engine == "colocate":
        if not run.sleeps:
            yield {"--vllm_enable_sleep_mode": "true"}, replace(run, sleeps=True), gpus
        yield from _shares(run, gpus)
        server = replace(run, engine="server", sleeps=False, context=run.batch.length)
        yield {"--vllm_mode": "server", "--engine_gpus": run.engine_gpus}, server, gpus
    if run.engine == "server":
        for factor in (2, 4, 8):
            yield {"--engine_gpus": run.engine_gpus * factor}, replace(run, engine_gpus=run.engine_gpus * factor), gpus
    for more in _more_gpus(gpus, per_machine):
        factor = more // gpus
        if run.accumulation % factor == 0 and run.steps % factor == 0:
            accumulation, steps = run.accumulation // factor, run.steps // factor
            trained = replace(run.trained, accumulates=run.trained.accumulates and accumulation > 1)
            changed = replace(run, accumulation=accumulation, steps=steps, trained=trained)
            yield {"--gpus": more} | batched(accumulation, steps), changed, more


def _shares(run: Run, gpus: int) -> Iterator[Change]:
    """Other shares of vLLM, the nearest first, and engines that share GPUs."""
    for share in sorted((each / 10 for each in range(1, 10)), key=lambda each: abs(each - run.engine_share)):
        if abs(share - run.engine_share) > 0.01:
            yield {"--vllm_gpu_memory_utilization": share}, replace(run, engine_share=share), gpus
    for split in (2, 4, 8):
        if split > run.engine_split and gpus % split == 0:
            yield {"--vllm_tensor_parallel_size": split}, replace(run, engine_split=split), gpus


def _more_gpus(gpus: int, per_machine: int) -> Iterator[int]:
    """Twice, four times, ... as many GPUs: of one machine, then whole machines."""
    more = 2 * gpus
    while more <= per_machine:
        yield more
        more *= 2
    more = math.lcm(gpus, per_machine)
    while more <= max(gpus, per_machine):
        more *= 2
    while more <= _MOST_GPUS:
        yield more
        more *= 2


def remedies(
    run: Run, gpus: int, per_machine: int, card: Card, forced: Layout | None = None, sized: bool = False
) -> list[str]:
    """What to change so that a run fits with room to spare: the least change of each kind. If none is enough by itself, they
    are taken together, one after the other.

    Args:
        run: The run.
        gpus: All GPUs.
        per_machine: GPUs of a machine.
        card: The GPU.
        forced: The layout, if it may not be another.
        sized: Whether the recipe has `generation_batch_size`.
    """

    def with_room(run: Run, gpus: int) -> str | None:
        among = (forced,) if forced else candidates(gpus, run.trained.adapters, run.trained.bits is not None)
        return next((layout.name for layout in among if held(run, layout, gpus, card).roomy), None)

    def written(options: dict[str, Any], layout: str) -> str:
        return " ".join(f"{option} {value}" for option, value in options.items()) + f", with the layout {layout}"

    found: dict[str, str] = {}
    for options, changed, number in changes(run, gpus, per_machine, sized):
        kind = next(iter(options))
        if kind not in found and (layout := with_room(changed, number)):
            found[kind] = written(options, layout)
    if found:
        return list(found.values())
    taken: dict[str, Any] = {}
    for kind in _TOGETHER:
        steps = [each for each in changes(run, gpus, per_machine, sized) if next(iter(each[0])) == kind]
        for options, changed, number in steps:
            if layout := with_room(changed, number):
                return [written(taken | options, layout)]
        if steps:  # all of this kind, and the next besides
            taken |= steps[-1][0]
            run, gpus = steps[-1][1:]
    return []
