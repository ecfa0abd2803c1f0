"""Page and picture of a comparison of methods in training: learning curves, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .._util.text import command_without_folders, without_folders
from ..report import svg
from ..report.figure import new_figure, plain, save, tidy
from ..report.page import finite, write_page


# Blue, orange, green, purple, red, grey. They differ in lightness too, and each line also has its own dashes
_COLOURS = ("#0a66a8", "#c2560c", "#1a7f4b", "#8a3ea3", "#b3243b", "#6b747c")
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 4", "5 2 1 2 1 2")
_TITLES = {
    "reward": "Reward",
    "entropy": "Entropy, nats",
    "completions/mean_length": "Tokens of a completion",
    "credit/effective_fraction": "Effective token fraction",
}
_KINDS = {"better": "up", "worse": "down", "higher": "apart", "lower": "apart"}


def style_of(place: int) -> tuple[str, str]:
    """Colour and dashes of the method at a position. The first 36 are all different."""
    return _COLOURS[place % 6], _DASHES[(place + place // 6) % 6]


def write_learning_report(path: Path, comparison: dict) -> None:
    """Writes a self-contained HTML file with all results of a comparison."""
    from .results import basis, headings, quantities, rows_of, sentences
    from .tuning import sentences_of, table_of

    methods, compared = comparison["methods"], quantities(comparison.get("at_target", ()))
    charts = [
        {"name": name, "title": _TITLES[name], "chart": chart, "index": place}
        for place, name in enumerate(_TITLES)
        if (chart := learning_chart(comparison, name)) is not None
    ]
    forests = [
        {"title": quantity.title, "chart": chart, "larger": quantity.larger_is_better}
        for quantity in compared
        if (chart := forest_chart(comparison, quantity)) is not None
    ]
    tuning = None
    if record := comparison.get("tuning"):
        columns, rows = table_of(record)
        tuning = {"headings": columns, "rows": rows, "sentences": sentences_of(record)}
    write_page(
        path,
        __package__,
        "learning",
        comparison={
            **comparison,
            "settings": without_folders(comparison.get("settings") or {}),
            "command": command_without_folders(comparison.get("command") or ""),
        },
        headline=headline(comparison),
        sentences=sentences(comparison),
        basis=basis(comparison),
        headings=headings(comparison),
        rows=rows_of(comparison),
        seeds=[str(seed) for seed in comparison["seeds"]],
        quantities=[q for q in compared if any(q.name in m["quantities"] for m in methods)],
        charts=charts,
        forests=forests,
        tuning=tuning,
        key=key_line,
        drawn={
            "window": comparison["window"],
            "labels": [method["label"] for method in methods],
            "curves": {chart["name"]: [_means(method, chart["name"]) for method in methods] for chart in charts},
        },
    )


def headline(comparison: Mapping[str, Any]) -> str:
    """Sums up the comparison of the mean reward in one sentence."""
    rows = [row for row in comparison["differences"] if row["quantity"] == "mean_reward"]
    if not rows:
        return "There is nothing to compare: no seed is finished for two methods."
    baseline = comparison["baseline"]
    if not any(row["enough_seeds"] for row in rows):
        return f"Too few seeds to say whether any method differs from {baseline}."
    parts = [
        f"{', '.join(labels)} {'is' if len(labels) == 1 else 'are'} {word} than {baseline}"
        for word in ("better", "worse")
        if (labels := [row["label"] for row in rows if row["verdict"] == word])
    ]
    noise = [row["label"] for row in rows if row["verdict"] == "noise"]
    if noise:
        parts.append(
            f"{', '.join(noise)} {'does' if len(noise) == 1 else 'do'} not differ from {baseline} beyond noise"
        )
    return f"In mean reward {'; '.join(parts)}."


def _means(method: Mapping[str, Any], name: str) -> list | None:
    curve = method["curves"].get(name)
    return None if curve is None else [None if v is None else round(v, 4) for v in curve["mean"]]


def key_line(place: int) -> Markup:
    """A sample of a method's line, for the legend."""
    line = svg.tag(
        "line", x1=0, x2=34, y1=6, y2=6, class_=f"curve c{place % 6}", stroke_dasharray=style_of(place)[1] or None
    )
    return svg.tag("svg", line, width=34, height=12, class_="sample", aria_hidden="true")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` + 1."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= most)
    first = -int(-low // step) if low % step else round(low / step)
    found = []
    while first * step <= high + 1e-9 * span:
        found.append(first * step)
        first += 1
    return found


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "\u2212")


def limits_of(curves: Sequence[Mapping[str, list]]) -> tuple[float, float] | None:
    """Range of an axis. Cuts bands that reach far beyond the lines, as with two seeds."""
    means = [value for curve in curves for value in curve["mean"] if finite(value)]
    ends = [value for curve in curves for key in ("low", "high") for value in curve[key] if finite(value)]
    if not means:
        return None
    low, high = min(means), max(means)
    room = high - low or abs(high) / 2 or 0.5
    return max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)


def learning_chart(comparison: Mapping[str, Any], name: str) -> Markup | None:
    """The methods' means over updates with their bands. `None` without data."""
    window, updates = comparison["window"], comparison["updates"]
    curves = [
        (place, method["label"], method["curves"].get(name)) for place, method in enumerate(comparison["methods"])
    ]
    curves = [(place, label, curve) for place, label, curve in curves if curve is not None]
    limits = limits_of([curve for *_, curve in curves])
    if limits is None:
        return None
    low, high = limits
    if low == high:
        low, high = low - 0.5, high + 0.5
    marks = ticks(low, high)
    if len(marks) > 1:  # end the axis at a round number if that costs little space
        step = marks[1] - marks[0]
        low, high = min(low, marks[0] - step) if marks[0] - low > 0.7 * step else low, max(high, marks[-1])
    height, top = 240, 8
    span = max(1, updates - window)

    def place_y(value: float) -> float:
        return top + height * (1 - (min(max(value, low), high) - low) / (high - low))

    parts = []
    for mark in ticks(low, high):
        parts.append(
            svg.tag("line", x1="0", x2="100%", y1=f"{place_y(mark):.1f}", y2=f"{place_y(mark):.1f}", class_="grid")
        )
        parts.append(svg.label(-8, place_y(mark) + 4, _short(mark), text_anchor="end"))
    for mark in ticks(window, updates):
        if mark == int(mark):
            parts.append(
                svg.label(svg.across((mark - window) / span), top + height + 18, f"{mark:.0f}", text_anchor="middle")
            )
    parts.append(svg.label("50%", top + height + 36, "update", text_anchor="middle"))
    target = comparison.get("target_reward")
    if name == "reward" and finite(target) and low <= target <= high:
        y = f"{place_y(target):.1f}"
        parts.append(svg.tag("line", x1="0", x2="100%", y1=y, y2=y, class_="target"))
        parts.append(svg.label(4, place_y(target) - 5, f"target {_short(target)}"))
    # The chart stretches to the width, but line widths stay
    inner, sentences = [], []
    for place, _, curve in curves:
        ends = [
            (i, a, b)
            for i, (a, b) in enumerate(zip(curve["low"], curve["high"], strict=True))
            if finite(a) and finite(b)
        ]
        if ends:
            outline = [(i, b) for i, _, b in ends] + [(i, a) for i, a, _ in reversed(ends)]
            points = " ".join(f"{1000 * i / span:.1f},{place_y(v):.1f}" for i, v in outline)
            inner.append(svg.tag("polygon", points=points, class_=f"band c{place % 6}", data_method=place))
    for place, label, curve in curves:
        line = [(i, v) for i, v in enumerate(curve["mean"]) if finite(v)]
        points = " ".join(f"{1000 * i / span:.1f},{place_y(v):.1f}" for i, v in line)
        if len(line) == 1:
            points = f"0,{place_y(line[0][1]):.1f} 1000,{place_y(line[0][1]):.1f}"
        inner.append(
            svg.tag("polyline", points=points, class_=f"curve c{place % 6}", data_method=place,
                 stroke_dasharray=style_of(place)[1] or None, vector_effect="non-scaling-stroke")
        )  # fmt: skip
        if line:
            sentences.append(f"{label} goes from {_short(line[0][1])} to {_short(line[-1][1])}")
    parts.append(
        svg.tag("svg", svg.join(inner), x=0, y=0, width="100%", height=top + height, viewBox=f"0 0 1000 {top + height}",
             preserveAspectRatio="none")
    )  # fmt: skip
    parts.append(svg.tag("line", x1="0", x2="0", y1=top, y2=top + height, class_="axis cursor", visibility="hidden"))
    return svg.plot(svg.join(parts), top + height + 44, f"{_TITLES[name]} over updates", "; ".join(sentences) + ".")


def forest_chart(comparison: Mapping[str, Any], quantity: Any) -> Markup | None:
    """Each method's paired difference from the baseline with its interval. `None` without any."""
    rows = [r for r in comparison["differences"] if r["quantity"] == quantity.name and finite(r["mean"])]
    if not rows:
        return None
    ends = [r[key] for r in rows for key in ("mean", "low", "high") if finite(r[key])]
    reach = 1.08 * max(max(map(abs, ends)), 1e-12)
    top, tall = 22, 48

    def place(value: float) -> str:
        return svg.across((1 + max(-1, min(1, value / reach))) / 2)

    bottom = top + tall * len(rows)
    parts = [svg.tag("line", x1="50%", x2="50%", y1=top - 6, y2=bottom, class_="axis")]
    parts.append(svg.label("50%", 10, "0", text_anchor="middle"))
    for mark in ticks(-reach, reach, 6):
        if abs(mark) > 1e-12 and abs(mark) < 0.93 * reach:
            parts.append(svg.tag("line", x1=place(mark), x2=place(mark), y1=top - 6, y2=bottom, class_="grid"))
            parts.append(svg.label(place(mark), 10, _signed(quantity.scale * mark), text_anchor="middle"))
    sentences = []
    for number, row in enumerate(rows):
        y = top + tall * number
        kind = _KINDS.get(row["verdict"], "same")
        interval = ""
        if finite(row["low"]):
            interval = f" ({quantity.signed(row['low'])} to {quantity.signed(row['high'])})"
            parts.append(svg.tag("line", x1=place(row["low"]), x2=place(row["high"]), y1=y + 24, y2=y + 24,
                              class_=f"whisker {kind}"))  # fmt: skip
        text = f"{quantity.signed(row['mean'])}{interval}"
        parts.append(svg.label("0", y + 12, row["label"], class_="row-label"))
        parts.append(svg.label("100%", y + 12, row["verdict"], text_anchor="end"))
        parts.append(svg.marker(kind, place(row["mean"]), y + 24, f"{row['label']}: {text}", f"fill {kind}"))
        sentences.append(f"{row['label']} {text}: {row['verdict']}")
    title = f"{quantity.title}, difference from {comparison['baseline']}"
    return svg.plot(svg.join(parts), bottom + 4, title, "; ".join(sentences) + ".")


def _signed(value: float) -> str:
    size = abs(value)
    return ("+" if value > 0 else "\u2212") + (f"{size:,.0f}" if size >= 1000 else f"{size:.4g}")


def plot_learning_curves(path: Path, comparison: Mapping[str, Any]) -> None:
    """Draws the reward over updates with its bands.

    Args:
        path: A `.png` or `.svg` file.
        comparison: What `trl-credit compare` computed.

    Raises:
        ValueError: matplotlib is not installed.
    """
    from .results import shown_value

    window, methods = comparison["window"], comparison["methods"]
    drawn = [(place, method) for place, method in enumerate(methods) if method["curves"].get("reward")]
    columns = 2 if len(drawn) > 3 and all(len(method["label"]) <= 22 for _, method in drawn) else 1
    figure = new_figure(8, 4 + 0.2 * math.ceil(len(drawn) / columns))
    from matplotlib.ticker import MaxNLocator

    axis = figure.subplots()
    for place, method in drawn:
        curve = {key: _floats(values) for key, values in method["curves"]["reward"].items()}
        updates = range(window, window + len(curve["mean"]))
        colour, dashes = style_of(place)
        axis.fill_between(updates, curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
        axis.plot(updates, curve["mean"], color=colour, linewidth=1.8, marker="o" if len(updates) == 1 else None,
                  linestyle=(0, tuple(float(part) / 1.8 for part in dashes.split())) if dashes else "-",
                  label=plain(_legend(method, shown_value)))  # fmt: skip
    limits = limits_of([method["curves"]["reward"] for _, method in drawn])
    if limits is not None and limits[0] < limits[1]:
        axis.set_ylim(limits[0] - 0.03 * (limits[1] - limits[0]), limits[1] + 0.03 * (limits[1] - limits[0]))
    if finite(comparison.get("target_reward")):
        axis.axhline(comparison["target_reward"], color="#5b6570", linewidth=0.9, linestyle=(0, (1, 2)))
        axis.annotate("target", (0.005, comparison["target_reward"]), xycoords=("axes fraction", "data"), ha="left",
                      va="bottom", fontsize=8, color="#5b6570")  # fmt: skip
    axis.set_xlabel("update")
    axis.set_ylabel("reward" if window == 1 else f"reward, mean of {window} updates")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axis, "y")
    most = max((len(method["seeds"]) for _, method in drawn), default=0)
    band = f", bands: {100 * comparison['level']:g} % intervals over {most} seeds" if most > 1 else ", one seed"
    axis.set_title(f"Learning curves{band}", fontsize=10.5, loc="left")
    if drawn:
        figure.legend(fontsize=8.5, frameon=False, ncols=columns, loc="outside lower left", handlelength=3.6)
    save(figure, path)


def _legend(method: Mapping[str, Any], shown) -> str:
    from .results import BY_NAME

    label = method["label"] if len(method["label"]) <= 48 else method["label"][:47] + "…"
    return f"{label}: mean {shown(BY_NAME['mean_reward'], method['quantities'].get('mean_reward'))}"


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
