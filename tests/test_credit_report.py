import builtins
import io
import itertools
import json
import math
import random
import re
import time
import warnings
import zlib
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
import test_report
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from trl_credit.records import summary
from trl_credit.records.page import number, pack, write_credit_report
from trl_credit.records.picture import plot_credit, tick_label
from trl_credit.records.record import CompletionCredit
from trl_credit.records.summary import (
    GRID,
    MethodSummary,
    concentration,
    cumulative_mass,
    histograms,
    mass_curves,
    sentence,
    spearman,
    summarise,
)
from trl_credit.records.terminal import render


# The same browser, held to asking for nothing and complaining of nothing
browser = test_report.browser
open_page = test_report.open_page
HOSTILE, SHOWN = test_report.HOSTILE, test_report.SHOWN

TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip
ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


def make_record(tokens=TOKENS, seed=0, masked=(), advantage=1.25, **changes):
    draw = np.random.default_rng(seed)
    count = len(tokens)
    mask = np.ones(count, bool)
    mask[list(masked)] = False

    def spread(scale):
        scores = np.where(mask, np.exp(scale * draw.normal(size=count)), 0)
        return (scores * mask.sum() / max(scores.sum(), 1e-9)).astype(np.float32)

    weights = {"uniform": mask.astype(np.float32), "gcpo": spread(1.3), "dgpo": spread(0.02)}
    logps = -draw.exponential(size=count).astype(np.float32)
    record = CompletionCredit(
        prompt="What is 83 + 48?\n<|im_start|>",
        completion="".join(tokens),
        tokens=list(tokens),
        token_ids=np.arange(count) + 70_000,
        mask=mask,
        logps=logps,
        entropy=draw.exponential(size=count).astype(np.float32),
        signals={
            "negative-prompt log-prob": logps - 0.5,
            "squared Hellinger distance": 1e-7 * draw.random(count).astype(np.float32),
        },
        weights=weights,
        token_advantages={name: values * np.float32(advantage) for name, values in weights.items()},
        advantage=advantage,
        reward=1.0,
        info={"answer": "145"},
    )
    return replace(record, **changes)


def awkward_records():
    """Empty, all masked, NaN, without weights, one token, hostile."""
    nothing = make_record([])
    masked = make_record(masked=range(len(TOKENS)), advantage=None, token_advantages={}, reward=None)
    broken = make_record(seed=1)
    broken = replace(
        broken,
        weights=broken.weights | {"gcpo": np.where(np.arange(len(TOKENS)) == 3, np.nan, broken.weights["gcpo"])},
        logps=np.full(len(TOKENS), np.nan, np.float32),
    )
    additive = make_record(seed=2, weights={}, token_advantages={"additive": np.ones(len(TOKENS), np.float32)})
    hostile = make_record([HOSTILE, "", "\r", "\u0301"], prompt=HOSTILE, info={HOSTILE: [HOSTILE, math.nan]})
    return [nothing, masked, broken, additive, make_record(["x"]), hostile, make_record(advantage=0.0, reward=math.nan)]


# ---- Summary


def oracle(weights, mask):
    """One completion's numbers, from their definitions, token by token."""
    values = sorted((float(w) for w, m in zip(weights, mask, strict=True) if m), reverse=True)
    count, total = len(values), sum(values)
    shares = [value / total for value in values]
    entropy = -sum(share * math.log(share) for share in shares if share)
    mean = total / count

    def mass(share):
        whole, part = divmod(share * count, 1)
        whole = int(whole)
        return sum(shares[:whole]) + (part * shares[whole] if whole < count else 0)

    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < 0.5 else (low, middle)
    return {
        "effective_fraction": math.exp(entropy) / count,
        "weight_std": math.sqrt(sum((value - mean) ** 2 for value in values) / count),
        "largest": values[0],
        "half_share": high,
        "top_mass": mass(0.2),
        "distance": sum(abs(value - 1) for value in values) / count / 2,
    }


