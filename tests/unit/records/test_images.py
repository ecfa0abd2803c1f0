"""The page and files of image credit."""

import base64
import io
import math
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.evaluation_runs import HOSTILE, SHOWN
from support.image_credit import image_about, make_image, noise, odd_images

from trl_credit.records.images import (
    FINAL_SIDE,
    STEP_SIDE,
    picture,
    png_bytes,
    read_parquet,
    write_image_report,
    write_parquet,
)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, text, and rows of cells."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.rows, self.said = [], [], []
        self._hidden = self._in_cell = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        self._hidden = tag in ("style", "script")

    def handle_data(self, data):
        if self._hidden:
            return
        self.said.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self._hidden = False
        self._in_cell &= tag not in ("td", "th")

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())

    def row(self, name, place=0):
        return [row for row in self.rows if row and row[0] == name][place][1:]

    @property
    def images(self):
        found = [attrs for tag, attrs in self.elements if tag == "img"]
        assert all(attrs["src"].startswith("data:image/png;base64,") and attrs["alt"] for attrs in found)
        return [(attrs, Image.open(io.BytesIO(base64.b64decode(attrs["src"][22:])))) for attrs in found]


def number_of(text):
    return float(text.replace("\u2212", "-"))


def test_page_shows_the_records(tmp_path):
    path = tmp_path / "deep" / "step.html"
    records = [
        make_image(advantage=1.25),
        make_image(seed=1, advantage=-0.5, old_logps=None, reward=None),
        make_image(steps=(4, 7), seed=2, advantage=0.0, image=None, prompt=None),
    ]
    write_image_report(path, iter(records), image_about(advice={"pcpo": "use `uniform`"}))
    assert list(path.parent.iterdir()) == [path]
    page = Page(path)
    for place, record in enumerate(records):
        for name, values in (("weight c", record.weights), ("token advantage", record.token_advantages)):
            shown = list(map(number_of, page.row(name, place)))
            np.testing.assert_allclose(shown, values["pcpo"], rtol=6e-3)
        assert page.row("native share", place) == ["10.0 %"] * len(record.steps)
        assert page.row("trained steps", place) == [f"step {step}" for step in record.steps]
    np.testing.assert_allclose([number_of(v) for v in page.row("log-ratio")], 0.001, rtol=1e-2)
    np.testing.assert_allclose([number_of(v) for v in page.row("log-prob")], records[1].logps, rtol=6e-3)

    assert "+1.25 (made likelier)" in page.text
    assert "\u22120.5 (made less likely)" in page.text
    assert "0 (no push)" in page.text
    assert "sampled before the run was resumed" in page.text
    weights = np.concatenate([record.weights["pcpo"] for record in records])
    assert f"pcpo weighs the steps from {weights.min():.3g} (step " in page.text
    assert "on average: use uniform" in page.text
    assert "This method scales the step's log-ratio" in page.text

    expected = [
        image for record in records for image in [*([] if record.image is None else [record.image]), *record.clean]
    ]
    assert len(page.images) == len(expected)
    for (attrs, shown), image in zip(page.images, expected, strict=True):
        assert attrs["class"] == "small"
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))


def test_bars_are_as_high_as_the_weights(tmp_path):
    weights = np.array([0.0, 1.0, 2.0, 4.0, math.nan], np.float32)
    record = make_image(steps=range(5), weights={"pcpo": weights}, advantage=-1.0)
    write_image_report(tmp_path / "step.html", [record], image_about())
    elements = Page(tmp_path / "step.html").elements
    heights = [float(attrs["height"]) for tag, attrs in elements if tag == "rect"]
    assert all(attrs["class"] == "fill b" for tag, attrs in elements if tag == "rect")
    np.testing.assert_allclose(heights, np.array([0, 1, 2, 4]) / 4 * heights[-1], atol=0.02)
    lines = {float(attrs["y1"]) for tag, attrs in elements if tag == "line" and attrs["class"] == "one"}
    bottom = next(float(attrs["y1"]) for tag, attrs in elements if tag == "line" and attrs["class"] == "axis")
    assert bottom - lines.pop() == pytest.approx(heights[1], abs=0.02)
    assert not lines


