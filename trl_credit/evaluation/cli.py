"""`trl-credit eval`: samples a model on mathematical problems, judges the answers and reports avg@n with its uncertainty.

`trl-credit eval compare RUN_A RUN_B` compares two runs, `trl-credit eval report RUN` judges and reports a run anew.
Settings can be in a YAML file (`--config FILE`); `--num_processes N` or `--accelerate_config FILE_OR_NAME` share the samples
among processes (transformers).
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from .._text import log_to_terminal, prepare_terminal, safe, safe_lines, safe_text
from ..methods.base import nearest


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exit status 2 for what is wrong with settings, data or the folder, 1 for a backend that cannot go
    on, 130 and 143 after SIGINT and SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
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
    except KeyboardInterrupt as error:  # `Interrupted` is one, and knows more
        print(f"\n{safe_lines(error)}" if str(error) else "\nStopped.", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 130)) from error


def _fail(command: str, error: Exception, status: int) -> None:
    # What is wrong with settings or data is so on every process
    if not isinstance(error, ValueError) or os.environ.get("RANK", "0") == "0":
        print(f"trl-credit {command}: error: {safe_lines(error)}", file=sys.stderr)
    raise SystemExit(status) from error


def _evaluate(argv: list[str]) -> None:
    import datasets
    from accelerate import PartialState
    from transformers.utils import logging as transformers_logging

    from ..train import parse_arguments
    from .backends.base import BackendError
    from .config import EvalConfig
    from .run import evaluate
    from .store import RunFolderError

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        (config,) = parse_arguments(argv, "trl-credit eval", (EvalConfig,), __doc__, "config file")
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
    """Samples, time and tokens per second: a bar on a terminal, lines elsewhere."""

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


def show(results: dict[str, Any]) -> None:
    """Prints the results as a table."""
    from rich.console import Console
    from rich.table import Table

    parts = dict(results["tasks"])
    if len(parts) > 1:
        parts["mean of tasks"] = results["overall"]
    n = results["settings"]["n"]
    console = Console()

    def say(text: str, style: str = "") -> None:
        console.print(safe_text(text, style), soft_wrap=True)

    say(f"{safe(results['model'])}: {n} samples per problem")
    table = Table("")
    for name in parts:
        table.add_column(safe_text(safe(name)), justify="right", overflow="fold")

    def row(heading: str, value, **style) -> None:
        table.add_row(heading, *(value(part) for part in parts.values()), **style)

    def percent(value: float, error: float | None = None) -> str:
        return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")

    def problems(part: dict[str, Any]) -> str:
        if "problems" not in part:
            return ""
        judged = f"{part['problems'] - part['unjudged']} of " if part["unjudged"] else ""
        return f"{judged}{part['problems']}"

    row("problems", problems)
    row(f"avg@{n}", lambda part: percent(part["avg"], part["stderr"]), style="bold", end_section=True)
    ks = list(results["overall"]["pass"])
    for kind in ("pass", "maj"):
        for k in ks[1:]:  # at 1 both are avg@n
            row(f"{kind}@{k}", lambda part, kind=kind, k=k: percent(part[kind][k]), end_section=k == ks[-1])
    for rate in ("truncated", "unparsed", "empty"):
        row(rate, lambda part, rate=rate: f"{percent(part[rate])} %")
    if any(part["tokens"] for part in parts.values()):
        for heading, key in (("mean tokens", "mean"), ("10 % below", "p10"), ("90 % below", "p90")):
            row(heading, lambda part, key=key: f"{part['tokens'][key]:.0f}" if part["tokens"] else "unknown")
    console.print(table)
    console.print("avg, pass and maj in percent; ± is the standard error clustered by problem.", style="dim")
    for name, part in results["tasks"].items():
        if part["stderr"] == 0:
            say(
                f"{safe(name)}: all problems have the same share of right samples, so a standard error of 0 says nothing."
            )
        left_out = [str(row["problem"]) for row in part["per_problem"] if row["correct"] is None]
        if left_out:
            say(f"{safe(name)}: left out, as their answers cannot be verified against: {_first(left_out)}.")
        if part["unverified"]:
            say(f"{safe(name)}: verification timed out or failed on {part['unverified']} samples.")
    for note in results["settings"]["notes"]:
        say(f"Note: {safe(note)}.")
    session = results["session"]
    if session["tokens_per_second"] is not None:
        console.print(
            f"{session['tokens_per_second']:,.0f} tokens/s in the main process, over the last {session['seconds']:.0f} s.",
            style="dim",
        )


def _first(numbers: list[str], most: int = 20) -> str:
    return ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def _report(argv: list[str]) -> None:
    from .run import judge_again
    from .store import RunFolderError

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
    from ..report.comparison import plot_comparison, write_comparison_report
    from .compare import compare_runs
    from .store import RunFolderError, write_atomically

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


def show_comparison(comparison: dict[str, Any]) -> None:
    """Prints a comparison as tables."""
    from rich.console import Console
    from rich.table import Table

    level = f"{100 * comparison['overall']['level']:g} %"
    console = Console()

    def say(text: str, style: str = "") -> None:
        console.print(safe_text(text, style), soft_wrap=True)

    for side in ("a", "b"):
        say(f"{side.upper()}: {safe(comparison[side]['path'])}")
    table = Table()
    table.add_column("avg@n in percent", overflow="fold")
    for heading in ("A", "B", f"B - A ({level} interval)", "p", "up", "down"):
        table.add_column(heading, justify="right")
    parts = dict(comparison["tasks"])
    if len(parts) > 1:
        parts["mean of tasks"] = comparison["overall"]
    for name, part in parts.items():
        moved = [row["moved"] for row in part.get("per_problem", [])]
        interval = "" if part["low"] is None else f" ({100 * part['low']:+.1f} to {100 * part['high']:+.1f})"
        table.add_row(
            safe_text(safe(name)),
            f"{100 * part['a_avg']:.1f}",
            f"{100 * part['b_avg']:.1f}",
            f"{100 * part['difference']:+.1f}{interval}",
            f"{part['p_value']:.3g}" if "p_value" in part else "",
            *(str(moved.count(direction)) if moved else "" for direction in ("up", "down")),
        )
    console.print(table)
    for name, part in comparison["tasks"].items():
        for direction in ("up", "down"):
            numbers = [str(row["problem"]) for row in part["per_problem"] if row["moved"] == direction]
            if numbers:
                say(f"{safe(name)}: {direction}: problems {_first(numbers)}")
        if part["low"] is not None and part["low"] == part["high"]:
            say(f"{safe(name)}: all problems differ by the same, so the interval says nothing.")
    if comparison["left_out"]:
        say(f"Only in one of the runs, and left out: {safe(', '.join(comparison['left_out']))}.")
    if comparison["differences"]:
        console.print("The runs differ in more than the model:", style="bold")
        for row in comparison["differences"]:
            say(f"  {safe(row['field'])}: {row['a']!r} -> {row['b']!r}")
