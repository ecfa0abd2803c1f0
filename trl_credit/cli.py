"""The `trl-credit` command."""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator

from ._text import prepare_terminal, safe_lines, safe_text
from ._version import __version__


def _describe(name: str) -> None:
    """Prints a method's parameters, citation and differences: what `--help` cannot show of a mapping."""
    from rich.console import Console
    from rich.table import Table

    from .methods import get_method_class

    method = get_method_class(name)
    console = Console(highlight=False)
    doc = inspect.getdoc(method)
    console.print(safe_text(method.name, "bold") + safe_text(f": {doc.splitlines()[0]}"))
    module_doc = inspect.getdoc(inspect.getmodule(method)) or ""
    formulas = re.search(r"\n\n((?: {4}.*\n?)+)", module_doc)
    if formulas:
        console.print(safe_text("\n" + formulas.group(1).rstrip()), soft_wrap=True)
    texts = dict(re.findall(r"^    (\w+): ((?:.|\n(?!    \w+: |\S))*)", doc, flags=re.MULTILINE))
    fields = dataclasses.fields(method)
    if fields:
        table = Table(title="\nParameters", title_justify="left", show_lines=True)
        for heading in ("name", "type", "default", "meaning"):
            table.add_column(heading, no_wrap=heading == "name")
        for field in fields:
            kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            default = "(required)" if field.default is dataclasses.MISSING else repr(field.default)
            cells = (field.name, kind, default, " ".join(texts.get(field.name, "").split()))
            table.add_row(*map(safe_text, cells))
        console.print(table)
    else:
        console.print("\nNo parameters.")
    console.print(safe_text("\nCitation", "bold") + safe_text(f" (arXiv {method.paper.id})\n"))
    console.print(safe_text(method.paper.citation), soft_wrap=True)
    if method.differences:
        console.print("\n[bold]Differences from the paper and its code[/bold]")
        for number, difference in enumerate(method.differences, 1):
            console.print(safe_text(f"{number}. {difference}"), soft_wrap=True)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from .methods import METHODS

    table = Table("method", "arXiv", "credit")
    for name, method in METHODS.items():
        table.add_row(*map(safe_text, (name, method.paper.id, inspect.getdoc(method).splitlines()[0])))
    console = Console()
    console.print(table)
    console.print("`trl-credit methods NAME` shows parameters, citation and differences from the paper.")


def _launch(argv: list[str], command: str, module: str) -> None:
    """Runs a command's module here, or on several processes if its launcher's options are given."""
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--accelerate_config")
    launcher.add_argument("--num_processes", type=int)
    launch, rest = launcher.parse_known_args(argv)
    if launch.num_processes is not None and launch.num_processes < 1:
        print(
            f"trl-credit {command}: error: `--num_processes` must be at least 1, got {launch.num_processes}.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    if launch.accelerate_config is None and launch.num_processes is None:
        importlib.import_module(module, __package__).main(rest)
        return
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    target = ["-m", f"{__package__}{module.removesuffix('.cli')}", *rest]
    options = []
    if launch.accelerate_config is not None:
        try:
            options += resolve_accelerate_config_argument(["--accelerate_config", launch.accelerate_config])
        except ValueError as error:
            print(f"trl-credit {command}: error: `--accelerate_config`: {safe_lines(error)}", file=sys.stderr)
            raise SystemExit(2) from error
    if launch.num_processes is not None:
        options += ["--num_processes", str(launch.num_processes)]
    with _exit_code():
        if launch.accelerate_config is None and not torch.accelerator.is_available():
            # accelerate would start one process, unless there is MPI
            parsed = get_args_parser().parse_args(
                ["--standalone", "--nproc_per_node", str(launch.num_processes), *target[:2]]
            )
            parsed.training_script_args = rest  # given to the parser, they would be taken for its own, abbreviated
            torchrun(parsed)
        else:
            launch_command(launch_command_parser().parse_args([*options, *target]))


@contextlib.contextmanager
def _exit_code() -> Iterator[None]:
    """Ends with the exit code of the process that failed first, which has said why, without the launcher's traceback."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        yield
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 128 - code) from error
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ImportError as error:  # DeepSpeed, for a configuration that needs it
        print(f"trl-credit: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    prepare_terminal()
    parser = argparse.ArgumentParser(prog="trl-credit", description="Token-level credit assignment for TRL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "train",
        add_help=False,
        help="train a recipe; `--accelerate_config FILE_OR_NAME` and `--num_processes N` launch several processes",
    )
    commands.add_parser(
        "eval",
        add_help=False,
        help="evaluate a model on AIME and other tasks, on several processes likewise; `eval compare RUN_A RUN_B`",
    )
    methods = commands.add_parser("methods", help="list the credit methods, or show one of them")
    methods.add_argument(
        "name", nargs="?", help="a method, or the path of your own class (`my_module.Class`, `FILE.py:Class`)"
    )
    commands.add_parser("inspect", add_help=False, help="show the token credit of completions: a page, a terminal view")
    commands.add_parser("compare", add_help=False, help="train a recipe with several methods and seeds, and compare")
    commands.add_parser("bench", add_help=False, help="CreditBench: does credit land on the tokens that decided?")
    commands.add_parser("quickstart", add_help=False, help="train the embedded model with every method and compare")
    modules = {"train": ".train", "eval": ".evaluation.cli"}
    if argv and argv[0] in modules:  # their arguments are their own
        try:
            _launch(argv[1:], argv[0], modules[argv[0]])
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        return
    in_process = {
        "inspect": ".inspection.cli",
        "compare": ".comparison.cli",
        "bench": ".bench.cli",
        "quickstart": ".quickstart.run",
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
