"""One image with the credit of its sampler's steps: the record, its files, and its page."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from .._util.text import without_folders
from ..report import svg
from ..report.grid import image_grid
from ..report.page import clean, finite, write_page
from .page import number
from .record import FILE_KEY


if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image


# Larger sides, in pixels, of the images in the files: the final image and those of the steps
FINAL_SIDE, STEP_SIDE = 512, 192
# Images up to this side are enlarged with sharp pixels
_SMALL = 64
_BAR_HEIGHT = 64
_PREFIX = {"weights": "weight", "token_advantages": "token_advantage"}


@dataclass(frozen=True)
class ImageCredit:
    """One image with the credit of its K trained steps. All arrays are (K,) float32, in the order of sampling.

    Args:
        prompt: The prompt's text. `None` if unknown.
        image: The image that the reward saw. `None` if unknown.
        steps: Which steps of the sampler these are, counted from 0.
        clean: The estimate of the clean image at each step, decoded.
        logps: Log-probs of the steps under the policy, in nats: means over the latents' dimensions.
        old_logps: The same under the policy that sampled. `None` if that is the policy itself.
        native: Each step's share of the sampler's native weights, or `None`. See
            [`~trl_credit.samplers.schedule.StepSchedule`].
        weights: By method label, weights c of the steps. Omits methods without weights.
        token_advantages: By method label, advantages that enter the loss.
        advantage: The image's advantage. `None` if unknown.
        reward: The image's reward. `None` if unknown.
        info: Other JSON values by name.

    Raises:
        ValueError: An array or list of another length, or an image that is none.
    """

    prompt: str | None
    image: Image | None
    steps: Sequence[int]
    clean: Sequence[Image]
    logps: np.ndarray
    old_logps: np.ndarray | None = None
    native: np.ndarray | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_advantages: Mapping[str, np.ndarray] = field(default_factory=dict)
    advantage: float | None = None
    reward: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        from PIL.Image import Image

        length = len(self.steps)
        if len(self.clean) != length:
            raise ValueError(f"clean has {len(self.clean)} images, but there are {length} steps.")
        arrays = {"logps": self.logps, "old_logps": self.old_logps, "native": self.native}
        arrays |= {f"weights[{label!r}]": values for label, values in self.weights.items()}
        arrays |= {f"token_advantages[{label!r}]": values for label, values in self.token_advantages.items()}
        for name, array in arrays.items():
            if array is not None and np.shape(array) != (length,):
                raise ValueError(f"{name} has shape {np.shape(array)}, but there are {length} steps.")
        for name, image in [("image", self.image), *((f"clean[{i}]", image) for i, image in enumerate(self.clean))]:
            if image is None and name == "image":
                continue
            if not isinstance(image, Image) or not image.width or not image.height:
                raise ValueError(f"{name} must be a PIL image with pixels, got {image!r}.")

    @property
    def log_ratios(self) -> np.ndarray | None:
        """(K,) log-probs less the old ones. `None` without old ones."""
        return None if self.old_logps is None else np.asarray(self.logps) - np.asarray(self.old_logps)


def png_bytes(image: Image, side: int) -> bytes:
    """The image as PNG, reduced to `side` pixels if its larger side is longer."""
    from PIL import Image

    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > side:
        scale = side / max(image.size)
        size = tuple(max(1, round(length * scale)) for length in image.size)
        image = image.convert("L" if image.mode == "1" else image.mode).resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# Files


def to_table(records: Iterable[ImageCredit], about: Mapping[str, Any] | None = None) -> pa.Table:
    """Converts records to an Arrow table. Each image is a row; steps' values are lists with one entry per step.

    Columns: `prompt`, `reward`, `advantage`, `image` (PNG), `steps`, `clean` (PNGs), `logps`, `old_logps`, `native`,
    `weight/METHOD`, `token_advantage/METHOD`, `info` (JSON). Images are reduced: the final one to 512 pixels, the others to
    192.

    Args:
        records: The images.
        about: JSON values that describe the file (model, methods, ...), stored in the schema's metadata.
    """
    import pyarrow as pa

    records = list(records)
    floats = pa.list_(pa.float32())

    def lists(values: Iterable[Any]) -> pa.Array:
        return pa.array([None if value is None else np.asarray(value, np.float32) for value in values], floats)

    prompts = [None if r.prompt is None else r.prompt.encode("utf-8", "replace").decode() for r in records]
    images = [None if r.image is None else png_bytes(r.image, FINAL_SIDE) for r in records]
    estimates = [[png_bytes(image, STEP_SIDE) for image in r.clean] for r in records]
    columns: dict[str, pa.Array] = {
        "prompt": pa.array(prompts, pa.string()),
        "reward": pa.array([r.reward for r in records], pa.float64()),
        "advantage": pa.array([r.advantage for r in records], pa.float64()),
        "image": pa.array(images, pa.binary()),
        "steps": pa.array([[int(step) for step in r.steps] for r in records], pa.list_(pa.int64())),
        "clean": pa.array(estimates, pa.list_(pa.binary())),
    }
    for name in ("logps", "old_logps", "native"):
        columns[name] = lists(getattr(r, name) for r in records)
    for kind, prefix in _PREFIX.items():
        for label in dict.fromkeys(label for r in records for label in getattr(r, kind)):
            columns[f"{prefix}/{clean(label)}"] = lists(getattr(r, kind).get(label) for r in records)
    columns["info"] = pa.array([json.dumps(clean(dict(r.info)), default=str) for r in records], pa.string())
    table = pa.table(columns)
    return table.replace_schema_metadata({FILE_KEY: json.dumps(clean(dict(about or {})), default=str)})


def write_parquet(path: Path, records: Iterable[ImageCredit], about: Mapping[str, Any] | None = None) -> None:
    import pyarrow.parquet as pq

    pq.write_table(to_table(records, about), path)


def read_parquet(path: Path) -> tuple[list[ImageCredit], dict[str, Any]]:
    """The records of a file from [`write_parquet`], and its description.

    Raises:
        ValueError: The file is not parquet or has no image credit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"Cannot read {str(path)!r}: {str(error).splitlines()[0]}") from error
    if "clean" not in table.column_names:
        raise ValueError(f"{str(path)!r} is no table of image credit: it has no column 'clean'.")

    def floats(values: list | None) -> np.ndarray | None:
        return None if values is None else np.array([math.nan if v is None else v for v in values], np.float32)

    def image(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data))

    records = []
    for row in table.to_pylist():
        kinds = {
            kind: {
                name.removeprefix(f"{prefix}/"): floats(values)
                for name, values in row.items()
                if name.startswith(f"{prefix}/") and values is not None
            }
            for kind, prefix in _PREFIX.items()
        }
        records.append(
            ImageCredit(
                prompt=row["prompt"],
                image=None if row["image"] is None else image(row["image"]),
                steps=row["steps"],
                clean=[image(data) for data in row["clean"]],
                logps=floats(row["logps"]),
                old_logps=floats(row["old_logps"]),
                native=floats(row["native"]),
                advantage=row["advantage"],
                reward=row["reward"],
                info=json.loads(row["info"] or "{}"),
                **kinds,
            )
        )
    return records, json.loads((table.schema.metadata or {}).get(FILE_KEY, b"{}"))


