"""Shows token credit in a terminal or notebook: completions with their weights and token advantages as colours, and a
summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..report.page import visible
from . import summary as numbers
from .record import CompletionCredit


# Levels of |log2(weight)|, or of |token advantage|, at which the colour gets stronger, as on the page
_LEVELS = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0)
# Backgrounds for dark text. They get darker, blue for low and orange for high weights
_BELOW = ("#dde2e5", "#d4e2ee", "#c6ddf2", "#b8d8f6", "#aad3fa", "#9ccefe")
_ABOVE = ("#ecd9c0", "#f0cfa6", "#f3c28a", "#f4b36c", "#f0a14e", "#e88d33")
_EVEN = "#e0dfdc"
_INK = "#1c2126"
# From this weight (or size of a token advantage) on, a token is underlined; without colours, it is marked
_MARKED = 1.5
_SPACES = str.maketrans({" ": "\u00b7", "\t": "\u2192"})


def render(
    records: Iterable[CompletionCredit],
    about: Mapping[str, Any],
    console: Console,
    method: str | None = None,
    limit: int | None = 10,
) -> None:
    """Prints completions with each method's weights, then a summary of all. Of a method that adds a term or has advantages
    of its own, it prints the token advantages, too.

    Args:
        records: The completions.
        about: As in [`~trl_credit.records.page.write_credit_report`]. Only `title`, `model` and `advice` are used.
        console: In a notebook, `Console()` writes to the cell. Without colours (a file, or `NO_COLOR`), tokens with a
            weight of at least 1.5 show as `4[2.6]`, or with a token advantage of that size as `4[+2.6]`.
        method: Label of the only method to show. By default, all are shown.
        limit: Number of completions to show.

    Raises:
        ValueError: No record has this method.
    """
    records = list(records)
    summaries = numbers.summarise(records)
    if method is not None:
        if method not in summaries:
            raise ValueError(f"There is no method {method!r} here. Known: {', '.join(summaries) or 'none'}.")
        summaries = {method: summaries[method]}
    shows_colours = console.is_terminal or console.is_jupyter
    coloured = shows_colours and not console.no_color and console.color_system is not None
    heading = about.get("title") or about.get("model")
    if heading:
        console.print(Text(visible(str(heading)), "bold"))
    shown = records[:limit]
    if shown and any(item.weighted or not item.advantaged for item in summaries.values()):
        console.print(_legend(coloured))
    if shown and any(item.advantaged for item in summaries.values()):
        console.print(_advantage_legend(coloured))
    for place, record in enumerate(shown, 1):
        console.print()
        console.print(_headline(place, record))
        for label in summaries:
            own = numbers.own_advantages(record, label)
            bodies = {}
            if own is None or label in record.weights:
                bodies[""] = _body(record, record.weights.get(label), coloured)
            if own is not None:
                bodies[", token advantages"] = _body(record, own, coloured, signed=True)
            for kind, body in bodies.items():
                name = Text.assemble((f"{visible(label)}{kind}: ", "bold"))
                # A terminal wraps lines itself, a notebook's cell does not
                console.print(name + body, soft_wrap=not console.is_jupyter)
    if len(shown) < len(records):
        console.print(Text(f"\n{len(records) - len(shown)} more of {len(records)} completions are not shown.", "dim"))
    weighted = {label: item for label, item in summaries.items() if item.weighted or not item.advantaged}
    advantaged = {label: item for label, item in summaries.items() if item.advantaged}
    for table in (_weight_table(weighted) if weighted else None, _advantage_table(advantaged) if advantaged else None):
        if table:
            console.print()
            console.print(table)
    for label, item in summaries.items():
        console.print(Text(visible(numbers.sentence(item, (about.get("advice") or {}).get(label)))))


def direction(advantage: float | None) -> str:
    """The advantage, with its direction as a symbol and in words."""
    if advantage is None or not np.isfinite(advantage):
        return "advantage unknown"
    if advantage == 0:
        return "\u25a0 advantage 0: no push"
    symbol, word = ("\u25b2", "likelier") if advantage > 0 else ("\u25bc", "less likely")
    return f"{symbol} advantage {advantage:+.3g}: made {word}"


def _headline(place: int, record: CompletionCredit) -> Text:
    masked = int(np.sum(record.mask))
    parts = [f"completion {place}", f"group {record.group}", direction(record.advantage)]
    if record.reward is not None:
        parts.append(f"reward {record.reward:.3g}")
    inside = "" if masked == len(record.tokens) else f", {masked} in the loss"
    parts.append(f"{len(record.tokens)} tokens{inside}")
    return Text(" \u00b7 ".join(parts), "bold")


def _shown(token: str) -> str:
    if not token.strip(" \t\r\n"):
        token = token.translate(_SPACES) or "\u2205"
    return visible(token.replace("\r", "\u240d")).replace("\n", "\u23ce\n")


def _style(value: float, signed: bool = False) -> Style:
    with np.errstate(divide="ignore"):
        distance = value if signed else np.log2(value)
    level = sum(abs(distance) >= edge for edge in _LEVELS)
    background = _EVEN if not level else (_ABOVE if distance > 0 else _BELOW)[level - 1]
    size = abs(value)
    return Style(color=_INK, bgcolor=background, underline=bool(size >= _MARKED), bold=bool(size >= 3))


def _body(record: CompletionCredit, values: np.ndarray | None, coloured: bool, signed: bool = False) -> Text:
    """The tokens with their weights, or if `signed` their token advantages."""
    text = Text()
    if not record.tokens:
        return text.append("(no tokens)", "dim")
    if values is None:
        text.append("(no weights) ", "dim")
    for i, token in enumerate(record.tokens):
        shown = _shown(token)
        if values is None or not record.mask[i] or not np.isfinite(values[i]) or (values[i] < 0 and not signed):
            text.append(shown, "dim" if coloured else None)
            continue
        value = float(values[i])
        # Styled text with a newline would colour the rest of the line
        content = shown.rstrip("\n")
        if coloured:
            text.append(content, _style(value, signed))
        else:
            body = content.rstrip("\u23ce")
            mark = f"[{value:{'+' if signed else ''}.1f}]" if abs(value) >= _MARKED else ""
            text.append(body + mark + content[len(body) :])
        text.append(shown[len(content) :])
    return text


def _legend(coloured: bool) -> Text:
    if not coloured:
        return Text("A number after a token is its weight, from 1.5 on; 1 is uniform.")
    text = Text("weight ")
    for weight, name in (
        (0.125, "\u22641/8"),
        (0.25, "1/4"),
        (0.5, "1/2"),
        (1, "1"),
        (2, "2"),
        (4, "4"),
        (8, "\u22658"),
    ):
        text.append(f" {name} ", _style(weight))
    return text.append("  underlined from 1.5, bold from 3; dim: not in the loss", "dim")


def _advantage_legend(coloured: bool) -> Text:
    if not coloured:
        return Text("A signed number after a token is its token advantage, from a size of 1.5 on.")
    text = Text("token advantage ")
    for value in (-3, -1.5, -0.5, 0, 0.5, 1.5, 3):
        text.append(f" {value:+g} " if value else " 0 ", _style(value, signed=True))
    return text.append("  above 0: made likelier; underlined from a size of 1.5, bold from 3", "dim")


def _put(value: float | None, kind: str) -> str:
    return "\u2013" if value is None else format(value, kind)


def _advantage_table(summaries: Mapping[str, numbers.MethodSummary]) -> Table:
    headings = ("token advantages", "mean size", "mean change", "other sign", "lowest", "highest", "completions")
    return _method_table(
        headings,
        {
            label: (
                _put(item.size, ".3g"),
                _put(item.change, ".3g"),
                _put(item.opposite, ".1%"),
                _put(item.lowest, "+.3g"),
                _put(item.highest, "+.3g"),
                str(item.advantaged),
            )
            for label, item in summaries.items()
        },
    )


def _weight_table(summaries: Mapping[str, numbers.MethodSummary]) -> Table:
    headings = (
        "method",
        "eff. fraction",
        "half on",
        "top 20 %",
        "distance",
        "std",
        "largest",
        "completions",
        "left out",
    )
    return _method_table(
        headings,
        {
            label: (
                _put(item.effective_fraction, ".4f"),
                _put(item.half_share, ".0%"),
                _put(item.top_mass, ".0%"),
                _put(item.distance, ".3f"),
                _put(item.weight_std, ".3g"),
                _put(item.largest, ".3g"),
                str(item.completions) if item.weighted else "\u2013",
                str(item.left_out) if item.weighted else "\u2013",
            )
            for label, item in summaries.items()
        },
    )


def _method_table(headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """A row for each method, numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for label, cells in rows.items():
        table.add_row(Text(visible(label)), *cells)
    return table
