"""`trl-credit plan`: does a recipe fit, in which layout, and what does credit cost in time? By formula, in seconds.

    trl-credit plan recipes/qwen2.5-7b/dgpo.yaml --gpus 8 --gpu h100
    trl-credit plan recipes/qwen2.5-7b/dgpo.yaml --gpus 1 --gpu rtx-4090 --use_peft true

Reads the recipe and the model's config, no weights and no data, and needs no GPU. Any field of the recipe can be given
as an option.
"""

import json
import sys
from pathlib import Path

from .._util.quiet import quiet_libraries
from .._util.text import log_to_terminal, prepare_terminal, safe, safe_lines
from .._util.words import with_file_named
from .config import PlanConfig


def own_fields() -> frozenset[str]:
    """Names of the command's own settings."""
    return frozenset(PlanConfig.__dataclass_fields__)


def check_early(argv: list[str]) -> None:
    """Finds what is wrong with names, the recipe's file and the card before torch and TRL are imported.

    Raises:
        ValueError, TypeError: What is wrong.
    """
    from ..recipe.early import check_early as check_recipe
    from ..recipe.early import words_of
    from .cards import card_of

    if {"--help", "-h"} & set(argv):
        return
    if not any(word == "--config" or word.startswith("--config=") for word in argv):
        raise ValueError("Name the recipe: trl-credit plan RECIPE.yaml --gpus 8 --gpu h100.")
    check_recipe(argv, also=own_fields())
    values = words_of(argv)
    if "gpu" in values:
        card_of(values["gpu"])


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings or a model whose config cannot be read, 1 if the run does not fit."""
    argv = with_file_named(sys.argv[1:] if argv is None else argv)
    prepare_terminal()
    log_to_terminal()
    try:
        check_early(argv)
        quiet_libraries()
        from .plan import make_plan
        from .read import read

        recipe, config, file = read(argv, __doc__)
        plan = make_plan(recipe, config, file)
        text = json.dumps(plan, indent=2)
        if config.output_file is not None:
            path = Path(config.output_file).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"trl-credit plan: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    if config.json:
        print(text)
    else:
        from .report import show

        show(plan)
        if config.output_file is not None:
            print(f"Written to {safe(config.output_file)}.")
    if not (plan["fits"] or plan["close"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
