"""Pictures with matplotlib, for every command: PNG and SVG files that are the same for the same results."""

from pathlib import Path
from typing import TYPE_CHECKING

from .._util.text import safe


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` x `height` inches, without pyplot, which would keep it for the life of the process.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'trl-credit[analysis]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axis: "Axes", grid: str = "both") -> None:
    """Draws a light grid below the data and leaves out the frame's upper and right side."""
    axis.grid(axis=grid, color="#e4e6e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def plain(text: str) -> str:
    """Text that matplotlib can write and does not read as a formula."""
    return safe(text).replace("$", r"\$")


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a `.png` or `.svg` file; makes its folder."""
    from matplotlib import rc_context

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "trl-credit"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
