"""The comparison of two evaluations in Chromium."""

import pytest

from trl_credit.evaluation.compare_page import headline


@pytest.mark.browser
@pytest.mark.slow
def test_comparison_page(open_page, comparison_report):
    path, data = comparison_report
    page = open_page(path)
    rows = [row for task in data["tasks"].values() for row in task["per_problem"]]
    assert page.inner_text("h1") == headline(data)
    assert "sampling.temperature" in page.inner_text("#flag")

    def visible_rows():
        number = page.locator("#problems tbody tr:visible").count()
        assert page.inner_text("#status") == f"{number} of 60 problems"
        return number

    assert visible_rows() == 60
    for kind in ("up", "down", "same"):
        page.select_option("[name=show]", kind)
        assert visible_rows() == sum(row["moved"] == kind for row in rows) > 0
    page.select_option("[name=show]", "moved")
    page.select_option("[name=task]", "aime25")
    chosen = [row for row in data["tasks"]["aime25"]["per_problem"] if row["moved"] != "same"]
    assert visible_rows() == len(chosen)
    other = open_page(path, page.evaluate("location.hash"))
    assert other.locator("#problems tbody tr:visible").count() == len(chosen)
    page.click("#clear")
    page.fill("[name=q]", "CASE 12:")
    page.wait_for_selector("#status >> text=/^2 of/")
    page.fill("[name=q]", "")
    page.locator("#problems th", has_text="B − A").locator("button").click()  # noqa: RUF001
    values = page.locator("#problems tbody tr").evaluate_all(
        "rows => rows.map(row => Number(row.cells[3].dataset.value))"
    )
    assert values == pytest.approx(sorted(row["difference"] for row in rows))
