"""The `trl-credit` command."""

import argparse
import importlib
import sys

from ._util.text import prepare_terminal, safe_lines, safe_text
from ._version import __version__
from .recipe.launch import launch


def _describe(name: str) -> None:
    """Prints a method's parameters, citation and differences, which `--help` cannot show for a mapping."""
    from rich.console import Console
    from rich.table import Table

    from .methods.cards import card_of

    card = card_of(name)
    console = Console(highlight=False)
    console.print(safe_text(card.name, "bold") + safe_text(f": {card.summary}"))
    if card.formulas:
        console.print(safe_text("\n" + card.formulas), soft_wrap=True)
    if card.parameters:
        table = Table(title="\nParameters", title_justify="left", show_lines=True)
        for heading in ("name", "type", "default", "meaning"):
            table.add_column(heading, no_wrap=heading == "name")
        for parameter in card.parameters:
            table.add_row(*map(safe_text, (parameter.name, parameter.type, parameter.default, parameter.meaning)))
        console.print(table)
    else:
        console.print("\nNo parameters.")
    if card.citation:
        console.print(safe_text("\nCitation", "bold") + safe_text(f" (arXiv {card.paper_id})\n"))
        console.print(safe_text(card.citation), soft_wrap=True)
    if card.differences:
        title = "Differences from the paper and its code" if card.citation else "Notes"
        console.print(safe_text(f"\n{title}", "bold"))
        for number, difference in enumerate(card.differences, 1):
            console.print(safe_text(f"{number}. {difference}"), soft_wrap=True)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from .methods.cards import card_of
    from .methods.table import TABLE

    table = Table("method", "arXiv", "credit")
    for card in map(card_of, TABLE):
        table.add_row(*map(safe_text, (card.name, card.paper_id, card.summary)))
    console = Console()
    console.print(table)
    console.print("`trl-credit methods NAME` shows parameters, citation and differences from the paper.")
    console.print(safe_text("Methods combine: `credit: [gcpo, otb]`. `trl-credit methods mix` shows how."))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    prepare_terminal()
    parser = argparse.ArgumentParser(prog="trl-credit", description="Token-level credit assignment for TRL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "train",
        add_help=False,
        help="train a recipe; `--accelerate_config FILE_OR_NAME` and `--num_processes N` launch several processes; "
        "`--num_machines`, `--machine_rank`, `--main_process_ip` and `--main_process_port` go on to accelerate",
    )
    commands.add_parser(
        "eval",
        add_help=False,
        help="evaluate a model on AIME and other tasks, also on several processes; `eval compare RUN_A RUN_B`",
    )
    methods = commands.add_parser("methods", help="list the credit methods, or show one")
    methods.add_argument(
        "name", nargs="?", help="a method, or the path of your own class (`my_module.Class`, `FILE.py:Class`)"
    )
    commands.add_parser("inspect", add_help=False, help="show the token credit of completions: a page, a terminal view")
    commands.add_parser("compare", add_help=False, help="train a recipe with several methods and seeds, and compare")
    commands.add_parser("bench", add_help=False, help="CreditBench: does credit land on the tokens that decided?")
    commands.add_parser("advise", add_help=False, help="would token credit help this recipe, and which? minutes")
    commands.add_parser(
        "plan", add_help=False, help="does a recipe fit N GPUs, in which layout, and what does credit cost? by formula"
    )
    commands.add_parser(
        "doctor",
        add_help=False,
        help="what is installed here, what is wrong with it, and what mends it; `doctor RECIPE`",
    )
    commands.add_parser(
        "quickstart",
        add_help=False,
        help="train the embedded model with several methods and compare; `--images`: the embedded image model",
    )
    modules = {"train": "trl_credit.train", "eval": "trl_credit.evaluation.cli"}
    if argv and argv[0] in modules:  # they parse their own arguments
        try:
            launch(argv[1:], argv[0], modules[argv[0]])
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        return
    in_process = {
        "inspect": ".inspection.cli",
        "compare": ".comparison.cli",
        "bench": ".bench.cli",
        "advise": ".bench.advise",
        "plan": ".planning.cli",
        "doctor": ".doctor.cli",
        "quickstart": ".quickstart",
    }
    if argv and argv[0] in in_process:
        try:
            importlib.import_module(in_process[argv[0]], __package__).main(argv[1:])
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        return
    arguments = parser.parse_args(argv)
    try:
        _list() if arguments.name is None else _describe(arguments.name)
    except ValueError as error:
        print(f"trl-credit methods: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
