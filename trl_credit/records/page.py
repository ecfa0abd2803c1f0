"""The page of token credit: every completion, with its tokens coloured by their weights under each method, or by their
advantages if the method has no weights."""

import base64
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from .._util.text import without_folders
from ..report import svg
from ..report.page import clean, finite, percent, write_page
from . import summary as numbers
from .record import SOURCE_PROMPT, CompletionCredit


# Characters of a completion shown in the list
EXCERPT = 80
# Further methods reuse these colours, dashes and markers
STYLES = 6
_MARKERS = ("circle", "square", "up", "down", "circle", "square")


def write_credit_report(path: Path, records: Iterable[CompletionCredit], about: Mapping[str, Any]) -> None:
    """Writes a self-contained HTML file that shows token credit.

    Args:
        path: The file. An existing one is replaced only once the new one is complete.
        records: The completions.
        about: Describes all of them, each part optional: `title`, `model`, `step`, `methods` (parameters by label) and
            `advice` (by label: what to do about a method that was uniform in effect, as the end of a sentence).
            Anything else is listed under "How it was made".
    """
    records = list(records)
    about = {key: item if key in ("title", "advice") else without_folders(item) for key, item in about.items()}
    summaries = numbers.summarise(records)
    labels = list(summaries)
    advice = about.get("advice") or {}
    styles = {label: i % STYLES for i, label in enumerate(labels)}
    with_weights = [label for label in labels if summaries[label].weighted]
    listed = [
        {
            "group": record.group,
            "reward": record.reward,
            "advantage": record.advantage,
            "tokens": len(record.tokens),
            "masked": int(np.sum(record.mask)),
            "concentration": [numbers.concentration(record.weights.get(label), record.mask) for label in labels],
            "excerpt": " ".join(record.completion[: 4 * EXCERPT].split())[:EXCERPT],
        }
        for record in records
    ]
    write_page(
        path,
        __package__,
        "credit",
        about=about,
        title=about.get("title") or about.get("model") or "Token credit",
        # Advice is not a setting, and the heading or the methods' table shows the others
        made={name: about[name] for name in about if name not in ("advice", "title", "methods")},
        methods=about.get("methods") or {},
        sentences=[numbers.sentence(summaries[label], advice.get(label)) for label in labels],
        summaries=[summaries[label] for label in labels],
        advantaged=[item for item in summaries.values() if item.advantaged],
        correlated=with_weights if len(with_weights) > 1 else [],
        styles=styles,
        swatch=swatch,
        number=number,
        histogram=histogram_chart(numbers.histograms(records), styles),
        mass=mass_chart(numbers.mass_curves(records), styles),
        total=sum(len(record.tokens) for record in records),
        data={"labels": labels, "completions": listed},
        texts=(base64.b64encode(zlib.compress(pack(record))).decode() for record in records),
    )


def number(value: Any) -> str:
    """Formats a number with three digits, like the page's script."""
    if not finite(value):
        return "\u2013"
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
    if "e" in text and 1e-3 <= abs(value) < 1e4:  # 1234 would be 1.23e+03 with three digits
        text = f"{value:.0f}"
    return text.replace("-", "\u2212")


# Data


def pack(record: CompletionCredit) -> bytes:
    """Encodes a record for the page's script: a line of JSON, then the arrays that it names.

    Arrays are stored as byte planes of T bytes: the lowest byte of all entries, then the next. First the token ids
    (uint32), then the mask (one plane), then the float32 arrays. Weights are ranked on the page, so they stay exact.
    Others keep 12 of 23 mantissa bits: nobody reads more, and it compresses well.
    """
    mask = np.asarray(record.mask, bool)
    arrays = {"logps": record.logps, "entropy": record.entropy}
    arrays |= {f"signal/{title}": values for title, values in record.signals.items()}
    arrays |= {f"weight/{label}": values for label, values in record.weights.items()}
    products = []
    for label, values in record.token_advantages.items():
        if numbers.own_advantages(record, label) is None:
            products.append(label)
        else:
            arrays[f"advantage/{label}"] = values
    header = {
        "prompt": record.prompt,
        "tokens": record.tokens,
        "info": {name: value for name, value in record.info.items() if name != SOURCE_PROMPT},  # the prompt is shown
        "arrays": list(arrays),
        "products": products,
    }
    text = json.dumps(clean(header), ensure_ascii=False, separators=(",", ":"), default=str)
    ids = np.asarray(record.token_ids).astype(np.uint32)
    planes = [_planes(ids), mask.astype(np.uint8).tobytes()]
    for name, values in arrays.items():
        exact = np.asarray(values, np.float32).view(np.uint32)
        planes.append(_planes(exact if name.startswith("weight/") else _rounded(values)))
    return text.encode() + b"\n" + b"".join(planes)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Rounds float32 values to 12 mantissa bits and returns their bits. NaN and infinities stay."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(1 << 10)) & np.uint32(~((1 << 11) - 1) & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded, np.where(np.isnan(values), np.uint32(0x7FC00000), bits))


