"""The report, for the terminal and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .._util.text import safe, safe_text
from .facts import Facts
from .hub import Place
from .needs import Needs
from .problem import Problem


# Required packages that are listed even if nothing is wrong with them
_SHOWN = ("trl", "transformers", "torch", "peft", "accelerate", "datasets", "math-verify")


def to_dict(
    facts: Facts, needs: Needs, places: Sequence[Place], problems: Sequence[Problem], hub: str | None = None
) -> dict[str, Any]:
    """The report as JSON.

    Args:
        facts: The environment.
        needs: What was asked for.
        places: Where its models and data are.
        problems: What is wrong.
        hub: What the hub said, empty if it answered; `None` if it was not asked.
    """
    return {
        **facts.to_dict(),
        "needs": asdict(needs) if needs.of else None,
        "places": [asdict(place) for place in places],
        "hub_reachable": None if hub is None else hub == "",
        "problems": [asdict(problem) for problem in problems],
        "works": not any(problem.needed for problem in problems),
    }


def show(
    facts: Facts, needs: Needs, places: Sequence[Place], problems: Sequence[Problem], hub: str | None = None
) -> None:
    """Prints the report. Arguments as of [`to_dict`]."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("package", "installed", "supported", "tested", "for", box=None, pad_edge=False)
    for package in facts.packages.values():
        wrong = package.installed is None or not package.fits
        shown = package.name in _SHOWN or (package.required and wrong)
        if shown or package.name in needs.packages or (not package.required and (package.installed or package.extra)):
            style = "red" if wrong and (package.required or package.name in needs.packages) else ""
            row = (
                package.name,
                package.installed or "-",
                package.supported or "any",
                package.tested or "",
                package.use,
            )
            table.add_row(*(safe_text(safe(cell), style if place == 1 else "") for place, cell in enumerate(row)))
    console.print(table)
    console.print()
    details = Table(box=None, pad_edge=False, show_header=False)
    for name, text in lines(facts, needs, places, hub):
        details.add_row(safe_text(name), safe_text(safe(text)))
    console.print(details)
    console.print()
    for problem in problems:
        console.print(
            safe_text(f"{'Wrong' if problem.needed else 'Note'}: {safe(problem.what)}", "bold red" * problem.needed)
        )
        for word, text in (("why", problem.why), ("mend", problem.mend)):
            if text:
                console.print(safe_text(f"  {word}: {safe(text)}"), soft_wrap=True)
    console.print(safe_text(verdict(needs, problems), "bold"))


def verdict(needs: Needs, problems: Sequence[Problem]) -> str:
    """The last line."""
    wrong, of = sum(problem.needed for problem in problems), needs.of or "trl-credit"
    if wrong:
        return f"{safe(of)} cannot run here: {wrong} thing{'s' * (wrong > 1)} to mend."
    if needs.of:
        return f"Nothing was found that keeps {safe(of)} from running here."
    return "Nothing is wrong." if not problems else "trl-credit runs here. See the notes for what does not."


def lines(facts: Facts, needs: Needs, places: Sequence[Place], hub: str | None) -> Iterator[tuple[str, str]]:
    """Lines on everything but packages, each with its name."""
    machine, torch = facts.machine, facts.torch.value or {}
    yield "trl-credit", facts.version
    yield "Python", f"{machine.python}, {machine.system}"
    yield (
        "processor",
        f"{machine.cores} cores" + (f", {machine.memory_gib} GiB of memory" if machine.memory_gib else ""),
    )
    if facts.torch.error is not None:
        yield "torch", f"does not start: {facts.torch.error}"
    else:
        built = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}" if torch["hip"] else "no CUDA"
        yield (
            "torch",
            f"{torch['version']}, built with {built}" + (f", NCCL {torch['nccl']}" if torch.get("nccl") else ""),
        )
    yield "driver", _driver(facts)
    for gpu in torch.get("gpus", []):
        if gpu["error"] is None:
            bf16 = "bfloat16" if gpu["bf16"] else "no bfloat16"
            memory = f"{gpu['gib']} GiB ({gpu['free_gib']} free)"
            yield f"GPU {gpu['index']}", f"{gpu['name']}, {memory}, compute capability {gpu['capability']}, {bf16}"
        else:
            yield f"GPU {gpu['index']}", f"does not compute: {gpu['error']}"
    if not torch.get("gpus"):
        yield "GPU", f"none for CUDA, but {torch['other']}" if torch.get("other") else "none"
    yield (
        "compilers",
        ", ".join((machine.compiler or "no C++ compiler", f"nvcc {machine.nvcc}" if machine.nvcc else "no nvcc"))
        + ("" if machine.headers else ", no Python headers"),
    )
    if facts.ops:
        yield "DeepSpeed ops", _ops(facts.ops)
    home = torch.get("cuda_home")
    ninja = "ninja" if torch.get("ninja") else "no ninja"
    yield "CUDA toolkit", f"{home or 'none (CUDA_HOME)'}, {ninja}; DeepSpeed needs them only to offload the optimizer"
    if machine.shm_gib is not None:
        yield "/dev/shm", f"{machine.shm_gib} GiB"
    yield "free", ", ".join(f"{free} GiB for {name}" for name, free in machine.disks.items()) or "not known"
    state = machine.hub
    if "error" in state:
        yield "hub", f"huggingface_hub does not start: {state['error']}"
    elif state:
        access = "a token" if state["token"] else "no token"
        asked = {None: "not asked (--hub)", "": "answers"}.get(hub, f"does not answer: {hub}")
        yield "hub", f"{state['address']}, {'offline' if state['offline'] else asked}, {access}, cache {state['cache']}"
    for name, value in machine.variables.items():
        yield name, value
    for name, answer in facts.imports.items():
        if answer.error is not None:
            yield f"import {name}", answer.error
    if needs.of:
        yield "asked", needs.of + (f", started by {needs.launcher}" if needs.launcher else "")
        wanted = [*(f"{needs.gpus} GPU{'s' * (needs.gpus > 1)}" for _ in range(needs.gpus > 0)), *needs.packages]
        yield "needs", ", ".join(wanted) or "nothing beyond trl-credit"
    for place in places:
        yield place.field, f"{place.name}: {place.state}" + (f" ({place.told})" if place.told else "")


def _driver(facts: Facts) -> str:
    machine = facts.machine
    if machine.driver_error is not None:
        return f"nvidia-smi: {machine.driver_error}"
    if machine.driver:
        return f"NVIDIA {machine.driver}, {len(machine.cards)} card{'s' * (len(machine.cards) > 1)}"
    return "not known (no nvidia-smi)" if facts.gpus else "no NVIDIA driver"


def _ops(ops: dict[str, str]) -> str:
    """Names by state."""
    states = {state: [name for name in ops if ops[name] == state] for state in dict.fromkeys(ops.values())}
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in sorted(states.items()))