# The page


def write_image_report(path: Path, records: Iterable[ImageCredit], about: Mapping[str, Any]) -> None:
    """Writes a self-contained HTML file that shows images with the credit of their steps. It has no script.

    Args:
        path: The file. An existing one is replaced only once the new one is complete.
        records: The images.
        about: Describes all of them, each part optional: `title`, `model`, `step`, `methods` (parameters by label),
            `advice` (by label: what to do about a method that was uniform in effect, as the end of a sentence) and
            `weights_in` ("ratio" if a method scales the steps' log-ratios instead of the advantage). Anything else is
            listed under "How it was made".
    """
    records = list(records)
    about = {key: item if key in ("title", "advice") else without_folders(item) for key, item in about.items()}
    labels = list(dict.fromkeys(label for r in records for label in (*r.weights, *r.token_advantages)))
    highest = max([1.0, *(float(v) for r in records for values in r.weights.values() for v in values if finite(v))])
    write_page(
        path,
        __package__,
        "images",
        scripted=False,
        images=True,
        about=about,
        title=about.get("title") or about.get("model") or "Image credit",
        made={name: about[name] for name in about if name not in ("advice", "title", "methods")},
        methods=about.get("methods") or {},
        sentences=[_sentence(label, records, (about.get("advice") or {}).get(label)) for label in labels],
        in_ratio=about.get("weights_in") == "ratio",
        cards=[_card(record, highest) for record in records],
        number=number,
        small=lambda image: max(image.size) <= _SMALL,
        uri=_uri,
        final_side=FINAL_SIDE,
        step_side=STEP_SIDE,
    )


def _uri(image: Image, side: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image, side)).decode()


