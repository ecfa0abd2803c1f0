"""Writes and prints the results of a comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._util.files import write_atomically
from .._util.text import safe, safe_text
from .plan import read_plan
from .results import headings, markdown_row, read_runs, rows_of, sentences, summarize, to_markdown
from .tuning import sentences_of, table_of


def show(comparison: Mapping[str, Any]) -> None:
    """Prints the table and sentences."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if comparison.get("tuning"):
        columns, tuned = table_of(comparison["tuning"])
        table = Table(title="Tuning", title_justify="left")
        for place, title in enumerate(columns):
            table.add_column(safe_text(safe(title)), justify="right" if place else "left", overflow="fold")
        for row in tuned:
            table.add_row(*(safe_text(safe(cell)) for cell in row))
        console.print(table)
        for text in sentences_of(comparison["tuning"]):
            console.print(safe_text(safe(text)), soft_wrap=True)
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


def _tuning_markdown(comparison: Mapping[str, Any]) -> str:
    if not comparison.get("tuning"):
        return ""
    columns, rows = table_of(comparison["tuning"])
    lines = [markdown_row(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    lines += ["", *(f"- {safe(text)}" for text in sentences_of(comparison["tuning"]))]
    return "\n".join(["", "## Tuning", "", *lines, ""])


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
    write_atomically(output_dir / "comparison.md", [to_markdown(comparison), _tuning_markdown(comparison)])
    for suffix in ("png", "svg"):
        plot_learning_curves(output_dir / f"curves.{suffix}", comparison)
    write_learning_report(output_dir / "comparison.html", comparison)
    show(comparison)
    print(f"{safe(output_dir)}: comparison.html, comparison.md, comparison.json, curves.png, curves.svg")
    return comparison
