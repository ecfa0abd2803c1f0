"""Pictures of images in labelled rows."""

import numpy as np
import pytest
from PIL import Image

from trl_credit.report.grid import image_grid


def flat(color, size=(8, 8), mode="RGB"):
    return Image.new(mode, size, color)


RED, BLUE = (200, 0, 0), (0, 0, 200)


def share(picture, color):
    """Pixels of a color."""
    return (np.asarray(picture) == color).all(-1).sum()


def test_small_images_are_enlarged_with_sharp_pixels():
    image = flat(RED, (2, 1))
    image.putpixel((1, 0), BLUE)
    picture = image_grid({"row": [image]}, cell=20)
    assert (share(picture, RED), share(picture, BLUE)) == (100, 100)  # no color in between
    columns = np.flatnonzero((np.asarray(picture) == RED).all(-1).any(0))
    assert len(columns) == 10


def test_places():
    picture = np.asarray(image_grid({"before": [flat(RED), flat(BLUE)], "after": [flat(BLUE)]}, cell=16))
    red, blue = ((picture == color).all(-1) for color in (RED, BLUE))
    (top, bottom), (left, right) = (np.flatnonzero(red.any(axis))[[0, -1]] for axis in (1, 0))
    assert (bottom - top, right - left) == (15, 15)
    rows = np.flatnonzero(blue.any(1))
    assert rows.min() == top
    assert len(rows) == 32
    columns = np.flatnonzero(blue.any(0))
    assert columns.min() == left  # the second row starts below the first
    assert columns.max() > right


@pytest.mark.parametrize(
    ("size", "cell", "shown"),
    [
        ((8, 8), None, (64, 64)),
        ((10, 5), None, (70, 35)),
        ((100, 100), None, (100, 100)),
        ((512, 256), None, (256, 128)),
        ((1000, 1), 50, (50, 1)),
        ((8, 8), 20, (16, 16)),  # whole factors only
        ((8, 8), 8, (8, 8)),
    ],
)
def test_sizes(size, cell, shown):
    picture = np.asarray(image_grid({"": [flat(RED, size)]}, cell=cell))
    red = (picture == RED).all(-1)
    assert (red.any(0).sum(), red.any(1).sum()) == shown


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (flat(7, mode="L"), (7, 7, 7)),
        (flat(1, mode="1"), (255, 255, 255)),
        (flat((*RED, 255), mode="RGBA"), RED),
        (flat((*RED, 0), mode="RGBA"), (255, 255, 255)),
        (flat(RED).convert("P"), None),
    ],
)
def test_modes(image, color):
    picture = image_grid({"": [image]})
    assert picture.mode == "RGB"
    assert color is None or share(picture, color) >= 64 * 64


def test_file_and_text(tmp_path):
    rows = {"before": [flat(RED), flat(BLUE)], "\x1b[31m after " + "long " * 99: [flat(BLUE)]}
    path = tmp_path / "new" / "grid.png"
    picture = image_grid(rows, path, titles=["a 3", "a title that is longer than its cell"])
    assert Image.open(path).tobytes() == picture.tobytes()
    first = path.read_bytes()
    image_grid(rows, path, titles=["a 3", "a title that is longer than its cell"])
    assert path.read_bytes() == first
    assert picture.width < 600  # long labels are cut
    plain = image_grid(rows)
    assert plain.height < picture.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": {}}, "`rows` has no images"),
        ({"rows": {"a": []}}, "`rows` has no images"),
        ({"rows": {"a": [flat(RED), None]}}, "item 1 of 'a' must be a PIL image, got None"),
        ({"rows": {"a": [flat(RED, (0, 3))]}}, "item 0 of 'a' must be a PIL image"),
        ({"rows": {"a": [flat(RED)]}, "titles": ["1", "2"]}, "`titles` has 2 texts for 1 columns"),
        ({"rows": {"a": [flat(RED)]}, "cell": 0}, "`cell` must be at least 1, got 0"),
        ({"rows": {"a": [flat(RED)]}, "path": "a.jpg"}, "`path` must end in .png, got 'a.jpg'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_grid(**arguments)