def test_page_needs_no_script_and_no_network(tmp_path):
    write_image_report(tmp_path / "step.html", [make_image()], image_about())
    text = (tmp_path / "step.html").read_text("utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "script-src 'none'" in policy.replace("&#39;", "'")
    assert "img-src data:" in policy
    assert "<script" not in text
    assert "noscript" not in text
    assert "style=" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "://" not in text


@pytest.mark.parametrize("records", [[], odd_images(), *([record] for record in odd_images())])
def test_odd_input_makes_a_page(records, tmp_path):
    path = tmp_path / "step.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_image_report(path, records, image_about(title=HOSTILE, methods={HOSTILE: {HOSTILE: HOSTILE}}))
        write_image_report(tmp_path / "bare.html", records, {})
        write_parquet(tmp_path / "step.parquet", records, image_about(title=HOSTILE))
    page = Page(path)
    assert len(page.images) == sum(len(record.clean) + 1 for record in records)
    assert not {"script", "iframe", "b"} & {tag for tag, _ in page.elements}
    assert not re.search(r"\b(None|NaN|nan|undefined|inf)\b", page.text)
    assert " ".join(SHOWN.split()) in page.text
    read, described = read_parquet(tmp_path / "step.parquet")
    assert len(read) == len(records)
    assert described["step"] == 7


def test_parquet_returns_the_records(tmp_path):
    path = tmp_path / "step.parquet"
    broken = np.array([math.nan, 0.5, -math.inf], np.float32)
    records = [
        make_image(info={"answer": [1, None]}),
        make_image(steps=(3, 1), seed=1, mode="RGB", old_logps=None, native=None, image=None, prompt=None, reward=None),
        make_image(seed=2, weights={}, token_advantages={"uniform": broken}, old_logps=broken),
    ]
    write_parquet(path, records, image_about())
    read, described = read_parquet(path)
    assert described == image_about()
    for one, other in zip(records, read, strict=True):
        for name in ("prompt", "reward", "advantage", "steps", "info"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("logps", "old_logps", "native"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("weights", "token_advantages"):
            assert getattr(one, name).keys() == getattr(other, name).keys()
            for label, values in getattr(one, name).items():
                np.testing.assert_array_equal(values, getattr(other, name)[label])
        assert (one.image is None) == (other.image is None)
        for image, again in zip(one.clean, other.clean, strict=True):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(again))


def test_large_images_are_reduced(tmp_path):
    record = make_image(steps=[0], size=(1024, 512), mode="RGB")
    write_parquet(tmp_path / "step.parquet", [record])
    ((read,), _) = read_parquet(tmp_path / "step.parquet")
    assert read.image.size == (FINAL_SIDE, FINAL_SIDE // 2)
    assert read.clean[0].size == (STEP_SIDE, STEP_SIDE // 2)
    write_image_report(tmp_path / "step.html", [record], {})
    assert [(attrs["class"], shown.size) for attrs, shown in Page(tmp_path / "step.html").images] == [
        ("", read.image.size),
        ("", read.clean[0].size),
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "HSV"])
def test_png_of_every_mode(mode):
    for side in (4, 8):
        image = Image.open(io.BytesIO(png_bytes(noise(0).convert(mode), side)))
        assert image.size == (side, side)
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": []}, "clean has 0 images, but there are 3 steps."),
        ({"logps": np.zeros(2)}, r"logps has shape \(2,\), but there are 3 steps."),
        ({"old_logps": np.zeros((3, 1))}, r"old_logps has shape \(3, 1\)"),
        ({"weights": {"pcpo": np.zeros(4)}}, r"weights\['pcpo'\] has shape \(4,\)"),
        ({"image": "x.png"}, "image must be a PIL image with pixels, got 'x.png'."),
        ({"clean": [noise(0), None, noise(0)]}, r"clean\[1\] must be a PIL image"),
        ({"image": Image.new("L", (0, 3))}, "image must be a PIL image with pixels"),
    ],
)
def test_records_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        make_image(**change)


def test_other_files_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="Cannot read"):
        read_parquet(tmp_path / "text.parquet")
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is no table of image credit: it has no column 'clean'"):
        read_parquet(tmp_path / "other.parquet")


def test_picture_has_a_row_for_each_image():
    few, more = picture([make_image()]), picture([make_image(), make_image(seed=1, image=None)])
    assert few.mode == more.mode == "RGB"
    assert more.height > few.height + 90
    assert (
        picture([make_image(steps=(0, 1)), make_image(steps=(1, 2))]).size[0] == picture([make_image((0, 1))]).size[0]
    )
    for record in odd_images():
        if record.steps:
            picture([record])
