"""Report and picture of a paired comparison of two evaluations."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._util.text import without_folders
from ..report.figure import new_figure, plain, save, tidy
from ..report.page import finite, percent, points, write_page
from . import charts


# Settings that may differ: a preset acts through other settings, and a seed only draws other samples
_EXPECTED = {"versions", "preset", "seed"}


def write_comparison_report(path: Path, comparison: dict) -> None:
    """Writes a self-contained HTML file that shows how two evaluations differ."""
    tasks = [
        {"name": name, "metrics": metrics, "chart": charts.difference_chart(name, metrics.get("per_problem") or [])}
        for name, metrics in (comparison.get("tasks") or {}).items()
    ]
    overall = comparison.get("overall") or {}
    columns = [*tasks, {"name": "overall", "metrics": overall}] if len(tasks) > 1 else tasks
    differences = comparison.get("differences") or []
    write_page(
        path,
        __package__,
        "comparison",
        a=without_folders(comparison.get("a") or {}),
        b=without_folders(comparison.get("b") or {}),
        headline=headline(comparison),
        left_out=comparison.get("left_out") or [],
        tasks=tasks,
        columns=columns,
        level=percent(_level(comparison), digits=0),
        flagged=[without_folders(item) for item in differences if changes_sampling(item)],
        expected=[without_folders(item) for item in differences if not changes_sampling(item)],
        moved=_moved(tasks),
        interval_bar=charts.interval_bar,
    )


def headline(comparison: Mapping[str, Any]) -> str:
    """Sums up the comparison in one sentence."""
    tasks = comparison.get("tasks") or {}
    overall = comparison.get("overall") or (next(iter(tasks.values())) if len(tasks) == 1 else {})
    difference, low, high = (overall.get(key) for key in ("difference", "low", "high"))
    if not finite(difference):
        return "The runs cannot be compared: they have no problem in common that both were judged on."
    if not finite(low) or not finite(high):
        return f"B minus A is {points(difference)} points, without an interval."
    level = percent(_level(comparison), digits=0)
    if low > 0:
        return f"B is better by {100 * difference:.1f} points ({level} interval {100 * low:.1f} to {100 * high:.1f})."
    if high < 0:
        return (
            f"A is better by {-100 * difference:.1f} points ({level} interval {-100 * high:.1f} to {-100 * low:.1f})."
        )
    interval = f"{level} interval {points(low)} to {points(high)}"
    return f"No difference beyond noise: B minus A is {points(difference)} points ({interval})."


def changes_sampling(difference: Mapping[str, Any]) -> bool:
    """True if a setting that differs could itself explain different results.

    Args:
        difference: One of the `differences` of `trl_credit.evaluation.compare_runs`.
    """
    parts = str(difference.get("field", "")).split(".")
    # The problems are known to be the same, wherever they were loaded from
    return parts[0] not in _EXPECTED and not (parts[0] == "tasks" and parts[-1] == "source")


def plot_comparison(path: Path, comparison: dict) -> None:
    """Draws each problem's difference with its interval, sorted, one panel per task.

    Args:
        path: A `.png` or `.svg` file.
        comparison: Result of `trl_credit.evaluation.compare_runs`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    tasks = [(name, _drawable(metrics)) for name, metrics in (comparison.get("tasks") or {}).items()]
    tasks = [(name, rows) for name, rows in tasks if rows] or [("no problems in common", [])]
    most = max(len(rows) for _, rows in tasks)
    width = min(max(8.0, 1.6 + 0.19 * most), 14.0)
    figure = new_figure(width, 1.1 + 3.4 * len(tasks))
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    kinds = {"up": ("#0a66a8", "^", "B better"), "down": ("#c2560c", "v", "A better"), "same": ("#77808a", "o", "same")}
    for axis, (name, rows) in zip(figure.subplots(len(tasks), 1, squeeze=False)[:, 0], tasks, strict=True):
        small = len(rows) > 150
        for kind, (colour, marker, _) in kinds.items():
            chosen = [(place, row) for place, row in enumerate(rows) if _kind(row) == kind]
            bars = [(place, row) for place, row in chosen if finite(row.get("low")) and finite(row.get("high"))]
            axis.vlines([place for place, _ in bars], [100 * row["low"] for _, row in bars],
                        [100 * row["high"] for _, row in bars], color=colour, linewidth=0.6 if small else 1.2,
                        alpha=0.6)  # fmt: skip
            axis.plot([place for place, _ in chosen], [100 * row["difference"] for _, row in chosen], marker,
                      color=colour, markersize=2.5 if small else 5, linestyle="none")  # fmt: skip
        axis.axhline(0, color="#1c2126", linewidth=0.8)
        axis.set_xlim(-0.8, max(len(rows), 1) - 0.2)
        axis.set_ylabel("B minus A, points")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0"))
        tidy(axis, "y")
        # Label every problem only if the numbers stay readable
        if len(rows) <= 70:
            axis.set_xticks(
                range(len(rows)), [str(row["problem"]) for row in rows], fontsize=7 if len(rows) > 40 else 8
            )
            axis.set_xlabel("problem, sorted by difference")
            if max((len(str(row["problem"])) for row in rows), default=0) > 2 and len(rows) > 30:
                axis.tick_params(axis="x", rotation=90)
        else:
            axis.set_xticks([])
            axis.set_xlabel(f"{len(rows)} problems, sorted by difference")
        axis.set_title(plain(name), fontsize=10, loc="left")
    figure.suptitle("\n".join(textwrap.wrap(headline(comparison), int(11 * width))), fontsize=11, x=0.01, ha="left")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
        for colour, marker, label in kinds.values()
    ]
    runs = [_short(f"{side.upper()}: {_name(comparison.get(side) or {})}", int(8 * width)) for side in "ab"]
    figure.legend(handles=handles, title="\n".join(map(plain, runs)), title_fontsize=8, fontsize=8, frameon=False, ncols=3,
                  loc="outside lower left", alignment="left")  # fmt: skip
    save(figure, path)


def _name(run: Mapping[str, Any]) -> str:
    return str(run.get("name") or run.get("model") or "?")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most // 2 - 1] + "…" + text[-(most - most // 2) :]


def _level(comparison: Mapping[str, Any]) -> float:
    overall = (comparison.get("overall") or {}).get("level")
    levels = [metrics.get("level") for metrics in (comparison.get("tasks") or {}).values()]
    return next((level for level in (overall, *levels) if finite(level)), 0.95)


def _kind(row: Mapping[str, Any]) -> str:
    return row.get("moved") if row.get("moved") in ("up", "down") else "same"


def _drawable(metrics: Mapping[str, Any]) -> list[dict]:
    rows = [row for row in metrics.get("per_problem") or [] if finite(row.get("difference"))]
    return sorted(rows, key=lambda row: row["difference"])


def _moved(tasks: list[dict]) -> dict[str, int]:
    kinds = [_kind(row) for task in tasks for row in task["metrics"].get("per_problem") or []]
    return {kind: kinds.count(kind) for kind in ("up", "down", "same")}
