"""Charts as inline SVG.

Horizontal positions are percentages and vertical ones pixels, so a chart fills any width while its text keeps its size.
Labels are outside the plotting area, in margins that base.css leaves (`svg.plot`). Colours are CSS classes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

from markupsafe import Markup

from ..report import svg
from ..report.page import count, finite, percent, points


def curve_chart(title: str, passed: Mapping[str, Any], majority: Mapping[str, Any]) -> Markup | None:
    """pass@k and maj@k over k, on a logarithmic axis. `None` with fewer than two values of k."""
    series = []
    for name, css, shape, values in (("pass@k", "a", "circle", passed), ("maj@k", "b", "square", majority)):
        known = sorted((int(k), value) for k, value in (values or {}).items() if finite(value))
        if known:
            series.append((name, css, shape, known))
    ks = sorted({k for *_, known in series for k, _ in known})
    if len(ks) < 2:
        return None
    span = math.log2(ks[-1]) - math.log2(ks[0])
    top, bottom = 8, 204

    def place(k: int, value: float) -> tuple[str, float]:
        return svg.across((math.log2(k) - math.log2(ks[0])) / span), bottom - (bottom - top) * value

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - (bottom - top) * share
        parts.append(svg.tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(svg.label(-8, y + 4, f"{100 * share:.0f} %", text_anchor="end"))
    for k in ks:
        parts.append(svg.label(place(k, 0)[0], bottom + 18, k, text_anchor="middle"))
    parts.append(svg.label("50%", bottom + 36, "k, samples drawn", text_anchor="middle"))
    sentences = []
    for name, css, shape, known in series:
        for (k, value), (other, following) in pairwise(known):
            (x1, y1), (x2, y2) = place(k, value), place(other, following)
            parts.append(svg.tag("line", x1=x1, x2=x2, y1=f"{y1:.1f}", y2=f"{y2:.1f}", class_=f"line {css}"))
        for k, value in known:
            parts.append(svg.marker(shape, *place(k, value), f"{name[:-1]}{k}: {percent(value)}", f"fill {css}"))
        sentences.append(f"{name} goes from {percent(known[0][1])} at k = {known[0][0]} to "
                         f"{percent(known[-1][1])} at k = {known[-1][0]}")  # fmt: skip
    return svg.plot(svg.join(parts), bottom + 44, f"pass@k and maj@k, {title}", "; ".join(sentences) + ".")


def bin_edges(lengths: Sequence[float], most: int = 24) -> list[float]:
    """Edges of bins that are equally wide on a logarithmic axis: powers of two and fractional steps between them."""
    low, high = math.log2(max(1, min(lengths))), math.log2(max(1, max(lengths)))
    for per_octave in (8, 4, 2, 1):
        first, last = math.floor(low * per_octave), math.floor(high * per_octave) + 1
        if last - first <= most:
            break
    return [2 ** (step / per_octave) for step in range(first, last + 1)]


def length_chart(right: Sequence[float], wrong: Sequence[float], unit: str) -> Markup | None:
    """Histogram of lengths on a logarithmic axis, right answers upwards and wrong ones downwards."""
    if not right and not wrong:
        return None
    edges = bin_edges([*right, *wrong])
    distinct = {*right, *wrong}
    single = distinct.pop() if len(distinct) == 1 else None
    per_octave = round(1 / math.log2(edges[1] / edges[0]))
    first = round(math.log2(edges[0]) * per_octave)

    def tally(lengths: Sequence[float]) -> list[int]:
        result = [0] * (len(edges) - 1)
        for length in lengths:
            result[math.floor(math.log2(max(1, length)) * per_octave) - first] += 1
        return result

    above, below = tally(right), tally(wrong)
    most = max(*above, *below)
    middle, reach, width = 108, 96, 1 / (len(edges) - 1)
    parts = []
    for sign in (1, -1):
        y = middle - sign * reach
        parts.append(svg.tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(svg.label(-8, y + 4, count(most), text_anchor="end"))
    parts.append(svg.label(-8, middle + 4, "0", text_anchor="end"))
    for column, (up, down) in enumerate(zip_longest(above, below, fillvalue=0)):
        bounds = f"{count(edges[column])} to {count(edges[column + 1])} {unit}"
        box = {"x": svg.across((column + 0.06) * width), "width": svg.across(0.88 * width)}
        if single is not None:
            bounds, box = f"{count(single)} {unit}", {"x": svg.across(0.47), "width": svg.across(0.06)}
        for number, name, css, sign in ((up, "right", "fill a", 1), (down, "wrong", "hatched", -1)):
            if number:
                tall = max(1.5, reach * number / most)
                parts.append(svg.tag("rect", svg.tag("title", f"{bounds}: {number} {name}"), **box, class_=css,
                                  y=f"{middle - tall if sign > 0 else middle:.1f}", height=f"{tall:.1f}"))  # fmt: skip
    parts.append(svg.tag("line", x1="0", x2="100%", y1=middle, y2=middle, class_="axis"))
    # At most about seven labels, or they overlap on a phone. At powers of two if the axis has enough of them
    every = math.ceil(len(edges) / 7)
    if len(edges) > 3 * per_octave:
        every = math.ceil(every / per_octave) * per_octave
    labels = [(column * width, edge) for column, edge in enumerate(edges) if (column + first) % every == 0]
    for place, length in labels if single is None else [(0.5, single)]:
        parts.append(
            svg.tag(
                "line",
                x1=svg.across(place),
                x2=svg.across(place),
                y1=middle + reach,
                y2=middle + reach + 5,
                class_="axis",
            )
        )
        parts.append(svg.label(svg.across(place), middle + reach + 18, count(length), text_anchor="middle"))
    parts.append(svg.label("50%", middle + reach + 36, unit, text_anchor="middle"))

    def summary(name: str, lengths: Sequence[float]) -> str:
        return f"{len(lengths)} {name}, median {count(median(lengths))} {unit}" if lengths else f"none {name}"

    description = f"{summary('right', right)}; {summary('wrong', wrong)}."
    return svg.plot(svg.join(parts), middle + reach + 44, "Lengths of right and wrong answers", description)


def median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def difference_chart(title: str, rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Each problem's difference (B minus A) with its interval, sorted."""
    rows = sorted((row for row in rows if finite(row.get("difference"))), key=lambda row: row["difference"])
    if not rows:
        return None
    top, bottom = 10, 210
    reach = max(abs(row[key]) for row in rows for key in ("difference", "low", "high") if finite(row.get(key)))
    reach = next(limit for limit in (0.05, 0.1, 0.25, 0.5, 1, math.inf) if reach <= limit + 1e-9)
    if math.isinf(reach):
        reach = 1

    def height(value: float) -> float:
        return (top + bottom) / 2 - (bottom - top) / 2 * max(-1, min(1, value / reach))

    parts = []
    for share in (-1, -0.5, 0, 0.5, 1):
        y = height(share * reach)
        parts.append(svg.tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid" if share else "axis"))
        parts.append(
            svg.label(-8, y + 4, points(share * reach, digits=0 if reach * 50 % 1 == 0 else 1), text_anchor="end")
        )
    moved = {"up": 0, "down": 0, "same": 0}
    for position, row in enumerate(rows):
        x = svg.across((position + 0.5) / len(rows))
        kind = row.get("moved") if row.get("moved") in moved else "same"
        moved[kind] += 1
        known = finite(row.get("low")) and finite(row.get("high"))
        if known:
            parts.append(svg.tag("line", x1=x, x2=x, y1=f"{height(row['low']):.1f}", y2=f"{height(row['high']):.1f}",
                              class_=f"whisker {kind}"))  # fmt: skip
        interval = f" ({points(row['low'])} to {points(row['high'])})" if known else ""
        label = f"problem {row['problem']}: {points(row['difference'])} points{interval}"
        parts.append(svg.marker(kind, x, height(row["difference"]), label, f"fill {kind}"))
    parts.append(svg.label("50%", bottom + 22, f"{len(rows)} problems, sorted by difference", text_anchor="middle"))
    description = f"{moved['up']} problems moved up, {moved['down']} down, {moved['same']} stayed."
    return svg.plot(
        svg.join(parts), bottom + 30, f"Difference of each problem, B minus A, in points, {title}", description
    )


def interval_bar(row: Mapping[str, Any]) -> Markup:
    """One row's difference and interval on an axis from -100 to +100 points. Hidden from screen readers: the row's text
    says the same."""
    parts = [svg.tag("line", x1="50%", x2="50%", y1=0, y2=18, class_="axis")]

    def place(value: float) -> str:
        return svg.across((1 + max(-1, min(1, value))) / 2)

    kind = row.get("moved") if row.get("moved") in ("up", "down") else "same"
    if finite(row.get("low")) and finite(row.get("high")):
        parts.append(svg.tag("line", x1=place(row["low"]), x2=place(row["high"]), y1=9, y2=9, class_=f"whisker {kind}"))
    if finite(row.get("difference")):
        label = f"{points(row['difference'])} points"
        parts.append(svg.marker(kind, place(row["difference"]), 9, label, f"fill {kind}"))
    return svg.tag("svg", svg.join(parts), class_="bar", width="100%", height=18, aria_hidden="true")


def share_bar(share: Any) -> Markup:
    """A share in [0, 1] as a bar. Hidden from screen readers: the text beside it says the same."""
    inner = svg.tag("rect", width="100%", height=12, class_="rest")
    if finite(share):
        inner += svg.tag("rect", width=svg.across(share), height=12, class_="fill a")
    return svg.tag("svg", inner, class_="bar", width="100%", height=12, aria_hidden="true")