def rank_correlation(first, second):
    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_summary_is_what_it_says():
    records = [make_record(seed=k, masked=range(k)) for k in range(6)]
    found = summarise(records)
    assert list(found) == ["uniform", "gcpo", "dgpo"]
    for label, item in found.items():
        expected = [oracle(record.weights[label], record.mask) for record in records]
        for name in ("effective_fraction", "weight_std", "half_share", "top_mass", "distance"):
            assert getattr(item, name) == pytest.approx(mean(row[name] for row in expected), rel=1e-6), name
        assert item.largest == pytest.approx(max(row["largest"] for row in expected))
        assert (item.completions, item.left_out, item.weighted) == (6, 0, 6)
        assert item.tokens == sum(int(record.mask.sum()) for record in records)
    pairs = [(r.weights["gcpo"][r.mask], r.weights["dgpo"][r.mask]) for r in records]
    expected = mean(rank_correlation(*map(list, pair)) for pair in pairs)
    assert found["gcpo"].correlations == pytest.approx({"uniform": None, "dgpo": expected})
    assert found["dgpo"].correlations["gcpo"] == found["gcpo"].correlations["dgpo"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_summary_of_any_weights(pairs):
    weights = np.array([float(weight) for weight, _ in pairs], np.float32)
    mask = np.array([masked for _, masked in pairs])
    record = make_record(["x"] * len(pairs), mask=mask, weights={"m": weights}, token_advantages={})
    item = summarise([record])["m"]
    curve = cumulative_mass(weights, mask)
    if not weights[mask].any():
        assert (item.completions, item.left_out, item.effective_fraction) == (0, 1, None)
        assert curve is None
        assert concentration(weights, mask) is None
        return
    expected = oracle(weights, mask)
    for name, value in expected.items():
        assert getattr(item, name) == pytest.approx(value, abs=1e-9), name
    assert concentration(weights, mask) == pytest.approx(1 - expected["effective_fraction"], abs=1e-9)
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(1)
    assert (np.diff(curve) >= -1e-12).all()
    assert (curve >= GRID - 1e-9).all()
    assert np.interp(0.2, GRID, curve) == pytest.approx(expected["top_mass"], abs=0.1)
    assert histograms([record])["m"].sum() == pytest.approx(1)


def test_rank_correlation_with_ties():
    draw = random.Random(0)
    for _ in range(20):
        first, second = ([float(draw.randrange(4)) for _ in range(9)] for _ in range(2))
        first[:2] = second[:2] = [0.0, 3.0]
        assert spearman(np.array(first), np.array(second)) == pytest.approx(rank_correlation(first, second))
    assert spearman(np.ones(4), np.arange(4.0)) is None
    assert spearman(np.array([1.0]), np.array([2.0])) is None


def test_extremes():
    count = 40
    spike = np.zeros(count, np.float32)
    spike[7] = count
    record = make_record(["x"] * count, weights={"one": spike, "even": np.ones(count)}, token_advantages={})
    found = summarise([record])
    assert found["one"].effective_fraction == pytest.approx(1 / count)
    assert found["one"].half_share == pytest.approx(0.5 / count)
    assert found["one"].top_mass == 1
    assert found["one"].distance == pytest.approx(1 - 1 / count)
    assert found["even"].half_share == pytest.approx(0.5)
    assert found["even"].top_mass == pytest.approx(0.2)
    assert found["even"].distance == 0
    assert histograms([record])["even"][len(summary.LOG2_EDGES) // 2] == 1
    assert histograms([record])["one"][[0, -1]].tolist() == [39 / 40, 1 / 40]
    assert mass_curves([record])["even"] == pytest.approx(GRID)


def test_what_cannot_count_is_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = awkward_records()
        found = summarise(records)
        mass_curves(records)
        histograms(records)
    assert list(found) == ["uniform", "gcpo", "dgpo", "additive"]
    counts = {label: (item.completions, item.left_out, item.weighted) for label, item in found.items()}
    assert counts == {"uniform": (4, 3, 6), "gcpo": (3, 4, 6), "dgpo": (4, 3, 6), "additive": (0, 7, 0)}
    for label in ("gcpo", "dgpo"):
        assert math.isfinite(found[label].correlations["dgpo" if label == "gcpo" else "gcpo"])
    assert found["additive"] == MethodSummary(
        "additive", left_out=7, correlations=dict.fromkeys(("uniform", "gcpo", "dgpo"))
    )
    assert summarise([]) == {}
    for values in ([1, -1], [1, math.inf], [1, math.nan], [0, 0]):
        assert concentration(np.array(values), np.ones(2, bool)) is None


@pytest.mark.parametrize(
    ("known", "advice", "text"),
    [
        (
            {"label": "dgpo", "effective_fraction": 0.99984},
            ADVICE,
            f"dgpo is uniform here: effective fraction 0.9998; {ADVICE}.",
        ),
        ({"label": "dgpo", "effective_fraction": 1.0}, None, "dgpo is uniform here: effective fraction 1.0000."),
        ({"label": "uniform", "effective_fraction": 1.0}, ADVICE, "uniform gives every token the same weight."),
        (
            {"label": "gcpo", "effective_fraction": 0.61, "half_share": 0.14},
            None,
            "gcpo puts half of the weight on 14 % of the tokens (effective fraction 0.61).",
        ),
        (
            {"label": "gcpo", "effective_fraction": 0.012, "half_share": 0.0021},
            None,
            "gcpo puts half of the weight on 0.2 % of the tokens (effective fraction 0.01).",
        ),
        # Ranks spread whatever there is: that no contrast is above the noise is the method's to say
        (
            {"label": "gcpo", "effective_fraction": 0.61, "half_share": 0.14},
            ADVICE,
            f"gcpo is uniform here: effective fraction 0.6100; {ADVICE}.",
        ),
        ({"label": "gcpo"}, ADVICE, "gcpo has no completion with usable weights."),
        ({"label": "ovr", "weighted": 0}, ADVICE, "ovr has no weights here, only token advantages."),
    ],
)
def test_sentence(known, advice, text):
    assert sentence(MethodSummary(**{"weighted": 3} | known), advice) == text


# ---- Pages, pictures and terminals


def unpack(data, count):
    """What the page's script reads of a packed record."""
    line, _, rest = data.partition(b"\n")
    header = json.loads(line)
    ids = np.frombuffer(rest[: 4 * count], np.uint8).reshape(4, count).T.copy().view("<u4")[:, 0]
    mask = np.frombuffer(rest[4 * count : 5 * count], np.uint8)
    planes = np.frombuffer(rest[5 * count :], np.uint8).reshape(len(header["arrays"]), 4, count)
    arrays = [plane.T.copy().view("<f4")[:, 0] for plane in planes]
    return header, ids, mask, dict(zip(header["arrays"], arrays, strict=True))


def test_records_are_packed_to_three_digits():
    record = make_record(masked=(2, 3), seed=4)
    values = record.weights["gcpo"].copy()
    values[:4] = [0, math.inf, math.nan, 1e-30]
    record = replace(
        record,
        weights=record.weights | {"odd": values},
        token_advantages=record.token_advantages | {"odd": values, "own": np.arange(len(TOKENS), dtype=np.float32)},
    )
    header, ids, mask, arrays = unpack(pack(record), len(TOKENS))
    assert header["tokens"] == TOKENS
    assert header["products"] == ["uniform", "gcpo", "dgpo"]
    assert ids.tolist() == record.token_ids.tolist()
    assert mask.astype(bool).tolist() == record.mask.tolist()
    expected = {"logps": record.logps, "entropy": record.entropy, "weight/odd": values, "advantage/odd": values}
    expected |= {f"signal/{title}": signal for title, signal in record.signals.items()}
    expected |= {f"weight/{label}": weights for label, weights in record.weights.items()}
    assert set(arrays) == set(expected) | {"advantage/own"}
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1.3e-4, err_msg=name)


def about(**more):
    return {"model": "m", "title": "Credit of m", "step": 40, "methods": {"gcpo": {"temperature": 1.0}},
            "advice": {"dgpo": ADVICE, "uniform": "never shown"}} | more  # fmt: skip


def test_page(tmp_path):
    path = tmp_path / "deep" / "credit.html"
    records = [make_record(seed=k) for k in range(3)]
    write_credit_report(path, iter(records), about())
    text = path.read_text("utf-8")
    assert list(path.parent.iterdir()) == [path]
    assert "unsafe" not in text
    assert "style=" not in text
    assert not re.search(r"""(src|href)=["']""", text)
    said = test_report.words(path)
    assert "uniform gives every token the same weight." in said
    assert re.search(
        r"dgpo is uniform here: effective fraction 0\.999\d; lower temperature to about 0\.002, or use", said
    )
    assert "gcpo puts half of the weight on" in said
    assert "never shown" not in said
    assert "3 completions, 60 tokens" in said
    assert "gcpo.temperature 1.0" in said
    packed = re.findall(r'id="text-\d+">(.*?)<', text)
    assert [unpack(zlib.decompress(b64decode(part)), 20)[0]["tokens"] for part in packed] == [TOKENS] * 3


@pytest.mark.parametrize("records", [[], awkward_records(), awkward_records()[:2], awkward_records()[3:4]])
def test_awkward_records_make_a_page(tmp_path, records):
    path = tmp_path / "credit.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_credit_report(path, records, about(title=HOSTILE, methods={HOSTILE: {HOSTILE: HOSTILE}}))
        write_credit_report(tmp_path / "bare.html", records, {})
    text = path.read_text("utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    page = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(None|NaN|nan|undefined|Undefined|inf)\b", page)
    assert "\u202e" not in text.split('id="data"')[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (0, "0"), (1.0, "1"), (0.12345, "0.123"), (-1234.5, "−1234"), (9999, "9999"),  # noqa: RUF001
     (12345, "1.23e+04"), (0.00012, "1.20e−04")],  # noqa: RUF001
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize("count", [0, 1, 20, 50, 119, 300])
def test_picture(tmp_path, count):
    tokens = [*TOKENS[:count], *[f"w{k}" for k in range(count - 20)]]
    record = make_record(tokens, masked=range(0, count, 7), advantage=-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_credit(tmp_path / "a.png", record)
        figure.canvas.draw()
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert "advantage -0.5 (made less likely), reward 1" in figure.get_suptitle()
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox
    shown = 0
    for axis in figure.axes:
        labels = [label for label in axis.get_xticklabels() if label.get_text()]
        shown += len(labels)
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert all(box.y0 >= frame.y0 and box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))
    assert shown == min(count, 120)
    if count > 120:
        heaviest = int(np.argmax(record.weights["gcpo"]))
        assert tick_label(tokens[heaviest]) in [t.get_text() for axis in figure.axes for t in axis.get_xticklabels()]


def test_pictures_of_awkward_records(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in awkward_records():
            odd = {r"$\frac{": record.weights["gcpo"]} if "gcpo" in record.weights else {}
            plot_credit(tmp_path / "a.png", replace(record, weights=dict(record.weights) | odd))
    assert plot_credit(None, make_record()).axes
    assert [tick_label(t) for t in ("", " ", "\n", "\t", "語", "$x_1$", " a b")] == [
        "∅", "·", "⏎", "→", "<8A9E>", "$x_1$", " a b"]  # fmt: skip
    assert len(tick_label("x" * 99)) == 14

    original = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'trl-credit\[analysis\]'"):
        plot_credit(None, make_record())


def printed(records, colours=None, about_=None, **options):
    console = Console(file=io.StringIO(), width=200, force_terminal=colours is not None, color_system=colours,
                      no_color=False, _environ={})  # fmt: skip
    render(records, about_ or {}, console, **options)
    return console.file.getvalue()


def test_terminal_without_colours():
    record = make_record(["a", " [bold]", "4", "\n", "z"], seed=3, masked=(4,))
    weights = np.array([0.5, 2.6, 0.25, 0.65, 0], np.float32)
    record = replace(record, weights={"gcpo": weights}, token_advantages={})
    text = printed([record, replace(record, advantage=-1.0)], about_=about())
    assert "gcpo: a [bold][2.6]4⏎\nz\n" in text
    assert "\x1b" not in text
    assert "▲ advantage +1.25: made likelier · reward 1 · 5 tokens, 4 in the loss" in text
    assert "▼ advantage -1: made less likely" in text
    assert "gcpo puts half of the weight on" in text
    assert "1 more of 2 completions are not shown." in printed([record, record], limit=1)


def test_terminal_with_colours():
    record = make_record(["low", "even", "high", "off"], masked=(3,))
    weights = np.array([0.1, 1.0, 3.5, 0], np.float32)
    record = replace(record, weights={"gcpo": weights, "other": weights}, token_advantages={})
    text = printed([record], "truecolor", method="gcpo")
    assert "other" not in text
    codes = {name: re.search(rf"\x1b\[([\d;]*)m{name}", text)[1] for name in ("low", "even", "high", "off")}
    backgrounds = {name: code.split("48;2;")[-1] for name, code in codes.items()}
    assert len(set(backgrounds.values())) == 4
    low, high = ([int(v) for v in backgrounds[name].split(";")] for name in ("low", "high"))
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert codes["high"].startswith("1;4;")
    assert not codes["low"].startswith(("1;", "4;"))
    assert codes["off"] == "2"
    with pytest.raises(ValueError, match=r"no method 'nope' here\. Known: gcpo, other"):
        printed([record], method="nope")


def test_terminal_of_awkward_records(monkeypatch):
    for colours in (None, "truecolor"):
        text = printed(awkward_records(), colours, {"title": HOSTILE, "advice": {"dgpo": HOSTILE}})
        assert "\u202e" not in text
        assert "\x00" not in text
        assert "(no tokens)" in text
        assert "additive has no weights here" in text
        assert not re.search(r"\bnan\b", text.replace("reward nan", ""))
    assert printed([]) == ""


# ---- In a browser


def detail(page):
    """The numbers of the detail panel: by method, and by name."""
    rows = page.locator("#detail tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    names = page.locator("#detail dt").all_text_contents()
    values = page.locator("#detail dd").all_text_contents()
    return {row[0]: row[1:] for row in rows}, dict(zip(names, values, strict=True))


def value(text):
    return math.nan if text == "–" else float(text.replace("−", "-").replace(",", ""))  # noqa: RUF001


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
    assert "no weights here" in texts[2]
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
