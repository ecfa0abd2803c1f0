"""The report of an evaluation in Chromium."""

from urllib.parse import parse_qs, urlsplit

import pytest
from support.evaluation_runs import SHOWN, found, hostile_comparison, hostile_evaluation, make_evaluation

from trl_credit.evaluation.compare_page import write_comparison_report
from trl_credit.evaluation.page import write_evaluation_report


@pytest.fixture(scope="module")
def evaluation_report(tmp_path_factory):
    data = make_evaluation()
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_evaluation_report(path, **data)
    return path, data


def search(page, text):
    page.fill("[name=q]", text)
    # The search starts when typing has paused. wait_for_function would need `eval`, which the page's policy forbids.
    page.wait_for_url(lambda url: parse_qs(urlsplit(url).fragment).get("q", [""]) == [text])


def reader_title(page):
    return page.inner_text("#reader h3 >> nth=0")


def titles(page):
    return page.locator("#list .where").all_inner_texts()


@pytest.mark.browser
@pytest.mark.slow
def test_filters_show_what_they_say(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    samples = data["samples"]
    assert found(page) == len(samples) == 240
    assert page.locator("#list li").count() == 50
    tests = {
        "right": lambda sample: sample["correct"] is True,
        "wrong": lambda sample: sample["correct"] is False,
        "answered": lambda sample: sample["correct"] is False and sample["status"] == "judged",
        "unparsed": lambda sample: sample["status"] == "unparsed",
        "empty": lambda sample: sample["status"] == "empty",
        "truncated": lambda sample: sample["finish"] == "length",
        "failed": lambda sample: sample["outcome"] != "ok",
        "unjudged": lambda sample: sample["correct"] is None,
    }
    offered = page.locator("[name=show] option").evaluate_all("options => options.map(option => option.value)")
    assert offered == ["", *tests]
    for name, test in tests.items():
        page.select_option("[name=show]", name)
        expected = sum(map(test, samples))
        assert expected > 0
        assert found(page) == expected
        assert f"({expected})" in page.inner_text(f"[name=show] option[value={name}]")
    page.select_option("[name=show]", "right")
    page.select_option("[name=task]", "aime25")
    assert found(page) == sum(sample["correct"] is True and sample["task"] == "aime25" for sample in samples)
    page.select_option("[name=problem]", "aime25/29")
    chosen = [s for s in samples if s["correct"] is True and (s["task"], s["problem"]) == ("aime25", 29)]
    assert found(page) == len(chosen)
    # A problem of another task cannot stay chosen
    page.select_option("[name=task]", "aime24")
    assert page.input_value("[name=problem]") == ""
    page.click("#clear")
    assert found(page) == 240


@pytest.mark.browser
@pytest.mark.slow
def test_samples_without_a_verdict(open_page, other_run):
    page = open_page(other_run / "report.html")
    assert found(page) == 18
    page.select_option("[name=show]", "unjudged")
    assert "not judged (3)" in page.inner_text("[name=show] option[value=unjudged]")
    assert found(page) == 3
    assert set(page.locator("#list .verdict").all_inner_texts()) <= {"not judged", "not judged, cut off"}
    assert "not judged" in page.inner_text("#reader dl")
    assert "cannot be" in page.inner_text("#reader dl")
    page.wait_for_selector("#text:not(:text-is('…'))")
    assert "undefined" not in page.inner_text("main")


@pytest.mark.browser
@pytest.mark.slow
def test_a_list_that_scrolls_cuts_its_last_row(open_page, evaluation_report):
    page = open_page(evaluation_report[0])
    shown = page.evaluate(
        """[...document.querySelectorAll('#problems tbody tr')].map(row => {
             const edge = row.closest('.scroll').getBoundingClientRect().bottom - 1, box = row.getBoundingClientRect();
             return (edge - box.top) / box.height;
           }).find(share => share <= 1)"""
    )
    assert 0.25 < shown < 0.75


@pytest.mark.browser
@pytest.mark.slow
def test_search_and_reader(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    search(page, "NEEDLE-aime25-3-")
    assert found(page) == sum("needle-aime25-3-" in sample["text"] for sample in data["samples"])
    sample = next(sample for sample in data["samples"] if "needle-aime25-3-" in sample["text"])
    page.wait_for_selector("#text mark")
    assert page.inner_text("#text mark").startswith("needle-aime25-3-")
    assert page.text_content("#text") == sample["text"]
    facts = dict(
        zip(page.locator("#reader dt").all_inner_texts(), page.locator("#reader dd").all_inner_texts(), strict=True)
    )
    assert facts["Answer read"] == (sample["answer"] or "\u2013")
    assert facts["Solution"] == "103"
    assert facts["Why"] == sample["reason"]
    assert facts["Seed"] == str(sample["seed"])
    assert "Find the number of ordered pairs" in page.inner_text("#reader .question")
    # Nothing typed is taken for a pattern
    search(page, ".*(")
    assert found(page) == 0
    assert "No sample passes" in page.inner_text("#list")
    search(page, r"\boxed{1")
    expected = sum("\\boxed{1" in sample["text"] for sample in data["samples"])
    assert found(page) == expected > 0


@pytest.mark.browser
@pytest.mark.slow
def test_order_pages_and_keys(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    page.select_option("[name=sort]", "longest")
    lengths = [int(text.split()[0].replace(",", "")) for text in page.locator("#list .length").all_inner_texts()]
    assert lengths == sorted((sample["tokens"] for sample in data["samples"]), reverse=True)[:50]
    page.select_option("[name=sort]", "index")
    assert titles(page)[:2] == ["aime24 · 0 · sample 0", "aime24 · 1 · sample 0"]
    page.select_option("[name=sort]", "")

    page.focus("#list")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert reader_title(page) == "aime24, problem 0, sample 2"
    page.keyboard.press("k")
    assert reader_title(page) == "aime24, problem 0, sample 1"
    assert page.locator("#list [aria-selected=true]").count() == 1
    page.keyboard.press("PageDown")
    assert page.inner_text("#page") == "2 of 5"
    assert reader_title(page) == "aime24, problem 12, sample 2"
    page.keyboard.press("k")
    assert page.inner_text("#page") == "1 of 5"
    page.keyboard.press("End")
    assert page.inner_text("#page") == "5 of 5"
    assert reader_title(page) == "aime25, problem 29, sample 3"
    page.keyboard.press("j")
    assert reader_title(page) == "aime25, problem 29, sample 3"
    page.click("text=‹ Previous")  # noqa: RUF001
    assert reader_title(page) == "aime25, problem 29, sample 2"
    page.keyboard.press("Enter")
    assert reader_title(page) == "aime25, problem 29, sample 1"


@pytest.mark.browser
@pytest.mark.slow
def test_the_address_holds_the_view(open_page, evaluation_report):
    path, _ = evaluation_report
    page = open_page(path)
    page.select_option("[name=show]", "wrong")
    page.select_option("[name=sort]", "shortest")
    search(page, "7 x")
    found(page)
    page.click("#list li >> nth=3")
    shared = page.evaluate("location.hash")
    assert "show=wrong" in shared
    other = open_page(path, shared)
    assert found(other) == found(page)
    other.wait_for_selector("#text mark")
    assert reader_title(other) == reader_title(page)
    assert titles(other) == titles(page)
    assert other.input_value("[name=q]") == "7 x"
    # An address that another report made, or nobody
    odd = open_page(path, "#task=zz&problem=1&show=constructor&sort=toString&page=-7&sample=x&y=1")
    assert found(odd) == 240
    assert odd.inner_text("#page") == "1 of 5"
    odd.evaluate("location.hash = 'show=right&page=2'")
    odd.wait_for_selector("#page >> text=/^2 of/")


@pytest.mark.browser
@pytest.mark.slow
def test_table_of_problems(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)

    def column(number):
        return page.locator("#problems tbody tr").evaluate_all(
            "(rows, number) => rows.map(row => row.cells[number].dataset.value)", number
        )

    heading = page.locator("#problems th", has_text="mean tokens")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = [float(value) for value in column(4)]
    assert ascending == sorted(ascending)
    heading.locator("button").press("Enter")
    assert [float(value) for value in column(4)] == ascending[::-1]
    page.locator("#problems th", has_text="accuracy").locator("button").click()
    shares = [float(value) for value in column(2)]
    expected = [row["accuracy"] for task in data["results"]["tasks"].values() for row in task["per_problem"]]
    assert shares == pytest.approx(sorted(expected))
    page.click("button[data-task='1'][data-problem='7']")
    assert found(page) == 4
    assert reader_title(page) == "aime25, problem 7, sample 0"
    assert page.evaluate("document.activeElement.id") == "list"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluation", "comparison"])
def test_hostile_text_does_nothing(open_page, tmp_path, kind):
    path = tmp_path / "hostile.html"
    if kind == "evaluation":
        write_evaluation_report(path, **hostile_evaluation())
        page = open_page(path)
        page.wait_for_selector("#text >> text=alert(1)")
        assert page.text_content("#text") == SHOWN
        assert SHOWN in page.text_content("#reader dl")
        assert page.text_content("#reader .question") == SHOWN
        search(page, "<script>alert(1)")
        assert found(page) == 12
        assert page.text_content("#text") == SHOWN
        page.click("button[data-problem='1'] >> nth=0")
        assert found(page) == 2
    else:
        write_comparison_report(path, hostile_comparison())
        page = open_page(path)
        assert SHOWN in page.text_content("#flag")
    assert "<script>alert(1)" in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script:not([type])").count() == 1
    page.wait_for_timeout(100)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(open_page, evaluation_report, comparison_report, tmp_path, scheme, width):
    hostile = tmp_path / "hostile.html"
    write_evaluation_report(hostile, **hostile_evaluation())
    for path in (evaluation_report[0], comparison_report[0], hostile):
        page = open_page(path, width=width, scheme=scheme)
        page.wait_for_load_state()
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        # A chart's labels may stand outside its box, and must not stand outside the page
        widest = page.evaluate(
            "Math.max(document.scrollingElement.scrollWidth, "
            "...[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().right))"
        )
        assert widest <= width
        leftmost = page.evaluate(
            "Math.min(0, ...[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().left))"
        )
        assert leftmost == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert dark == (scheme == "dark")


@pytest.mark.browser
@pytest.mark.slow
def test_two_thousand_long_samples(open_page, tmp_path):
    data = make_evaluation(problems=30, n=34, characters=20_000)
    path = tmp_path / "large.html"
    write_evaluation_report(path, **data)
    page = open_page(path)
    assert found(page) == 2040
    page.select_option("[name=show]", "wrong")
    assert found(page) == sum(sample["correct"] is False for sample in data["samples"])
    page.select_option("[name=show]", "")
    search(page, "needle-aime25-29-33.")
    page.wait_for_selector("#status >> text=/^1 of/", timeout=60_000)
    search(page, "needle-aime24-")
    assert found(page) == sum("needle-aime24-" in sample["text"] for sample in data["samples"])
