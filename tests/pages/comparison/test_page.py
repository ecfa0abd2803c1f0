"""The page of a comparison in Chromium."""

import shutil

import pytest
from support.comparison import make_comparison

from trl_credit.comparison import results
from trl_credit.comparison.page import (
    write_learning_report,
)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api")
    the_plan, runs = make_comparison(labels=("uniform", "gcpo", "dgpo temperature=adaptive effective_fraction=0.3"))
    write_learning_report(tmp_path / "a.html", results.summarize(the_plan, runs))
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        faults, requests = [], []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "a.html").as_uri())
        lines = page.locator("figure.first polyline")
        assert lines.count() == 3
        page.locator('[data-toggle="1"]').uncheck()
        assert [lines.nth(i).is_visible() for i in range(3)] == [True, False, True]
        plot = page.locator("figure.first svg.plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
        readout = page.locator("figure.first .readout").text_content()
        assert readout.startswith("update 80: uniform 0.")
        assert "gcpo" not in readout
        page.locator("#seeds th", has_text="mean reward").get_by_role("button").click()
        cells = page.locator("#seeds tbody tr td:nth-child(3)").all_text_contents()
        assert cells == sorted(cells)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert faults == []
    assert len(requests) == 1
