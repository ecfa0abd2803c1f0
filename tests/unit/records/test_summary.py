"""Summaries of credit records."""

import math
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.credit_report import awkward_records, make_record

from trl_credit.records import summary
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


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip

ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


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
        "additive",
        left_out=7,
        correlations=dict.fromkeys(("uniform", "gcpo", "dgpo")),
        advantaged=1,
        size=1.0,
        change=0.25,
        opposite=0.0,
        lowest=1.0,
        highest=1.0,
    )
    assert summarise([]) == {}
    for values in ([1, -1], [1, math.inf], [1, math.nan], [0, 0]):
        assert concentration(np.array(values), np.ones(2, bool)) is None


def test_token_advantages_are_those_beside_the_weights():
    tokens = ["a", "b", "c", "d"]
    weights = np.array([0.5, 1.5, 1, 0], np.float32)
    advantages = {
        "weights": 2 * weights,
        "both": 2 * weights + np.array([1, -5, 0, 0], np.float32),
        "term": np.array([1, -3, 2, 99], np.float32),
    }
    known = make_record(tokens, masked=(3,), advantage=2.0)
    known = replace(known, weights={"weights": weights, "both": weights}, token_advantages=advantages)
    broken = np.array([1, np.nan, 1, 0], np.float32)
    unknown = replace(known, advantage=None, weights={}, token_advantages={"term": -advantages["term"]})
    found = summarise([known, unknown, replace(unknown, token_advantages={"term": broken})])
    assert (found["weights"].advantaged, found["weights"].change) == (0, None)
    both, term = found["both"], found["term"]
    assert (both.advantaged, both.lowest, both.highest, both.opposite) == (1, -2, 2, pytest.approx(1 / 3))
    assert (both.size, both.change) == (pytest.approx(2), pytest.approx((0 + 4 + 0) / 3))
    # The change is over the one completion whose advantage is known
    assert (term.advantaged, term.lowest, term.highest, term.opposite) == (2, -3, 3, pytest.approx(1 / 3))
    assert (term.size, term.change) == (pytest.approx(2), pytest.approx((1 + 5 + 0) / 3))


ADVANTAGES = {"advantaged": 4, "size": 1.0, "change": 0.4, "opposite": 0.25, "lowest": -2.0, "highest": 3.0}


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
        (
            {"label": "ovr", "weighted": 0},
            ADVICE,
            "ovr has no weights here, only token advantages, and no completion with usable ones.",
        ),
        (
            {"label": "teacher", "weighted": 0, **ADVANTAGES, "change": None, "opposite": None},
            None,
            "teacher has no weights here; its token advantages are -2 to +3, without the completions' own, which are "
            "unknown.",
        ),
        (
            {"label": "teacher", "weighted": 0, **ADVANTAGES},
            None,
            "teacher has no weights here; its token advantages are -2 to +3, 0.4 on average from their completion's, and "
            "25 % of the tokens have the other sign.",
        ),
        (
            {"label": "gcpo + teacher", "effective_fraction": 0.61, "half_share": 0.14, **ADVANTAGES},
            None,
            "gcpo + teacher puts half of the weight on 14 % of the tokens (effective fraction 0.61). Its token advantages "
            "are -2 to +3, 0.4 on average from their completion's, and 25 % of the tokens have the other sign.",
        ),
        (
            {"label": "otb", "weighted": 0, **ADVANTAGES, "change": 0.0},
            None,
            "otb has no weights here; its token advantages are those of the completions.",
        ),
    ],
)
def test_sentence(known, advice, text):
    assert sentence(MethodSummary(**{"weighted": 3} | known), advice) == text
