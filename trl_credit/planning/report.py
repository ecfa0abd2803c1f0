"""Shows a plan in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._util.text import safe_text
from ..report import page as pages


if TYPE_CHECKING:
    from rich.console import Console


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    return pages.duration(seconds) if seconds >= 1 else f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def verdict(plan: Mapping[str, Any]) -> str:
    """Whether the run fits, in a sentence."""
    name, memory = plan["card"]["name"], gigabytes(plan["card"]["memory"])
    gpus = f"{plan['gpus']} x {name} of {memory}"
    if plan["close"]:
        words = f"{gigabytes(abs(plan['left']))} of each GPU {'are left' if plan['fits'] else 'lack'}"
        return f"Too close for an estimate on {gpus} with the layout {plan['layout']}: {words}."
    if plan["fits"]:
        return f"Fits on {gpus} with the layout {plan['layout']}: {gigabytes(plan['left'])} of each GPU are left."
    lacks = [f"each GPU lacks {gigabytes(-plan['left'])}"] if plan["left"] < 0 else []
    if not plan["engine_fits"]:
        own = "its GPUs do not" if plan["engine"]["mode"] == "server" else "its share does not"
        lacks.append(f"vLLM does not start, because {own} hold the model and the cache of one sequence")
    return f"Does not fit on {gpus} with the layout {plan['layout']}: {', and '.join(lacks)}."


def _words(layout: Mapping[str, Any]) -> str:
    return " (too close)" if layout["close"] else "" if layout["fits"] else " (no)"


def show(plan: Mapping[str, Any]) -> None:
    """Prints a plan."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)

    def say(line: str = "", style: str = "") -> None:
        console.print(safe_text(line, style), soft_wrap=True)

    model = plan["model"]
    trained = "" if model["trained"] == model["parameters"] else f", {_count(model['trained'])} of them trained"
    say(
        f"{model['name']}: {_count(model['parameters'])} parameters{trained}. An estimate by formula; nothing was run.\n"
    )
    say(verdict(plan), "bold")
    say(
        f"{plan['completions']['per_update']} completions per update, {plan['completions']['per_rollout']} per rollout.\n"
    )
    table = Table(f"each GPU holds at the peak, in the {plan['peak']}", "size", show_footer=False)
    for part, size in plan["memory"].items():
        table.add_row(safe_text(part), safe_text(gigabytes(size)))
    table.add_row(safe_text("left", "bold"), safe_text(gigabytes(plan["left"]), "bold"))
    console.print(table)
    both = ", ".join(f"{gigabytes(size)} {words}" for words, size in plan["activations"].items())
    say(f"Activations: {both}; the recipe is {'with' if plan['checkpointing'] else 'without'} it.")
    found = [f"{name} {gigabytes(each['left'])}{_words(each)}" for name, each in plan["layouts"].items()]
    say(f"Left by layout: {', '.join(found)}.\n")
    if plan["seconds"]:
        _show_times(plan, console)
    if plan["fits"] or plan["close"]:
        say("Launch:", "bold")
        say(f"  {plan['launch']}\n")
    if plan["remedies"]:
        words = "There is room to spare with" if plan["close"] else "It would fit with"
        say(f"{words}{' one of' * (len(plan['remedies']) > 1)}:", "bold")
        for remedy in plan["remedies"]:
            say(f"  {remedy}")
        say()
    elif not plan["fits"]:
        say(
            "No options that are tried here make it fit. Take LoRA (`use_peft`), shorter completions or a smaller model.\n"
        )
    say("Assumed, not measured:", "bold")
    for note in plan["notes"]:
        say(f"- {note}")


def _show_times(plan: Mapping[str, Any], console: "Console") -> None:
    from rich.table import Table

    seconds = {part: value for part, value in plan["seconds"].items() if value}
    total = sum(seconds.values())
    table = Table("an update and its share of the rollout", "time", "share")
    for part, value in seconds.items():
        table.add_row(safe_text(part), duration(value), f"{value / total:.1%}")
    console.print(table)
    credit = plan["credit"]
    words = f"adds {credit['of_update']:.1%} to TRL's update and {credit['of_step']:.1%} to the whole step"
    console.print(safe_text(f"Credit ({credit['method']}) {words}.\n"), soft_wrap=True)
