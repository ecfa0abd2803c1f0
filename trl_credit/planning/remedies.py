"""What to change so that a run fits."""

from collections.abc import Iterator
from dataclasses import replace

from .cards import Card
from .held import held
from .layouts import Layout, candidates
from .run import Run


# Beyond so many GPUs no remedy is looked for
_MOST_GPUS = 512


def changes(run: Run, gpus: int, per_machine: int) -> Iterator[tuple[str, Run, int]]:
    """Changes of a run that save memory, each by itself: what to write, the run and its GPUs."""
    if not run.batch.checkpointing:
        yield "--gradient_checkpointing true", replace(run, batch=replace(run.batch, checkpointing=True)), gpus
    rows = run.batch.rows
    while rows > 1:
        rows //= 2
        factor = run.batch.rows / rows
        words = f"--per_device_train_batch_size {rows} with {factor:g} times the accumulation and steps per generation"
        yield words, replace(run, batch=replace(run.batch, rows=rows)), gpus
    if run.engine == "colocate":
        if not run.sleeps:
            yield "--vllm_enable_sleep_mode true", replace(run, sleeps=True), gpus
        yield "--vllm_mode server with GPUs of its own", replace(run, engine="server", sleeps=False), gpus
    more = max(gpus, per_machine // 2)
    while more < _MOST_GPUS:
        more *= 2
        yield f"--gpus {more}", run, more


def remedies(run: Run, gpus: int, per_machine: int, card: Card, forced: Layout | None = None) -> list[str]:
    """What to change so that a run fits with room to spare: the least change of each kind. If none is enough by itself, they
    are taken together, one after the other.

    Args:
        run: The run.
        gpus: All GPUs.
        per_machine: GPUs of a machine.
        card: The GPU.
        forced: The layout, if it may not be another.
    """

    def with_room(run: Run, gpus: int) -> str | None:
        among = (forced,) if forced else candidates(gpus, run.trained.adapters, run.trained.bits is not None)
        sizes = ((layout, held(run, layout, gpus, card)) for layout in among)
        return next((layout.name for layout, size in sizes if size.fits and not size.close), None)

    found: dict[str, str] = {}
    last: dict[str, str] = {}
    for words, changed, number in changes(run, gpus, per_machine):
        kind = words.split()[0]
        last[kind] = words
        if kind not in found and (layout := with_room(changed, number)):
            found[kind] = f"{words} ({layout})"
    if found:
        return list(found.values())
    taken: dict[str, str] = {}
    for kind in last:
        if kind == "--vllm_mode":  # vLLM elsewhere need not sleep
            taken.pop("--vllm_enable_sleep_mode", None)
        steps = [step for step in changes(run, gpus, per_machine) if step[0].split()[0] == kind]
        for words, changed, number in steps:
            if layout := with_room(changed, number):
                return [f"{', '.join([*taken.values(), words])} ({layout})"]
        if steps:  # all of this kind, and the next besides
            taken[kind], run, gpus = last[kind], *steps[-1][1:]
    return []
