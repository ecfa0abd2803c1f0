"""A picture of one completion's token credit, for experiment trackers that show images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..report.figure import new_figure, save
from ..report.page import clean, visible
from .record import CompletionCredit
from .summary import labels, usable


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Tokens in a row, and maximum number of rows
ROW = 40
ROWS = 3
# Characters of a token shown in its label
LABEL = 14
_COLOURS = ("#0a66a8", "#e07b39", "#1b7a52", "#8a4a9e", "#4d5763", "#b58900")
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")


def plot_credit(path: str | Path | None, record: CompletionCredit) -> Figure:
    """Draws each token's weight under each method as bars, labelled with the tokens.

    With more than 120 tokens, only the stretches of 40 tokens with the highest weights are drawn, one per row.

    Args:
        path: A `.png` or `.svg` file to write. `None` only returns the figure.
        record: The completion.

    Raises:
        ValueError: matplotlib is not installed.
    """
    count = len(record.tokens)
    drawn = {
        label: np.where(record.mask, np.asarray(record.weights[label], np.float64), np.nan)
        for label in labels([record])
        if usable(record.weights.get(label), record.mask) is not None
    }
    starts = _starts(drawn, count)
    # All rows have the same number of tokens
    row = ROW if count > ROW * ROWS else max(1, -(-count // len(starts)))
    figure = new_figure(max(7.0, 1.2 + 0.36 * row), 1.3 + 2.5 * len(starts))
    from matplotlib.patches import Patch

    highest = max([1.0, *(float(np.nanmax(values)) for values in drawn.values())])
    width = 0.84 / max(1, len(drawn))
    for axis, start in zip(figure.subplots(len(starts), 1, squeeze=False)[:, 0], starts, strict=True):
        end = min(start + row, count)
        places = np.arange(start, end)
        for k, values in enumerate(drawn.values()):
            axis.bar(places - 0.42 + (k + 0.5) * width, np.nan_to_num(values[start:end]), width,
                     color=_COLOURS[k % len(_COLOURS)], hatch=_HATCHES[k % len(_HATCHES)], edgecolor="white",
                     linewidth=0)  # fmt: skip
        for place in places[~np.asarray(record.mask[start:end], bool)]:
            axis.axvspan(place - 0.5, place + 0.5, color="#eceef0", zorder=0)
        axis.axhline(1, color="#1c2126", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_xlim(start - 0.6, start + row - 0.4)
        axis.set_ylim(0, 1.05 * highest)
        axis.set_ylabel("weight")
        axis.set_xticks(places, [tick_label(record.tokens[place]) for place in places], rotation=90, fontsize=8)
        for text in axis.get_xticklabels():
            text.set_parse_math(False)
        axis.tick_params(axis="x", length=0)
        axis.spines[["top", "right"]].set_visible(False)
        if count > ROW:
            axis.set_title(f"tokens {start + 1} to {end} of {count}", fontsize=8, loc="left", color="#5b6570")
    handles = [
        Patch(facecolor=_COLOURS[k % len(_COLOURS)], hatch=_HATCHES[k % len(_HATCHES)], edgecolor="white", linewidth=0,
              label=_drawable(_short(label, 60)))
        for k, label in enumerate(drawn)
    ]  # fmt: skip
    if not np.all(record.mask):
        handles.append(Patch(color="#eceef0", label="not in the loss"))
    if handles:
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.suptitle(_title(record, bool(drawn)), fontsize=11)
    if path is not None:
        save(figure, path)
    return figure


def tick_label(token: str) -> str:
    """A token on one line. Characters that the font lacks become code points."""
    text = token.replace("\r", "\u240d").replace("\n", "\u23ce").replace("\t", "\u2192")
    return _drawable(_short("\u2205" if not text else text.replace(" ", "\u00b7") if not text.strip() else text, LABEL))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _drawable(text: str) -> str:
    return "".join(c if _has_glyph(c) else f"<{ord(c):X}>" for c in visible(clean(text)))


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0


def _starts(drawn: dict[str, np.ndarray], count: int) -> list[int]:
    """First token of each row."""
    if count <= ROW * ROWS or not drawn:
        rows = min(ROWS, max(1, -(-count // ROW)))
        return [k * -(-min(count, ROW * ROWS) // rows) for k in range(rows)]
    peaks = np.max([np.nan_to_num(values) for values in drawn.values()], axis=0)
    starts: list[int] = []
    for place in np.argsort(-peaks, kind="stable"):
        start = int(np.clip(place - ROW // 2, 0, count - ROW))
        if all(abs(start - other) >= ROW for other in starts):
            starts.append(start)
        if len(starts) == ROWS:
            break
    return sorted(starts)


def _title(record: CompletionCredit, drawn: bool) -> str:
    parts = []
    if record.advantage is not None and np.isfinite(record.advantage):
        word = "likelier" if record.advantage > 0 else "less likely"
        parts.append(
            f"advantage {record.advantage:+.3g} (made {word})" if record.advantage else "advantage 0 (no push)"
        )
    else:
        parts.append("advantage unknown")
    parts.append("reward unknown" if record.reward is None else f"reward {record.reward:.3g}")
    if not record.tokens:
        parts.append("no tokens")
    elif not drawn:
        parts.append("no weights")
    return ", ".join(parts)