def _planes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values.astype("<u4")).view(np.uint8).reshape(-1, 4).T.tobytes()


# Charts


def swatch(style: int) -> Markup:
    """A sample of a method's line, for a legend."""
    inner = svg.tag("line", x1=0, x2=34, y1=7, y2=7, class_=f"curve m{style}")
    return svg.tag(
        "svg", inner + _mark(style, 17, 7), class_="swatch", width=34, height=14, aria_hidden="true"
    )  # fmt: skip


def _mark(style: int, x: str | int, y: float) -> Markup:
    # No title: the legend names the method, and screen readers would repeat it at each mark
    return svg.marker(_MARKERS[style], x, y, "", f"mark m{style}")


def _curve(points: Iterable[tuple[float, float]], top: int, bottom: int, style: int) -> Markup:
    """A line through points in [0, 1] x [0, 1]. Its dashes do not stretch with the chart."""
    text = " ".join(f"{100 * x:.3f},{(bottom - top) * (1 - y):.2f}" for x, y in points)
    line = svg.tag("polyline", points=text, class_=f"curve m{style}")
    return svg.tag("svg", line, x=0, y=top, width="100%", height=bottom - top, overflow="visible",
                       viewBox=f"0 0 100 {bottom - top}", preserveAspectRatio="none")  # fmt: skip


def _grid(top: int, bottom: int, labels: Sequence[str]) -> Iterator[Markup]:
    for place, label in enumerate(labels):
        y = bottom - (bottom - top) * place / (len(labels) - 1)
        yield svg.tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid")
        yield svg.label(-8, y + 4, label, text_anchor="end")


def histogram_chart(shares: Mapping[str, np.ndarray], styles: Mapping[str, int]) -> Markup | None:
    """Shares of tokens by weight, drawn as steps. `None` without data."""
    if not shares:
        return None
    top, bottom = 10, 200
    edges = numbers.LOG2_EDGES
    bins = len(edges) + 1
    highest = max(float(values.max()) for values in shares.values())
    highest = next(limit for limit in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0) if highest <= limit)
    highest = min(highest, 1.0)
    parts = list(_grid(top, bottom, [percent(highest * k / 4, digits=0 if highest >= 0.2 else 1) for k in range(5)]))
    middle = bins // 2
    for power in range(-4, 5, 2):
        x = svg.across((middle + 2 * power + 0.5) / bins)
        parts.append(svg.tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
        label = str(2**power) if power >= 0 else f"1/{2**-power}"
        parts.append(svg.label(x, bottom + 18, label, text_anchor="middle"))
    x = svg.across(0.5)
    parts.append(svg.tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="axis faint"))
    said = []
    for label, values in shares.items():
        heights = [min(1.0, float(value) / highest) for value in values]
        steps = itertools.chain.from_iterable(
            ((place / bins, height), ((place + 1) / bins, height)) for place, height in enumerate(heights)
        )
        parts.append(_curve(steps, top, bottom, styles[label]))
        # Offset the marks, so that methods that agree do not hide each other's
        for place in range(styles[label] % 4, bins, 4):
            parts.append(
                _mark(styles[label], svg.across((place + 0.5) / bins), bottom - (bottom - top) * heights[place])
            )
        below, above = values[: middle - 1].sum(), values[middle + 2 :].sum()
        said.append(
            f"{label}: {percent(below, 0)} of the tokens weigh less than 0.6, {percent(above, 0)} more than 1.7"
        )
    parts.append(svg.label("50%", bottom + 36, "weight of a token (1 is uniform)", text_anchor="middle"))
    return svg.plot(svg.join(parts), bottom + 44, "Distribution of the weights", "; ".join(said) + ".")


def mass_chart(curves: Mapping[str, np.ndarray], styles: Mapping[str, int]) -> Markup | None:
    """Share of the weight that the heaviest tokens carry. `None` without data."""
    if not curves:
        return None
    top, bottom = 10, 200
    parts = list(_grid(top, bottom, ["0 %", "25 %", "50 %", "75 %", "100 %"]))
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(svg.label(svg.across(share), bottom + 18, f"{100 * share:.0f} %", text_anchor="middle"))
    parts.append(svg.tag("line", x1="0", x2="100%", y1=bottom, y2=top, class_="axis faint"))
    said = []
    for label, curve in curves.items():
        parts.append(_curve(zip(numbers.GRID, map(float, curve), strict=True), top, bottom, styles[label]))
        for place in range(4 + 2 * styles[label], len(curve), 12):
            y = bottom - (bottom - top) * float(curve[place])
            parts.append(_mark(styles[label], svg.across(float(numbers.GRID[place])), y))
        said.append(f"{label}: {percent(np.interp(0.2, numbers.GRID, curve), 0)} of the weight on 20 % of the tokens")
    parts.append(svg.label("50%", bottom + 36, "share of the tokens, heaviest first", text_anchor="middle"))
    return svg.plot(svg.join(parts), bottom + 44, "Cumulative weight", "; ".join(said) + ".")
