"""Writes and prints the results of a comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._util.files import write_atomically
from .._util.text import safe, safe_text
from .plan import read_plan
from .results import headings, read_runs, rows_of, sentences, summarize, to_markdown


def show(comparison: Mapping[str, Any]) -> None:
    """Prints the table and sentences."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table()
    for key, title in headings(comparison).items():
        table.add_column(
            safe_text(safe(title)),
            justify="left" if key in ("quantity", "method", "verdict") else "right",
            overflow="fold",
        )
    rows = rows_of(comparison)
    for place, row in enumerate(rows):
        first = not place or rows[place - 1]["quantity"] != row["quantity"]
        last = place + 1 == len(rows) or rows[place + 1]["quantity"] != row["quantity"]
        cells = ["" if not first else row["quantity"], *list(row.values())[1:]]
        table.add_row(*(safe_text(safe(cell)) for cell in cells), end_section=last)
    console.print(table)
    for text in [*sentences(comparison), *comparison["notes"]]:
        console.print(safe_text(safe(text)), soft_wrap=True)


def write_results(output_dir: Path) -> dict[str, Any]:
    """Computes statistics from the runs on disk, writes tables, pictures and page, and prints the results.

    Raises:
        RunFolderError: The folder has no comparison, or no finished run.
        ValueError: A package is missing.
    """
    from .page import plot_learning_curves, write_learning_report

    plan = read_plan(output_dir)
    comparison = summarize(plan, read_runs(output_dir, plan))
    write_atomically(output_dir / "comparison.json", [json.dumps(comparison, indent=1, allow_nan=False) + "\n"])
    write_atomically(output_dir / "comparison.md", [to_markdown(comparison)])
    for suffix in ("png", "svg"):
        plot_learning_curves(output_dir / f"curves.{suffix}", comparison)
    write_learning_report(output_dir / "comparison.html", comparison)
    show(comparison)
    print(f"{safe(output_dir)}: comparison.html, comparison.md, comparison.json, curves.png, curves.svg")
    return comparison
