"""`trl-credit bench --true`: token credit against the true advantages of tokens.

    trl-credit bench --true
    trl-credit bench --true --style letters --methods gcpo otb
    trl-credit bench --true --recipe recipes/quickstart.yaml --every step --stderr 0.05
    trl-credit bench --true --values outputs/bench-true --methods '{"method": "gcpo", "top_fraction": 0.1}'

A token's true advantage is V(prefix with the token) - V(prefix), where V is the mean reward of the policy's continuations.
They are sampled here, for any model and verifiable data, and every method's token advantages and gradients are compared with
theirs. Writes bench_true.json, bench_true.md, groups.parquet and values.parquet. A stopped run continues with the same
command. `--config FILE` reads settings from a YAML file, or is a recipe.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..._util.quiet import quiet_libraries
from ..._util.text import log_to_terminal, prepare_terminal, safe, safe_lines
from ..._util.words import with_file_named


PROGRAM = "trl-credit bench --true"


def main(
    argv: list[str],
    program: str = PROGRAM,
    description: str | None = __doc__,
    then: Callable[[dict[str, Any], Any], None] = lambda results, config: None,
    settings_class: str = "TrueConfig",
) -> None:
    """Runs the command. Exits with 2 for bad settings, data or models, and with 1 if the backend cannot continue.

    Args:
        argv: The command line's words.
        program: Name of the command.
        description: Its help.
        then: Called with the results and the settings.
        settings_class: Name of the settings' class in `config.py`, which is not imported for `--help`.
    """
    argv = with_file_named(argv)
    prepare_terminal()
    log_to_terminal()
    if not any(word.startswith(("--model", "--recipe", "--config", "--dataset_name", "--values")) for word in argv):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..._util.arguments import parse_arguments
    from ..._util.files import RunFolderError
    from ...evaluation.backends.base import BackendError
    from ...extras.reward_guard import reported
    from ...recipe.names import parameter_hint
    from . import config as module
    from .report import show
    from .run import run

    quiet_libraries()
    start = time.perf_counter()
    try:
        # Every setting has a default
        settings = getattr(module, settings_class)
        argv = _with_recipe(argv) or ["--output_dir", settings.output_dir]
        (config,) = parse_arguments(
            argv, (settings,), program, description, hint=partial(parameter_hint, field="methods")
        )
        if config.model == module.EMBEDDED:
            import torch

            torch.set_num_threads(1)  # fastest for such a small model
        with reported(program), _Progress() as progress:
            results = run(config, progress)
    except (ValueError, TypeError, OSError, ImportError, RunFolderError) as error:
        _fail(error, 2, program)
    except BackendError as error:
        _fail(error, 1, program)
    show(results)
    print(
        f"{safe(config.output_dir)}: bench_true.json, bench_true.md, "
        + ("" if config.values else "groups.parquet, values.parquet, ")
        + f"after {time.perf_counter() - start:.0f} s."
    )
    then(results, config)


def _fail(error: BaseException, code: int, program: str) -> None:
    print(f"{program}: error: {safe_lines(error)}", file=sys.stderr)
    raise SystemExit(code) from error


def _with_recipe(argv: list[str]) -> list[str]:
    """`--config RECIPE` is `--recipe RECIPE`."""
    from ..._util.yaml import read_mapping

    argv = [part for text in argv for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    place = argv.index("--config") if "--config" in argv[:-1] else None
    file = argv[place + 1] if place is not None else None
    if file and Path(file).is_file() and "model_name_or_path" in read_mapping(file, {}, "config file"):
        argv[place] = "--recipe"
    return argv


class _Progress:
    """Shows progress: as bars in a terminal, as lines elsewhere."""

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks, self.last = {}, 0.0
        self.bar.start()
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            if what not in self.tasks:
                self.tasks[what] = self.bar.add_task(what, total=total)
            self.bar.update(self.tasks[what], completed=done, total=total)
        elif time.monotonic() - self.last > 20:  # more continuations may be asked for, so there is no tenth part
            self.last = time.monotonic()
            print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

    def __exit__(self, *exception) -> None:
        self.bar.stop()
