"""Pictures of images: labelled rows, such as before and after training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._util.text import safe


if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont


_GAP = 6
_FONT_SIZE = 15
_LABEL_WIDTH = 320  # longer labels are cut
_PAPER, _INK, _FRAME = (255, 255, 255), (32, 36, 40), (214, 218, 222)


def image_grid(
    rows: "Mapping[str, Sequence[Image]]",
    path: str | Path | None = None,
    *,
    titles: Sequence[str] | None = None,
    cell: int | None = None,
) -> "Image":
    """Draws labelled rows of images below each other.

    Images keep their proportions. Small ones are enlarged by whole factors with sharp pixels, and larger ones reduced.

    Args:
        rows: Each row's label and its images, which may differ in number, size and mode.
        path: PNG file to write; its folder is made.
        titles: Text above each column.
        cell: Side of the square that each image gets, in pixels. By default 64 or more for small images, and at most
            256.

    Returns:
        The picture, in RGB. The same images give the same picture.

    Raises:
        ValueError: No images, an item that is not a PIL image, more titles than columns, a `cell` below 1, or a path that
            does not end in .png.
    """
    from PIL import Image, ImageDraw

    columns = max(map(len, rows.values()), default=0)
    titles = list(titles or [])
    if not columns:
        raise ValueError("`rows` has no images.")
    for label, images in rows.items():
        for i, image in enumerate(images):
            if not isinstance(image, Image.Image) or not image.width or not image.height:
                raise ValueError(f"`rows`: item {i} of {label!r} must be a PIL image, got {image!r}.")
    if len(titles) > columns:
        raise ValueError(f"`titles` has {len(titles)} texts for {columns} columns.")
    if cell is not None and cell < 1:
        raise ValueError(f"`cell` must be at least 1, got {cell}.")
    if path is not None and Path(path).suffix != ".png":
        raise ValueError(f"`path` must end in .png, got {str(path)!r}.")

    largest = max(max(image.size) for images in rows.values() for image in images)
    if cell is None:
        cell = min(largest * max(1, -(-64 // largest)), 256)
    font = _font()
    labels = [_fitted(safe(label), font, _LABEL_WIDTH) for label in rows]
    titles = [_fitted(safe(title), font, cell) for title in titles]
    line = _FONT_SIZE + _GAP
    left = 2 * _GAP + round(max(font.getlength(label) for label in labels))
    top = _GAP + (line if titles else 0)
    size = (left + columns * (cell + _GAP), top + len(rows) * (cell + _GAP))
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        center = left + column * (cell + _GAP) + cell / 2
        draw.text((center, _GAP + line / 2), title, fill=_INK, font=font, anchor="mm")
    for row, (label, images) in enumerate(zip(labels, rows.values(), strict=True)):
        y = top + row * (cell + _GAP)
        draw.text((_GAP, y + cell / 2), label, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            shown = _sized(image, cell)
            x = left + column * (cell + _GAP)
            corner = (x + (cell - shown.width) // 2, y + (cell - shown.height) // 2)
            picture.paste(shown, corner)
            edge = (corner[0] - 1, corner[1] - 1, corner[0] + shown.width, corner[1] + shown.height)
            draw.rectangle(edge, outline=_FRAME)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG", optimize=True)
    return picture


def _sized(image: "Image", cell: int) -> "Image":
    """The image in RGB, on white if it is transparent, as large as fits into the cell."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*_PAPER, 255)), image)
    image = image.convert("RGB")
    largest = max(image.size)
    if largest > cell:
        return image.resize(
            tuple(max(1, round(side * cell / largest)) for side in image.size), Image.Resampling.LANCZOS
        )
    return image.resize(tuple(side * (cell // largest) for side in image.size), Image.Resampling.NEAREST)


def _font() -> "FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.load_default(_FONT_SIZE)


def _fitted(text: str, font: "FreeTypeFont", width: int) -> str:
    """The text, cut to fit."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..." if text else ""
