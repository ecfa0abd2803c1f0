"""Prints results and comparisons of evaluations in the terminal."""

from typing import Any

from .._util.text import safe, safe_text


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
        for k in ks[1:]:  # at k = 1 both equal avg@n
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
            say(f"{safe(name)}: left out: their answers cannot be verified against: {_first(left_out)}.")
        if part["unparsed"] > 0.5:
            hint = (
                "most samples reached `max_tokens`: raise it."
                if part["truncated"] > 0.5
                else "read some samples; if they state it in a form of their own, set `answer_pattern`."
            )
            say(f"{safe(name)}: no answer was found in {percent(part['unparsed'])} % of the samples: {hint}")
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
            say(f"{safe(name)}: all problems differ by the same amount, so the interval is meaningless.")
    if comparison["left_out"]:
        say(f"Only in one of the runs, and left out: {safe(', '.join(comparison['left_out']))}.")
    if comparison["differences"]:
        console.print("The runs also differ in:", style="bold")
        for row in comparison["differences"]:
            say(f"  {safe(row['field'])}: {row['a']!r} -> {row['b']!r}")
