"""Tables, sentences and pictures of CreditBench's results, in the format of `bench.json`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._util.text import safe, safe_lines, safe_text, without_folders
from ..report.figure import new_figure, plain, save, tidy


# Series differ in marker and line style, not only in colour
_MARKERS = "osD^vP*Xp<>h"
_LINES = ("-", "--", "-.", ":")
_COLOURS = ("#0a66a8", "#c2560c", "#2a7f3f", "#7a4fa3", "#8a1c3b", "#5b6470", "#0f8b8d", "#a88400", "#333333")
_METRICS = {
    "auroc": "AUROC of the credit against the deciding tokens",
    "ap": "Average precision",
    "ratio": "Credit on the deciding tokens (uniform 1)",
    "mass": "Share of the credit on the deciding tokens",
    "rank": "Normalised rank of the first deciding token (1 = highest)",
}


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_error(summary: Mapping | None, digits: int = 3) -> str:
    if summary is None or summary["mean"] is None:
        return "-"
    error = summary.get("stderr")
    return _number(summary["mean"], digits) + ("" if error is None else f" ± {error:.{digits}f}")


Table = tuple[str, list[str], list[list[str]]]


def _tables(results: Mapping[str, Any]) -> list[Table]:
    names = list(results["tasks"])
    tables: list[Table] = [
        (
            "Tasks",
            ["task", "items", "mean tokens", "deciding share", "AUROC of the places alone"],
            [
                [
                    name,
                    str(task["items"]),
                    _number(task["mean_tokens"], 1),
                    _number(task["base_rate"]),
                    _with_error(task["position_profile"]),
                ]
                for name, task in results["tasks"].items()
            ],
        )
    ]

    sampled = _sampled(results)
    if sampled:
        headings = ["policy and task", "sampled", "right", "malformed", "several mistakes", "one mistake", "items"]
        tables.append(("Completions sampled for own errors", headings, sampled))

    def scores(title: str, metric: str, table: Mapping) -> Table:
        rows = [[label, *(_with_error(tasks[name][metric]) for name in names)] for label, tasks in table.items()]
        return title, ["method", *names], rows

    tables += [scores(title, metric, results["scores"]) for metric, title in _METRICS.items()]
    tables.append(
        (
            "Median rank of the first deciding token",
            ["method", *names],
            [
                [label, *(_number(tasks[name]["rank"]["median"]) for name in names)]
                for label, tasks in results["scores"].items()
            ],
        )
    )
    for step, entry in results.get("drift", {}).items():
        if step != "0":
            when = f"after {step} updates (reward {_number(entry['reward'], 2)})"
            tables.append(scores(f"AUROC {when}", "auroc", entry["scores"]))
            tables.append(scores(f"Credit on the deciding tokens {when}", "ratio", entry["scores"]))
    for sweep in results.get("sweeps", []):
        for metric in ("auroc", "ratio"):
            tables.append(
                (
                    f"{sweep['method']}, {sweep['parameter']}: "
                    + ("AUROC" if metric == "auroc" else "credit on the deciding tokens")
                    + (f", after {results['swept_after']} updates" if results["swept_after"] else ""),
                    [sweep["parameter"], *names],
                    [
                        [str(value), *(_with_error(sweep["scores"][name][i][metric]) for name in names)]
                        for i, value in enumerate(sweep["values"])
                    ],
                )
            )
    if "gradients" in results:
        gradients = results["gradients"]
        methods = gradients["methods"]
        sizes = list(next(iter(methods.values()))["cosine"])
        tables.append(
            (
                f"Policy gradient: {gradients['groups']} groups of {gradients['completions_per_group']}, against "
                f"{gradients['target_groups']} others, after {gradients['after']} updates",
                [
                    "method",
                    "variance / uniform's",
                    "relative variance / uniform's",
                    *(f"cosine, {size} group{'s' if size != '1' else ''}" for size in sizes),
                    "bias cosine",
                ],
                [
                    [
                        label,
                        _number(row["variance_over_uniform"], 2),
                        _number(row["relative_variance_over_uniform"], 2),
                        *(_with_error(row["cosine"][size]) for size in sizes),
                        _with_error({"mean": row["bias_cosine"], "stderr": row["bias_cosine_stderr"]}),
                    ]
                    for label, row in methods.items()
                ],
            )
        )
    return tables


def _sampled(results: Mapping[str, Any]) -> list[list[str]]:
    policies = results.get("drift") or {"0": {"tasks": results["tasks"]}}
    return [
        [
            f"{name}, after {step} updates" if step != "0" else name,
            *(str(task["completions"][k]) for k in ("sampled", "right", "malformed", "several_mistakes", "usable")),
            str(task["items"]),
        ]
        for step, entry in policies.items()
        for name, task in entry["tasks"].items()
        if "completions" in task
    ]


def wide_console():
    """A console that is wide enough for tables where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=180)


