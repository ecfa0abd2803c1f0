"""The page of image credit in Chromium."""

import pytest
from support.image_credit import image_about, make_image, odd_images

from trl_credit.records.images import write_image_report


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_images_load_and_fit(open_page, tmp_path, width, scheme):
    records = [make_image(steps=range(20)), make_image(size=(300, 200), mode="RGB"), *odd_images()]
    write_image_report(tmp_path / "step.html", records, image_about())
    page = open_page(tmp_path / "step.html", width=width, scheme=scheme)
    images = page.locator("img").evaluate_all(
        "all => all.map(one => [one.naturalWidth, one.naturalHeight, getComputedStyle(one).imageRendering])"
    )
    assert len(images) == sum(len(record.clean) + 1 for record in records)
    for *size, rendering in images:
        assert min(size) > 0
        assert (rendering == "pixelated") == (max(size) <= 64)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    bars = page.locator("article:first-of-type rect").evaluate_all("all => all.map(one => one.getBoundingClientRect())")
    weights = records[0].weights["pcpo"]
    heights = [bar["height"] for bar in bars]
    assert heights == pytest.approx((weights / weights.max() * max(heights)).tolist(), abs=0.1)