def _sentence(label: str, records: Sequence[ImageCredit], advice: str | None) -> str:
    """What a method does to the steps. Backquotes mark its label."""
    found = [
        (float(weight), step)
        for record in records
        for weight, step in zip(record.weights.get(label, ()), record.steps, strict=False)
        if finite(weight)
    ]
    if not found:
        return f"`{label}` has no weights here."
    (low, first), (high, last) = min(found), max(found)
    if high - low <= 1e-3 * max(abs(high), 1e-9):
        said = f"`{label}` gives every step the weight {number(low)}"
    else:
        said = f"`{label}` weighs the steps from {number(low)} (step {first}) to {number(high)} (step {last})"
        said += f", {number(sum(weight for weight, _ in found) / len(found))} on average"
    return f"{said}: {advice}" if advice else f"{said}."


def direction(advantage: float | None) -> tuple[str, str]:
    """An advantage in words, and its class."""
    if advantage is None or not math.isfinite(advantage):
        return "unknown", ""
    text = number(advantage) if advantage <= 0 else f"+{number(advantage)}"
    if not advantage:
        return f"{text} (no push)", ""
    return (f"{text} (made likelier)", "good") if advantage > 0 else (f"{text} (made less likely)", "bad")


def _card(record: ImageCredit, highest: float) -> dict[str, Any]:
    """A record as its part of the page shows it."""

    def signed(values: np.ndarray) -> list[str]:
        return [("+" if finite(value) and value > 0 else "") + number(float(value)) for value in values]

    def plain(values: np.ndarray) -> list[str]:
        return [number(float(value)) for value in values]

    push, css = direction(record.advantage)
    several = len(record.weights) > 1 or len(record.token_advantages) > 1
    fill = "b" if css == "bad" else "a"
    rows = []
    for label, values in record.weights.items():
        bars = [_bar(float(value), highest, fill) for value in values]
        rows.append((f"weight of {label}" if several else "weight c", plain(values), bars))
    for label, values in record.token_advantages.items():
        rows.append((f"advantage under {label}" if several else "token advantage", signed(values), None))
    if record.native is not None:
        shares = [f"{100 * float(value):.1f} %" if finite(value) else "\u2013" for value in record.native]
        rows.append(("native share", shares, None))
    if record.log_ratios is not None:
        rows.append(("log-ratio", signed(record.log_ratios), None))
    else:
        rows.append(("log-prob", plain(record.logps), None))
    return {"record": record, "push": push, "css": css, "rows": rows}


def _bar(value: float, highest: float, fill: str) -> Markup:
    """An upright bar for a weight, with a line at 1."""
    top, bottom = 2, _BAR_HEIGHT
    one = bottom - (bottom - top) / highest
    parts = []
    if math.isfinite(value):
        height = (bottom - top) * min(max(value, 0.0), highest) / highest
        parts.append(
            svg.tag(
                "rect", x="25%", width="50%", y=f"{bottom - height:.2f}", height=f"{height:.2f}", class_=f"fill {fill}"
            )
        )
    parts.append(svg.tag("line", x1=0, x2="100%", y1=f"{one:.2f}", y2=f"{one:.2f}", class_="one"))
    parts.append(svg.tag("line", x1=0, x2="100%", y1=bottom, y2=bottom, class_="axis"))
    return svg.tag("svg", svg.join(parts), class_="upright", height=bottom + 1, aria_hidden="true")


def picture(records: Sequence[ImageCredit]) -> Image:
    """A picture for trackers that show no pages: a row for each image, its steps' estimates and the image itself.

    Columns are titled with the steps and their weights under the first method, if all images have the same.
    """
    alike = len({tuple(map(int, record.steps)) for record in records}) == 1
    first = records[0]
    titles = []
    if alike:
        weights = next(iter(first.weights.values()), None)
        same = weights is not None and all(
            np.allclose(next(iter(record.weights.values()), weights), weights, equal_nan=True) for record in records
        )
        titles = [f"{step}: c {_ascii(weights[i])}" if same else f"step {step}" for i, step in enumerate(first.steps)]
        titles.append("image")
    rows: dict[str, list[Image]] = {}
    for i, record in enumerate(records):
        label = f"{i + 1}. reward {_ascii(record.reward)}, advantage {_ascii(record.advantage)}"
        rows[label] = [*record.clean, *([] if record.image is None else [record.image])]
    return image_grid(rows, titles=titles[: max(map(len, rows.values()))], cell=96)


def _ascii(value: Any) -> str:
    """A number in characters that the font of pictures has."""
    return f"{value:.3g}" if finite(value) else "unknown"