def print_table(console, table: Table, dim: Sequence[str]) -> None:
    """Prints a table. Rows whose first cell is in `dim` are dim."""
    from rich.table import Table as RichTable

    title, headings, rows = table
    shown = RichTable(title=safe_text(safe(title)), title_justify="left")
    for i, heading in enumerate(headings):
        justify = "right" if i else "left"
        shown.add_column(safe_text(safe(heading)), justify=justify, overflow="fold", min_width=None if i else 10)
    for row in rows:
        shown.add_row(*(safe_text(safe(cell)) for cell in row), style="dim" if row[0] in dim else None)
    console.print(shown)


def markdown_table(table: Table) -> list[str]:
    """Lines of a table with its heading."""
    title, headings, rows = table
    lines = [f"## {safe(title)}", "", _row(headings), _row(["---", *["---:"] * (len(headings) - 1)])]
    return [*lines, *map(_row, rows), ""]


def show(results: Mapping[str, Any]) -> None:
    """Prints the most informative tables and all sentences."""
    console = wide_console()
    shown = ("Tasks", "Completions", _METRICS["auroc"], _METRICS["ratio"], "AUROC after", "Policy gradient")
    for title, headings, rows in _tables(results):
        if not title.startswith(shown):
            continue
        print_table(console, (title, headings, rows), results["baselines"])
    console.print("± is the standard error over completions; baselines are dim.", style="dim")
    for sentence in results["sentences"]:
        console.print(safe_text(safe(sentence)))
    for note in results["notes"]:
        console.print(safe_text(safe(f"Note: {note}")))


