"""The page of credit records in Chromium."""

import itertools
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from support.credit_report import about, awkward_records, make_record, value
from support.evaluation_runs import HOSTILE, SHOWN

from trl_credit.records.page import write_credit_report
from trl_credit.records.summary import (
    concentration,
)


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip

ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


# ---- In a browser


def detail(page):
    """The numbers of the detail panel: by method, and by name."""
    rows = page.locator("#detail tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    names = page.locator("#detail dt").all_text_contents()
    values = page.locator("#detail dd").all_text_contents()
    return {row[0]: row[1:] for row in rows}, dict(zip(names, values, strict=True))


def check_detail(page, record, i):
    """That the panel shows what the record says of a token."""
    near = {"rel": 6e-3, "abs": 1e-12}
    head = page.inner_text("#detail-token")
    assert f"id {record.token_ids[i]}, token {i + 1} of {len(record.tokens)}" in head
    methods, values = detail(page)
    for label, weights in record.weights.items():
        weight, rank, advantage = methods[label]
        if record.mask[i]:
            assert value(weight) == pytest.approx(float(weights[i]), **near)
            place = 1 + int((weights[record.mask] > weights[i]).sum())
            assert rank == f"{place} of {int(record.mask.sum())}"
            assert value(advantage) == pytest.approx(float(record.token_advantages[label][i]), **near)
        else:
            assert (weight, rank, advantage) == ("–", "–", "–")  # noqa: RUF001
            assert "not in the loss" in head
    expected = {"log-prob": record.logps, "entropy": record.entropy, **record.signals}
    expected["contrast (negative − policy)"] = record.signals["negative-prompt log-prob"] - record.logps  # noqa: RUF001
    assert set(values) == set(expected)
    for name, array in expected.items():
        assert value(values[name]) == pytest.approx(
            float(array[i]), rel=6e-3, abs=2e-3 if "contrast" in name else 1e-12
        )


def ready(page):
    page.wait_for_selector("#panels:not([aria-busy]) .t")
    return page


@pytest.fixture(scope="module")
def credit_report(tmp_path_factory):
    records = [
        make_record(TOKENS + ["w"] * (3 * k), seed=k, masked=(4, 5) if k == 0 else (), advantage=[1.25, -0.75, 0.0][k % 3],
                    reward=float(k * 7 % 5), group=k // 4)
        for k in range(12)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("credit") / "credit.html"
    write_credit_report(path, records, about())
    return path, records


@pytest.mark.browser
@pytest.mark.slow
def test_colours_and_bars_follow_the_weights(open_page, credit_report):
    path, records = credit_report
    page = ready(open_page(path))
    record = records[0]
    found = page.locator("#panels .panel:nth-child(2) .t").evaluate_all(
        """spans => spans.map(span => {
             const style = getComputedStyle(span);
             return [style.backgroundColor, style.backgroundImage, Number(style.getPropertyValue('--thick'))];
           })"""
    )
    weights = record.weights["gcpo"]
    for i, (colour, image, thick) in enumerate(found):
        red, _, blue = map(int, re.findall(r"\d+", colour)[:3])
        if not record.mask[i]:
            assert "repeating-linear-gradient" in image
        elif weights[i] < 0.9:
            assert blue > red
        elif weights[i] > 1.1:
            assert red > blue
        if record.mask[i]:
            assert thick == min(8, round(float(weights[i])))
    assert (weights[record.mask] < 0.9).any()
    assert (weights[record.mask] > 1.1).any()
    even = page.locator("#panels .panel:nth-child(1) .t:not(.off)").evaluate_all(
        "spans => [...new Set(spans.map(span => getComputedStyle(span).backgroundColor))]"
    )
    assert len(even) == 1


@pytest.mark.browser
@pytest.mark.slow
def test_hover_and_focus_show_the_record(open_page, credit_report):
    path, records = credit_report
    page = ready(open_page(path))
    record = records[0]
    gcpo = page.locator("#panels .panel:nth-child(2) .t")
    assert gcpo.count() == len(TOKENS)
    check_detail(page, record, 0)
    for i in (3, 4, 10, 13):
        gcpo.nth(i).hover()
        check_detail(page, record, i)
        assert page.locator("#panels .here").count() == 3
        assert page.locator("#panels .here >> nth=0").evaluate("span => span.token") == i
        assert page.locator("#panels .panel:nth-child(3) .t").nth(i).evaluate("span => span.classList.contains('here')")
    # Without the pointer, the token with the focus
    page.mouse.move(2, 2)
    check_detail(page, record, 0)
    gcpo.nth(1).click()
    page.mouse.move(2, 2)
    check_detail(page, record, 1)
    for key, i in [
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 19),
        ("ArrowRight", 19),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        check_detail(page, record, i)
        assert page.evaluate("document.activeElement.token") == i
        assert page.locator("#panels .panel:nth-child(2) .t[tabindex='0']").count() == 1
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('.panel').querySelector('strong').textContent") == "dgpo"
    page.keyboard.press("ArrowUp")
    # By weight
    order = [i for i in np.argsort(-record.weights["gcpo"], kind="stable") if record.mask[i]]
    start = order.index(0)
    page.keyboard.press("n")
    check_detail(page, record, order[start + 1])
    page.keyboard.press("p")
    check_detail(page, record, 0)


@pytest.mark.browser
@pytest.mark.slow
def test_tokens_are_shown_as_they_are(open_page, credit_report):
    page = ready(open_page(credit_report[0]))
    shown = page.locator("#panels .panel:nth-child(1) .t").all_text_contents()
    special = {" ": "·", "\n": "⏎\n", "\n\n": "⏎\n⏎\n", "\t": "→"}
    assert shown == [special.get(token, token) for token in TOKENS]
    assert page.locator("#panels script, #panels img").count() == 0
    assert page.locator("#panels .rtl").count() == 3
    # A line's end ends the line
    tops = page.locator("#panels .panel:nth-child(1) .t").evaluate_all("s => s.map(t => t.getBoundingClientRect().top)")
    assert tops[6] == tops[0]
    assert tops[9] > tops[7] > tops[6] - 1
    # Tokens stand from left to right, whatever their script
    lefts = page.locator("#panels .panel:nth-child(1) .t").evaluate_all(
        "s => s.map(t => t.getBoundingClientRect().left)"
    )
    assert all(a < b for i, (a, b) in enumerate(itertools.pairwise(lefts)) if tops[i] == tops[i + 1])
    page.click("#prompt summary")
    assert page.text_content("#prompt pre") == "What is 83 + 48?\n<|im_start|>"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_panels_are_aligned(open_page, tmp_path, width):
    records = [make_record([*TOKENS, *[f" word{k}" for k in range(300)]])]
    write_credit_report(tmp_path / "a.html", records, about())
    page = ready(open_page(tmp_path / "a.html", width=width))
    places = page.locator("#panels .tokens").evaluate_all(
        """boxes => boxes.map(box => {
             const origin = box.getBoundingClientRect();
             return [...box.querySelectorAll('.t')].map(span => {
               const place = span.getBoundingClientRect();
               return [place.left - origin.left, place.top - origin.top, place.width];
             });
           })"""
    )
    assert len(places) == 3
    for other in places[1:]:
        assert np.allclose(places[0], other, atol=0.01)
    # They scroll together
    boxes = page.locator("#panels .tokens")
    boxes.nth(1).evaluate("box => { box.scrollTop = 60; }")
    page.wait_for_timeout(100)
    assert boxes.evaluate_all("boxes => boxes.map(box => box.scrollTop)") == [60, 60, 60]
    # Methods can be switched off
    page.uncheck("[name=method][value='0']")
    page.wait_for_selector("#panels .panel >> nth=1")
    assert page.locator("#panels strong").all_text_contents() == ["gcpo", "dgpo"]
    other = ready(open_page(tmp_path / "a.html", page.evaluate("location.hash"), width=width))
    assert other.locator("#panels strong").all_text_contents() == ["gcpo", "dgpo"]


@pytest.mark.browser
@pytest.mark.slow
def test_order_groups_and_keys(open_page, credit_report):
    path, records = credit_report
    page = ready(open_page(path))

    def listed():
        return [int(t.split()[0][1:]) - 1 for t in page.locator("#list .line:first-child").all_inner_texts()]

    assert listed() == list(range(12))
    keys = {
        "reward": lambda r: -r.reward,
        "unrewarded": lambda r: r.reward,
        "advantage": lambda r: -r.advantage,
        "disadvantage": lambda r: r.advantage,
        "longest": lambda r: -len(r.tokens),
        "shortest": lambda r: len(r.tokens),
        "concentrated": lambda r: -concentration(r.weights["gcpo"], r.mask),
        "even": lambda r: concentration(r.weights["gcpo"], r.mask),
    }
    page.select_option("[name=by]", "1")
    for name, key in keys.items():
        page.select_option("[name=sort]", name)
        assert listed() == [records.index(r) for r in sorted(records, key=key)], name
    page.select_option("[name=sort]", "")
    page.select_option("[name=group]", "1")
    assert listed() == [4, 5, 6, 7]
    assert page.inner_text("#status") == "4 of 12 completions"
    page.select_option("[name=group]", "")

    def title():
        return page.inner_text("#reader-title")

    page.focus("#list")
    for key, number_ in [
        ("j", 2),
        ("ArrowDown", 3),
        ("k", 2),
        ("ArrowUp", 1),
        ("k", 1),
        ("End", 12),
        ("j", 12),
        ("Home", 1),
    ]:
        page.keyboard.press(key)
        assert title() == f"Completion {number_}"
        assert page.locator("#list [aria-selected=true]").count() == 1
    page.click("#on")
    assert title() == "Completion 2"
    ready(page).locator("#panels .t").nth(2).click()
    page.keyboard.press("j")
    assert title() == "Completion 3"
    ready(page)
    facts = dict(
        zip(page.locator("#facts dt").all_text_contents(), page.locator("#facts dd").all_text_contents(), strict=True)
    )
    assert facts["Advantage"] == "■ 0: no push"
    assert facts["answer"] == "145"
    page.keyboard.press("k")
    assert "▼ −0.75, negative: made less likely" in page.inner_text("#facts")  # noqa: RUF001
    odd = ready(open_page(path, "#sort=constructor&by=99&group=x&page=-3&c=zz&off=7"))
    assert odd.locator("#list li").count() == 12
    assert odd.inner_text("#reader-title") == "Completion 1"


@pytest.mark.browser
@pytest.mark.slow
def test_awkward_records_do_nothing(open_page, tmp_path):
    records = awkward_records()
    write_credit_report(tmp_path / "a.html", records, about(title=HOSTILE, methods={HOSTILE: HOSTILE}))
    page = open_page(tmp_path / "a.html")
    page.wait_for_selector("#panels >> text=The completion has no tokens.")
    texts = []
    for _ in records[1:]:
        page.keyboard.press("j")
        ready(page)
        texts.append(page.inner_text("#reader"))
        assert not re.search(r"\b(NaN|undefined|null|None)\b", texts[-1].replace('",null]', ""))
    assert page.locator("img").count() == 0
    assert page.locator("script:not([type])").count() == 1
    page.keyboard.press("k")
    ready(page)
    assert page.locator("#panels .t >> nth=0").text_content() == SHOWN
    assert page.locator("#panels .panel:first-child .t").all_text_contents()[1:] == ["∅", "␍", "\u0301"]
    assert re.search(r"additive\s*token advantages", texts[2])
    assert "no usable weights" in texts[0]
    write_credit_report(tmp_path / "none.html", [], {})
    empty = open_page(tmp_path / "none.html")
    assert empty.inner_text("#reader-title") == "No completion"


CONTRAST = """() => {
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const box = document.querySelector('.scale');
  return ['n6', 'n5', 'n4', 'n3', 'n2', 'n1', 'z', 'p1', 'p2', 'p3', 'p4', 'p5', 'p6', 'off', 'unknown'].map(name => {
    const span = document.createElement('span');
    span.className = `t ${name}`;
    box.append(span);
    const style = getComputedStyle(span);
    const colours = style.backgroundImage.match(/rgb\\([^)]*\\)/g) ?? [style.backgroundColor];
    const card = getComputedStyle(document.getElementById('reader')).backgroundColor;
    const grounds = colours.map(c => /, 0\\)$/.test(c) ? card : c).concat(name === 'off' ? [card] : []).map(luminance);
    const ink = luminance(style.color);
    return [name, grounds[0], Math.min(...grounds.map(g => (Math.max(g, ink) + 0.05) / (Math.min(g, ink) + 0.05)))];
  });
}"""


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast_and_width(open_page, tmp_path, scheme, width):
    records = [make_record(["x" * 300, *TOKENS], prompt="p" * 500), *awkward_records()]
    labels = {"a_very_long_method_name_that_does_not_end " * 3: records[0].weights["gcpo"]}
    records[0] = replace(records[0], weights=dict(records[0].weights) | labels)
    write_credit_report(tmp_path / "a.html", records, about(title="t" * 200))
    page = ready(open_page(tmp_path / "a.html", width=width, scheme=scheme))
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    found = page.evaluate(CONTRAST)
    assert {name: contrast for name, _, contrast in found if contrast < 4.5} == {}
    # Monotone in lightness: grey tells the weights apart
    luminances = [luminance for name, luminance, _ in found if name not in ("off", "unknown")]
    assert luminances == sorted(luminances, reverse=scheme == "light")


@pytest.mark.browser
@pytest.mark.slow
def test_two_hundred_long_completions(open_page, tmp_path):
    count, length = 200, 8000
    draw = np.random.default_rng(0)
    words = [" the", " sum", " is", ".\n", " =", "1", "2", " therefore", " x", "\n\n", " we"]
    first = make_record(draw.choice(words, length).tolist())

    def variants():
        for k in range(count):
            turn = 37 * k % length
            yield replace(
                first,
                weights={name: np.roll(values, turn) for name, values in first.weights.items()},
                token_advantages={},
                reward=float(k),
            )

    path = tmp_path / "large.html"
    started = time.monotonic()
    write_credit_report(path, variants(), about())
    print(f"written in {time.monotonic() - started:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size < 60e6
    started = time.monotonic()
    page = open_page(path, fragment="")
    page.wait_for_selector("#panels .t")
    print(f"first tokens after {time.monotonic() - started:.2f} s")
    ready(page)
    print(f"all tokens after {time.monotonic() - started:.2f} s")
    # One completion, whatever the number of them: three spans a token
    nodes = page.evaluate("document.querySelectorAll('*').length")
    assert 3 * length < nodes < 3 * length + 3000
    assert page.locator("#list li").count() == 50
    # Keys are taken while a completion is still being drawn
    started = time.monotonic()
    for _ in range(5):
        page.keyboard.press("j")
    assert page.inner_text("#reader-title") == "Completion 6"
    page.wait_for_selector("#panels .t")
    print(f"five completions further after {time.monotonic() - started:.2f} s")
    ready(page)
    assert page.evaluate("document.querySelectorAll('*').length") < 3 * length + 3000
    # Focus in the text moves two spans' marks in each panel
    page.locator("#panels .t").first.click()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#panels .at").count() == 3
    assert page.evaluate("document.activeElement.token") == 3
    page.keyboard.press("End")
    assert "token 8,000 of 8,000" in page.inner_text("#detail-token")
    page.select_option("[name=sort]", "reward")
    page.wait_for_selector("#reader-title:text-is('Completion 200')")
