"""Charts of an evaluation."""

import re

import pytest
from support.evaluation_runs import make_comparison

from trl_credit.evaluation.charts import bin_edges, curve_chart, difference_chart, length_chart
from trl_credit.evaluation.compare_page import plot_comparison


@pytest.mark.parametrize("lengths", [[0], [1, 1], [1, 40_000], [1000, 1010, 1023, 1024], list(range(5000, 9000))])
def test_every_length_has_a_bin(lengths):
    edges = bin_edges(lengths)
    assert len(edges) <= 25
    assert edges[0] <= max(1, min(lengths))
    assert edges[-1] > max(lengths)
    chart = length_chart(lengths, lengths[:1], "tokens")
    counts = [int(number) for number in re.findall(r"tokens: (\d+) right", chart)]
    assert sum(counts) == len(lengths)
    if len(set(lengths)) > 1:
        # The axis has labels besides its name and those at the side
        assert 2 <= chart.count("<text") - 4 <= 8


def test_charts_say_in_words_what_they_draw():
    chart = curve_chart("aime24", {"1": 0.25, "4": 0.5}, {"1": 0.25, "4": None})
    assert "pass@k goes from 25.0 % at k = 1 to 50.0 % at k = 4" in chart
    assert chart.count("<line") == 5 + 1
    assert curve_chart("x", {}, None) is None
    # A lone point is no curve
    assert curve_chart("x", {"1": 0.25}, {"1": 0.25}) is None
    rows = make_comparison(sizes=(30,))["tasks"]["aime24"]["per_problem"]
    up = sum(row["moved"] == "up" for row in rows)
    assert f"{up} problems moved up" in difference_chart("aime24", rows)
    assert difference_chart("x", []) is None


def test_one_length_is_one_narrow_bar():
    chart = length_chart([32, 32], [32], "tokens")
    assert ">32 tokens: 2 right<" in chart
    assert ">32 tokens: 1 wrong<" in chart
    assert 'width="6.00%"' in chart
    assert [text for text in re.findall("<text[^>]*>([^<]*)", chart) if text not in ("0", "2")] == ["32", "tokens"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(tmp_path, suffix):
    plot_comparison(tmp_path / f"a.{suffix}", make_comparison(sizes=(30, 500)))
    start = (tmp_path / f"a.{suffix}").read_bytes()[:100]
    assert b"PNG" in start if suffix == "png" else b"<?xml" in start


def test_picture_of_names_that_look_like_formulas(tmp_path):
    comparison = make_comparison(sizes=(3,))
    comparison["a"]["name"] = r"$\nonsense{ $x_$"
    comparison["tasks"] = {r"$\frac{": comparison["tasks"]["aime24"]}
    plot_comparison(tmp_path / "a.png", comparison)
