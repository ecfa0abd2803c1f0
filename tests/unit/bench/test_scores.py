"""Scores of items, and verdicts against baselines."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from support.bench import slow_auroc

from trl_credit.bench.scores import (
    compare_with_baselines,
    item_scores,
    paired_difference,
    position_profile,
    summary,
    together,
    verdict_sentence,
)


SEEDED = settings(deadline=None, max_examples=40)


def slow_average_precision(weights, labels) -> float:
    """Sum over thresholds of precision times the step in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(weights), reverse=True):
        taken = [y for w, y in zip(weights, labels, strict=True) if w >= threshold]
        recall = sum(taken) / sum(labels)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


@SEEDED
@given(seed=st.integers(0, 10_000), length=st.integers(2, 30))
def test_scores(seed, length):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 6, length).astype(float) + 0.1  # ties
    labels = rng.random(length) < 0.3
    labels[rng.integers(length)] = True
    scores = item_scores(weights, labels)
    assert scores["mass"] == pytest.approx(sum(w for w, y in zip(weights, labels, strict=True) if y) / weights.sum())
    assert scores["ratio"] == pytest.approx(scores["mass"] / (labels.sum() / length))
    if labels.all():
        assert all(math.isnan(scores[name]) for name in ("auroc", "ap", "rank"))
        return
    assert scores["auroc"] == pytest.approx(slow_auroc(weights, labels), abs=1e-12)
    assert scores["ap"] == pytest.approx(slow_average_precision(weights, labels), abs=1e-12)
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, weights), abs=1e-12)
    assert scores["ap"] == pytest.approx(average_precision_score(labels, weights), abs=1e-12)
    first = int(np.flatnonzero(labels)[0])
    assert scores["rank"] == pytest.approx(slow_auroc(weights, [i == first for i in range(length)]), abs=1e-12)


@given(length=st.integers(2, 20), place=st.integers(0, 19))
def test_constant_weights_score_at_chance(length, place):
    labels = [i == place % length for i in range(length)]
    scores = item_scores([0.7] * length, labels)
    assert scores == pytest.approx({"auroc": 0.5, "ap": 1 / length, "mass": 1 / length, "ratio": 1.0, "rank": 0.5})


def test_scores_that_are_not_defined():
    single = item_scores([1.0], [True])
    assert (single["mass"], single["ratio"]) == (1.0, 1.0)
    assert all(math.isnan(single[name]) for name in ("auroc", "ap", "rank"))
    assert all(math.isnan(value) for value in item_scores([1.0, 1.0], [False, False]).values())
    assert math.isnan(item_scores([0.0, 0.0], [True, False])["mass"])
    signed = item_scores([3.0, -1.0, 0.0], [True, False, False])  # no shares of what is partly negative
    assert (signed["auroc"], signed["ap"]) == (1.0, 1.0)
    assert math.isnan(signed["mass"])
    assert math.isnan(signed["ratio"])
    with pytest.raises(ValueError, match="weights for"):
        item_scores([1.0], [True, False])
    assert summary([math.nan])["n"] == 0
    one = summary([2.0, math.nan])
    assert (one["mean"], one["n"]) == (2.0, 1)
    assert math.isnan(one["stderr"])


def test_scores_see_the_mask():
    assert item_scores([9, 1, 2], [True, False, True], [False, True, True]) == item_scores([1, 2], [False, True])


def test_paired_differences():
    a, b = [0.9, 0.8, 0.7, 0.9], [0.5, 0.6, 0.7, 0.4]
    result = paired_difference(a, b)
    difference = np.subtract(a, b)
    half = 3.182446305284263 * difference.std(ddof=1) / 2  # Student's t at 3 degrees of freedom
    assert result["difference"] == pytest.approx(difference.mean())
    assert (result["low"], result["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert paired_difference(a, a) == {"difference": 0, "low": 0, "high": 0, "n": 4}
    assert paired_difference([1.0], [0.0])["low"] == -math.inf


def test_verdicts():
    rng = np.random.default_rng(0)
    base = rng.random(50)
    scores = {
        "good": {"auroc": base + 0.2 + 0.05 * rng.random(50)},
        "same": {"auroc": base + 0.01 * rng.standard_normal(50)},
        "weak": {"auroc": base - 0.3},
        "strong": {"auroc": base},
    }
    good = compare_with_baselines(scores, "good", ["weak", "strong"])
    same = compare_with_baselines(scores, "same", ["weak", "strong"])
    assert (good["baseline"], good["beats"], same["beats"]) == ("strong", True, False)
    assert "does not beat the best trivial baseline on any task" in verdict_sentence("m", {"x": same})
    assert "beats the best trivial baseline on every task" in verdict_sentence("m", {"x": good})
    none = paired_difference([math.nan], [math.nan]) | {"baseline": "strong", "beats": False}
    assert verdict_sentence("m", {"x": good, "y": none}) == verdict_sentence("m", {"x": good})
    assert verdict_sentence("m", {"y": none}) == "m: too few items to tell."
    both = verdict_sentence("m", {"x": good, "y": same}, "After 3 updates")
    assert both.startswith("After 3 updates, m beats the best trivial baseline, in AUROC, on x (+0.2")
    assert "it does not on y (" in both


def test_what_is_the_same_is_said_once():
    few = "too few items to tell."
    said = [
        ("a", f"a: {few}"),
        ("b: c", "b: c beats it: by 2."),
        ("d", f"d: {few}"),
        ("e", f"After 3 updates, e: {few}"),
    ]
    said += [("f", "f does not beat it.")]
    assert together(said) == [
        f"a, d: {few}",
        "b: c beats it: by 2.",
        f"After 3 updates, e: {few}",
        "f does not beat it.",
    ]


def test_position_profile_leaves_the_completion_out():
    labels = [[i == 7 for i in range(10)]] * 5
    assert position_profile(labels) == [1.0] * 5
    labels = [[i == place for i in range(10)] for place in range(10)]
    # The others never have it where this one has it
    assert max(position_profile(labels)) == 0.0
