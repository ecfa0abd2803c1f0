"""`trl-credit eval`: samples a model on math problems, judges the answers and reports avg@n with its uncertainty.

`trl-credit eval compare RUN_A RUN_B` compares two runs. `trl-credit eval report RUN` judges a run again and rewrites
its report. `trl-credit eval FILE.yaml` or `--config FILE.yaml` reads settings from a YAML file. `--num_processes N` or
`--accelerate_config FILE_OR_NAME` splits the samples among processes (transformers).
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from .._util.quiet import quiet_libraries
from .._util.text import log_to_terminal, nearest, prepare_terminal, safe, safe_lines
from .._util.words import with_file_named
from .terminal import show, show_comparison


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings, data or folders, 1 if the backend cannot continue, 130 or 143
    after SIGINT or SIGTERM."""
    argv = with_file_named(sys.argv[1:] if argv is None else argv)
    prepare_terminal()
    log_to_terminal()
    logging.getLogger("trl_credit.evaluation").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    commands = {"compare": _compare, "report": _report}
    try:
        if argv and argv[0] in commands:
            commands[argv[0]](argv[1:])
        elif argv and not argv[0].startswith("-"):
            hint = nearest(argv[0], commands)
            print(f"trl-credit eval: error: unknown command {argv[0]!r}. {hint}", file=sys.stderr)
            raise SystemExit(2)
        else:
            _evaluate(argv)
    except KeyboardInterrupt as error:  # or `Interrupted`, a subclass that carries a message and an exit code
        print(f"\n{safe_lines(error)}" if str(error) else "\nStopped.", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 130)) from error


def _fail(command: str, error: Exception, status: int) -> None:
    # A ValueError concerns settings or data, so every process raises it: print it once
    if not isinstance(error, ValueError) or os.environ.get("RANK", "0") == "0":
        print(f"trl-credit {command}: error: {safe_lines(error)}", file=sys.stderr)
    raise SystemExit(status) from error


def _evaluate(argv: list[str]) -> None:
    from accelerate import PartialState

    from .._util.arguments import parse_arguments
    from .._util.files import RunFolderError
    from .backends.base import BackendError
    from .config import EvalConfig
    from .run import evaluate

    quiet_libraries()
    try:
        (config,) = parse_arguments(argv, (EvalConfig,), "trl-credit eval", __doc__)
        with _Progress() as progress:
            results = evaluate(config, progress=progress)
    except (ValueError, TypeError, OSError, ImportError, RunFolderError) as error:
        _fail("eval", error, 2)
    except BackendError as error:
        _fail("eval", error, 1)
    state = PartialState()
    if state.is_main_process:
        show(results)
        written = "results.json, samples.jsonl" + (", report.html" if config.report else "")
        print(f"{safe(config.run_folder())}: {written}")
    state.destroy_process_group()


class _Progress:
    """Shows progress: as a bar with time left and tokens in a terminal, as lines elsewhere."""

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("samples"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[tokens]} tokens"),
        )
        self.console = Console(stderr=True)
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task, self.next = None, 0.0
        return self

    def __call__(self, done: int, total: int, tokens: int) -> None:
        if self.console.is_terminal:
            if self.task is None:
                self.task = self.bar.add_task("samples", total=total, tokens=0)
                self.bar.start()
            self.bar.update(self.task, completed=done, tokens=f"{tokens:,}")
        elif done >= self.next * total:
            print(f"{done} of {total} samples made", file=sys.stderr, flush=True)
            self.next = done / total + 0.1

    def __exit__(self, *exception) -> None:
        self.bar.stop()


def _report(argv: list[str]) -> None:
    from .._util.files import RunFolderError
    from .run import judge_again

    parser = argparse.ArgumentParser(
        prog="trl-credit eval report", description="Judges and reports a finished run anew."
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    arguments = parser.parse_args(argv)
    try:
        results = judge_again(arguments.run)
    except (RunFolderError, ValueError, OSError) as error:
        _fail("eval report", error, 2)
    show(results)
    print(safe(arguments.run / "report.html"))


def _compare(argv: list[str]) -> None:
    from .._util.files import RunFolderError, write_atomically
    from .compare import compare_runs
    from .compare_page import plot_comparison, write_comparison_report

    parser = argparse.ArgumentParser(
        prog="trl-credit eval compare",
        description="Compares two finished runs on the same problems: B minus A, with bootstrap intervals.",
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of the first run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="folder of the second run")
    parser.add_argument("--output_dir", type=Path, help="default: RUN_B/compare-NAME_OF_A")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default: 0.95)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.level < 1:
        parser.error(f"--level must be between 0 and 1, got {arguments.level}")
    try:
        comparison = compare_runs(arguments.run_a, arguments.run_b, arguments.level)
        output = arguments.output_dir or arguments.run_b / f"compare-{comparison['a']['name']}"
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"`--output_dir`: cannot make the folder {output}: {error.strerror}.") from error
        write_atomically(output / "comparison.json", [json.dumps(comparison, indent=2) + "\n"])
        write_comparison_report(output / "comparison.html", comparison)
        show_comparison(comparison)
        plot_comparison(output / "comparison.png", comparison)
    except (RunFolderError, ValueError, OSError) as error:
        _fail("eval compare", error, 2)
    print(f"{safe(output)}: comparison.json, comparison.html, comparison.png")
