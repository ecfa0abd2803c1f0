"""Tables and sentences of credit against the truth, in the format of `bench_true.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._util.text import safe, safe_lines, safe_text, without_folders
from ..report import Table, markdown_table, print_table, wide_console


_SCORES = {
    "correlation": "correlation",
    "within": "within completions",
    "top_mass": "top mass",
    "wrong_sign": "wrong sign",
    "no_credit": "no credit",
}
_GRADIENTS = {
    "cosine": "cosine",
    "captured": "of the headroom",
    "group_cosine": "cosine of one group",
    "relative_variance": "relative variance",
}
LEGEND = (
    "± is the bootstrap error over prompts, [ ] a 95 % interval; p is of the difference from uniform, after Holm. Baselines "
    "are dim in a terminal."
)


def _with_error(entry: Mapping[str, Any], digits: int = 3) -> str:
    if entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.{digits}f}" + ("" if entry["stderr"] is None else f" ± {entry['stderr']:.{digits}f}")


def _with_interval(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.2f}" + ("" if entry["low"] is None else f" [{entry['low']:.2f}, {entry['high']:.2f}]")


def _p(entry: Mapping[str, Any]) -> str:
    p = entry.get("p_holm")
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def tables(results: Mapping[str, Any]) -> list[Table]:
    samples, truth = results["samples"], results["truth"]
    sources = samples["sources"]
    found: list[Table] = [
        (
            "Samples",
            ["what", "number"],
            [
                ["prompts", str(samples["prompts"])],
                ["groups with unequal rewards", str(samples["mixed_groups"])],
                ["completions", str(samples["completions"])],
                ["mean tokens", f"{samples['mean_tokens']:.1f}"],
                ["mean reward", f"{samples['mean_reward']:.3f}"],
                ["mean reward above V(prompt)", _with_error(samples["reward_above_value"])],
                ["valued prefixes", str(samples["prefixes"])],
                ["... estimated (different ones)", f"{sources['sampled']} ({samples['estimates']})"],
                ["... as a neighbour's, which is certain", str(sources["certain"])],
                ["... known: the reward, a mistake", f"{sources['reward']}, {sources['mistake']}"],
                ["continuations", str(samples["continuations"])],
                [
                    "mean standard error of an estimated value",
                    _with_error({"mean": samples["mean_stderr"], "stderr": None}),
                ],
                ["reliability of the true advantages", _with_error(truth["reliability"])],
                ["... within completions", _with_error(truth["within_reliability"])],
                ["top mass of the true advantages themselves", _with_error(truth["best"])],
            ],
        ),
        (
            "Token advantages against the true ones",
            ["method", *(heading for name in _SCORES for heading in _headings(name))],
            [
                [label, *(cell for name in _SCORES for cell in _cells(row[name], name))]
                for label, row in results["scores"].items()
            ],
        ),
    ]
    if "gradients" in results:
        gradients = results["gradients"]
        found.append(
            (
                f"Policy gradient against the true one, batches of {gradients['batch']} groups ({gradients['completions']} "
                "completions)",
                ["method", "cosine", "p", *(heading for name, heading in _GRADIENTS.items() if name != "cosine")],
                [
                    [
                        label,
                        _with_error(row["cosine"]),
                        _p(row["cosine"]),
                        _with_interval(row["captured"]),  # ratios, whose errors are lopsided
                        _with_error(row["group_cosine"]),
                        _with_interval(row["relative_variance"]),
                    ]
                    for label, row in gradients["methods"].items()
                ],
            )
        )
    return found


_WITH_P = ("within", "top_mass")


def _headings(name: str) -> list[str]:
    return [_SCORES[name], "p"] if name in _WITH_P else [_SCORES[name]]


def _cells(entry: Mapping[str, Any], name: str) -> list[str]:
    return [_with_error(entry), _p(entry)] if name in _WITH_P else [_with_error(entry)]


def show(results: Mapping[str, Any]) -> None:
    """Prints the tables and sentences."""
    console = wide_console()
    for table in tables(results):
        print_table(console, table, results["baselines"])
    console.print(LEGEND, style="dim", markup=False)
    for sentence in results["sentences"]:
        console.print(safe_text(safe(sentence)))
    for note in results["notes"]:
        console.print(safe_text(safe(f"Note: {note}")))


def write_markdown(results: Mapping[str, Any], path: Path) -> None:
    settings = results["settings"]
    lines = [
        "# Credit against true advantages",
        "",
        f"Model `{safe(without_folders(settings['model']))}`, data `{safe(without_folders(settings['dataset_name']))}`, "
        f"seed {settings['seed']}.",
        "Baselines: " + safe(", ".join(results["baselines"])) + ".",
        LEGEND.removesuffix(" Baselines are dim in a terminal."),
        "",
        "## What it says",
        "",
        *(f"- {safe(sentence)}" for sentence in results["sentences"]),
        *(f"- Note: {safe(note)}" for note in results["notes"]),
        "",
    ]
    for table in tables(results):
        lines += markdown_table(table)
    path.write_text(safe_lines("\n".join(lines)).rstrip() + "\n", encoding="utf-8")
