"""SVG elements for charts."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from .page import visible


def tag(name: str, inner: Any = "", **attributes: Any) -> Markup:
    pairs = "".join(
        Markup(' {}="{}"').format(key.strip("_").replace("_", "-"), f"{value:g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(name, Markup(pairs), inner, name)


def across(share: float) -> str:
    return f"{100 * share:.2f}%"


def label(x: str | float, y: float, text: Any, **attributes: Any) -> Markup:
    return tag("text", visible(str(text)), x=x, y=y, **attributes)


def marker(shape: str, x: str, y: float, title: str, css: str) -> Markup:
    """A mark that differs in shape as well as colour."""
    path = {
        "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "square": "M-3.5-3.5h7v7h-7z",
        "up": "M0-5L5 4H-5z",
        "down": "M0 5L5-4H-5z",
        "apart": "M0-5L5 0L0 5L-5 0z",
        "same": "M-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0z",
    }[shape]
    inner = tag("title", visible(title)) + tag("path", d=path, class_=css)
    return tag("svg", inner, x=x, y=f"{y:.1f}", overflow="visible")


def plot(inner: Markup, height: int, title: str, description: str) -> Markup:
    label = visible(f"{title}. {description}")
    return tag("svg", tag("title", visible(title)) + tag("desc", visible(description)) + inner,
                class_="plot", width="100%", height=height, role="img", aria_label=label)  # fmt: skip


def join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)
