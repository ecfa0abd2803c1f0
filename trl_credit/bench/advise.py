"""`trl-credit advise`: would token credit help this recipe, and which?

    trl-credit advise recipes/my_recipe.yaml
    trl-credit advise recipes/my_recipe.yaml --num_prompts 48 --methods gcpo otb

Takes minutes, on the recipe's own model and data: samples completions of a few dozen prompts, estimates the true advantage
of every step by continuing from it, and compares the gradients that the recipe's method and all others would make with the
true one. Recommends a method only if the data carry it. Options are those of `trl-credit bench --true`. With
`--values FOLDER`, the folder of an earlier advice, other methods are scored on the same completions.
"""

import sys
from pathlib import Path
from typing import Any

from .true import cli


PROGRAM = "trl-credit advise"


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings, data or models, and with 1 if the backend cannot continue."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        argv = ["--recipe", *argv]
    if not argv:
        print(f"{PROGRAM}: error: name a recipe: {PROGRAM} RECIPE.yaml", file=sys.stderr)
        raise SystemExit(2)
    cli.main(argv, PROGRAM, __doc__, show_advice, "AdviceConfig")


def show_advice(results: dict, config: Any) -> None:
    """Prints the advice, and writes it to advice.json and advice.md."""
    import json

    from rich.console import Console

    from .._util.files import write_atomically
    from .._util.text import safe, safe_text
    from .true.advice import advise

    advice, folder = advise(results, str(config.values or config.output_dir)), Path(config.output_dir)
    write_atomically(folder / "advice.json", [json.dumps(advice.to_dict(), indent=2) + "\n"])
    console = Console(highlight=False)
    console.print(safe_text(safe(advice.headline), "bold"))
    lines = ["# Advice", "", f"**{safe(advice.headline)}**", ""]
    for title, sentences in (("Why", advice.reasons), ("But", advice.cautions), ("Next", advice.next)):
        if sentences:
            console.print(f"{title}:")
            lines += [f"## {title}", "", *(f"- {safe(text)}" for text in sentences), ""]
        for text in sentences:
            console.print(safe_text(safe(f"- {text}")))
    write_atomically(folder / "advice.md", ["\n".join(lines)])