def write_markdown(results: Mapping[str, Any], path: Path, pictures: Sequence[str]) -> None:
    settings = results["settings"]
    lines = [
        "# CreditBench",
        "",
        f"Model `{safe(without_folders(settings['model']))}`, seed {settings['seed']}, rendering {settings['rendering']}.",
        "Baselines, which know nothing of the outcome: " + safe(", ".join(results["baselines"])) + ".",
        "± is the standard error over completions. A method's score for a token is minus its token advantage in a wrong "
        "completion; - is a share of credit that is partly negative.",
        "",
        "## What it says",
        "",
        *(f"- {safe(sentence)}" for sentence in results["sentences"]),
        *(f"- Note: {safe(note)}" for note in results["notes"]),
        "",
    ]
    for table in _tables(results):
        lines += markdown_table(table)
    lines += ["## Pictures", "", *(f"![{name}]({name}.png)\n" for name in pictures)]
    path.write_text(safe_lines("\n".join(lines)).rstrip() + "\n", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(safe(cell).replace("|", "\\|") for cell in cells) + " |"


def plot_all(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws all available pictures as PNG and SVG. Returns their names.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figures = {"auroc": _plot_auroc(results)}
    if results.get("sweeps"):
        figures["sweeps"] = _plot_sweeps(results)
    if len(results.get("drift", {})) > 1:
        figures["drift"] = _plot_drift(results)
    if "gradients" in results:
        figures["gradients"] = _plot_gradients(results)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
        save(figure, folder / f"{name}.svg")
    return list(figures)


def _figure(rows: int, columns: int, width: float, height: float, **kwargs: Any):
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _grid(number: int) -> tuple[int, int]:
    """Rows and columns of a grid with at most five columns and the fewest empty places."""
    rows = -(-number // 5)
    return rows, -(-number // rows)


def _style(place: int) -> dict[str, Any]:
    return {
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place % len(_LINES)],
        "color": _COLOURS[place % len(_COLOURS)],
        "markersize": 5,
        "linewidth": 1.3,
    }


def _short(label: str) -> str:
    return "\n".join(textwrap.wrap(plain(label), 30, break_long_words=True))


def _plot_auroc(results: Mapping[str, Any]):
    names, labels = list(results["tasks"]), list(results["scores"])
    rows, columns = _grid(len(names))
    width = 2.2 + 2.6 * columns
    figure, axes = _figure(rows, columns, width, 1.3 + rows * (0.8 + 0.3 * len(labels)), sharey=True, sharex=True)
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_visible(False)
            continue
        name = names[place]
        for y, label in enumerate(labels):
            score = results["scores"][label][name]["auroc"]
            if score["mean"] is None:
                continue
            trivial = label in results["baselines"]
            axis.errorbar(
                score["mean"],
                y,
                xerr=1.96 * (score["stderr"] or 0),
                marker="D" if trivial else "o",
                color="#5b6470" if trivial else "#0a66a8",
                markerfacecolor="white" if trivial else "#0a66a8",
                markersize=5,
                capsize=2,
                linestyle="none",
            )
        axis.axvline(0.5, color="#1c2126", linewidth=0.8, linestyle=":")
        length = results["tasks"][name]["mean_tokens"]
        axis.set_title(f"{name} ({'no items' if length is None else f'{length:.0f} tokens'})", fontsize=9)
        axis.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=8)
        axis.set_xlim(-0.03, 1.03)
        axis.tick_params(labelbottom=True)
        tidy(axis)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("AUROC of the credit against the deciding tokens, 95 % interval", fontsize=9)
    # Wrapped, because a narrow figure would cut it off
    title = "Does credit find the deciding tokens? Filled circles: methods; open diamonds: trivial baselines"
    figure.suptitle("\n".join(textwrap.wrap(title, int(width * 9))), fontsize=10)
    return figure


def _plot_sweeps(results: Mapping[str, Any]):
    sweeps, names = results["sweeps"], list(results["tasks"])
    figure, axes = _figure(2, len(sweeps), 1.5 + 2.5 * max(2, len(sweeps)), 6.6, sharey="row", sharex="col")
    for column, sweep in enumerate(sweeps):
        for row, metric in enumerate(("auroc", "ratio")):
            axis = axes[row, column]
            for place, name in enumerate(names):
                values = [entry[metric]["mean"] for entry in sweep["scores"][name]]
                errors = [1.96 * (entry[metric]["stderr"] or 0) for entry in sweep["scores"][name]]
                shift = 0.06 * (place - (len(names) - 1) / 2)
                known = [i for i, value in enumerate(values) if value is not None]
                axis.errorbar(
                    [i + shift for i in known],
                    [values[i] for i in known],
                    yerr=[errors[i] for i in known],
                    elinewidth=0.7,
                    label=name,
                    **_style(place),
                )
            axis.axhline(0.5 if metric == "auroc" else 1, color="#1c2126", linewidth=0.8, linestyle=":")
            tidy(axis)
        axes[0, column].set_title(f"{_short(sweep['method'])}\n{sweep['parameter']}", fontsize=9)
        axes[1, column].set_xticks(range(len(sweep["values"])), [str(v) for v in sweep["values"]], fontsize=7.5)
        axes[1, column].set_xlabel(sweep["parameter"], fontsize=9)
    axes[0, 0].set_ylabel("AUROC", fontsize=9)
    axes[1, 0].set_ylabel("credit on the deciding tokens\n(uniform 1)", fontsize=9)
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(texts)), fontsize=8)
    return figure


def _plot_drift(results: Mapping[str, Any]):
    names, steps = list(results["tasks"]), list(results["drift"])
    labels = list(results["scores"])
    rows, columns = _grid(len(names))
    figure, axes = _figure(rows, columns, 1.5 + 2.6 * max(2, columns), 1.5 + 2.5 * rows, sharey=True, sharex=True)
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_visible(False)
            continue
        for i, label in enumerate(labels):
            scores = [results["drift"][step]["scores"][label][names[place]]["auroc"] for step in steps]
            known = [(x, s) for x, s in enumerate(scores) if s["mean"] is not None]
            axis.errorbar(
                [x + 0.5 / len(labels) * (i - (len(labels) - 1) / 2) for x, _ in known],
                [s["mean"] for _, s in known],
                yerr=[1.96 * (s["stderr"] or 0) for _, s in known],
                elinewidth=0.7,
                label=label,
                **_style(i),
            )
        axis.set_title(names[place], fontsize=9)
        axis.set_xticks(range(len(steps)), steps)
        axis.tick_params(labelbottom=True)
        tidy(axis)
    for place in range(len(names)):
        axes.flat[place].set_xlabel("uniform GRPO updates before", fontsize=8)
    figure.supylabel("AUROC", fontsize=9)
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, [_short(t) for t in texts], loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _plot_gradients(results: Mapping[str, Any]):
    gradients = results["gradients"]
    methods = gradients["methods"]
    figure, axes = _figure(1, 3, 12, 5)
    curve, bias, variance = axes[0]
    for place, (label, row) in enumerate(methods.items()):
        known = [(int(size), s) for size, s in row["cosine"].items() if s["mean"] is not None]
        curve.errorbar(
            [size * 1.04 ** (place - (len(methods) - 1) / 2) for size, _ in known],
            [s["mean"] for _, s in known],
            yerr=[1.96 * (s["stderr"] or 0) for _, s in known],
            elinewidth=0.7,
            label=label,
            **_style(place),
        )
        style = _style(place) | {"linestyle": "none"}
        if row["bias_cosine"] is not None:
            bias.errorbar(row["bias_cosine"], place, xerr=1.96 * (row["bias_cosine_stderr"] or 0), capsize=2, **style)
        if row["relative_variance_over_uniform"] is not None:
            variance.plot([row["relative_variance_over_uniform"]], [place], **style)
    sizes = [int(size) for size in next(iter(methods.values()))["cosine"]]
    curve.set_xscale("log", base=2)
    curve.set_xticks(sizes, [str(size) for size in sizes])
    curve.minorticks_off()
    curve.set_xlabel("groups per batch")
    curve.set_title("Cosine with the low-noise policy gradient", fontsize=9)
    bias.set_title("Bias: cosine of the method's own\nlow-noise gradient with the policy gradient", fontsize=9)
    bias.axvline(1, color="#1c2126", linewidth=0.8, linestyle=":")
    variance.set_title("Relative variance over uniform's", fontsize=9)
    variance.axvline(1, color="#1c2126", linewidth=0.8, linestyle=":")
    for axis in (bias, variance):
        axis.set_yticks(range(len(methods)), [_short(label) for label in methods], fontsize=8)
        axis.invert_yaxis()
    variance.tick_params(labelleft=False)
    for axis in (curve, bias, variance):
        tidy(axis)
    handles, texts = curve.get_legend_handles_labels()
    figure.legend(handles, [_short(t) for t in texts], loc="outside lower center", ncols=5, fontsize=8)
    return figure
