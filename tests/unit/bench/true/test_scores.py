"""Token advantages against true ones: by their definitions, and unmoved by errors of the estimates."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr
from scipy.stats import t as student

from trl_credit.bench.true.scores import Truth, compare, interval_of, prompt_sums, scores_of, top_shares


RNG = np.random.default_rng(0)
PROMPTS = 6


def exact(prompt, values):
    values = np.asarray(values, float)
    return Truth(prompt, values, np.stack([values, values], -1))


def data(noise=0.0, rng=RNG, rows=60):
    """True advantages, of which few are large; credit that follows them somewhat; and estimates with errors."""
    truths, credit, whole = [], [], []
    for i in range(rows):
        length = int(rng.integers(5, 30))
        true = np.where(rng.random(length) < 0.2, rng.normal(size=length), 0.0)
        halves = true[:, None] + noise * rng.normal(size=(length, 2))
        truths.append(Truth(i % PROMPTS, halves.mean(-1), halves))
        credit.append(0.5 * true + 0.3 * rng.normal(size=length) + 0.2)
        whole.append(true)
    return truths, credit, whole


def scored(credit, truths):
    return {name: float(value) for name, value in scores_of(prompt_sums(credit, truths, PROMPTS).sum(0)).items()}


def test_definitions():
    truths, credit, true = data()
    found = scored(credit, truths)
    assert found["correlation"] == pytest.approx(pearsonr(np.concatenate(credit), np.concatenate(true))[0])
    within = [np.concatenate([row - row.mean() for row in rows]) for rows in (credit, true)]
    assert found["within"] == pytest.approx(pearsonr(*within)[0])
    mass, top, best, wrong, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for m, a in zip(credit, true, strict=True):
        size = 0.2 * len(a)
        for rank, t in enumerate(sorted(range(len(a)), key=lambda t: -abs(m[t]))):
            top += abs(a[t]) * min(1.0, max(0.0, size - rank))
        for rank, t in enumerate(sorted(range(len(a)), key=lambda t: -abs(a[t]))):
            best += abs(a[t]) * min(1.0, max(0.0, size - rank))
        for t in range(len(a)):
            total += abs(a[t])
            wrong += abs(a[t]) * (m[t] * a[t] < 0)
        mass += np.abs(a).sum()
    assert found["top_mass"] == pytest.approx(top / total)
    assert found["best"] == pytest.approx(best / mass)
    assert found["wrong_sign"] == pytest.approx(wrong / total)
    assert found["no_credit"] == 0
    assert found["reliability"] == pytest.approx(1)


def test_errors_of_the_estimates_do_not_bias():
    """Errors as large as the advantages: every score is about what it is without them, and the naive one is not."""
    rng = np.random.default_rng(1)
    clean = scored(*(lambda d: (d[1], d[0]))(data(0.0, np.random.default_rng(1), rows=4000)))
    truths, credit, true = data(0.0, np.random.default_rng(1), rows=4000)
    noisy = []
    for truth, values in zip(truths, true, strict=True):
        halves = values[:, None] + 0.5 * rng.normal(size=(len(values), 2))
        noisy.append(Truth(truth.prompt, halves.mean(-1), halves))
    found = scored(credit, noisy)
    naive = pearsonr(np.concatenate(credit), np.concatenate([t.whole for t in noisy]))[0]
    assert found["correlation"] == pytest.approx(clean["correlation"], abs=0.02)
    assert found["within"] == pytest.approx(clean["within"], abs=0.02)
    assert naive < clean["correlation"] - 0.05
    assert found["top_mass"] == pytest.approx(clean["top_mass"], abs=0.06)
    assert found["best"] <= clean["best"]  # a noisy ranking finds less of the truth, and does not count its own noise
    assert found["best"] == pytest.approx(_best(noisy, true), abs=0.1)  # the mass is a bit too small
    assert found["reliability"] < 0.8
    centred = [np.concatenate([row - row.mean() for row in rows]) for rows in (true, [t.whole for t in noisy])]
    assert found["within_reliability"] == pytest.approx((centred[0] @ centred[0]) / (centred[1] @ centred[1]), abs=0.03)
    assert naive == pytest.approx(found["correlation"] * math.sqrt(found["reliability"]), abs=0.01)


def _best(truths, true):
    """Share of the true mass on the top by one half's estimate, averaged over the halves."""
    found = total = 0.0
    for truth, values in zip(truths, true, strict=True):
        total += np.abs(values).sum()
        found += sum(np.abs(values) @ top_shares(np.abs(half)) for half in truth.halves.T) / 2
    return found / total


def test_uniform_credit():
    truths, _, true = data()
    found = scored([np.full(len(row), 0.7) for row in true], truths)
    assert found["within"] == 0
    assert found["top_mass"] == pytest.approx(0.2)
    none = scored([np.zeros(len(row)) for row in true], truths)
    assert none["no_credit"] == pytest.approx(1)
    assert none["wrong_sign"] == 0
    assert none["correlation"] == 0


def test_equal_sizes_share_the_top():
    assert top_shares(np.array([3.0, 1.0, 1.0, 1.0, 0.0]), 0.4).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    for size in (RNG.random(7), np.ones(7), np.zeros(1), np.array([2.0, 2.0, 1.0])):
        assert top_shares(size).sum() == pytest.approx(0.2 * len(size))


def test_compare():
    """Errors are those of leaving out one prompt with all its completions, and p is Student's t of them."""
    truths, credit, true = data(rows=120)
    rng = np.random.default_rng(3)
    sums = {
        "uniform": prompt_sums([np.full(len(row), 0.5) for row in true], truths, PROMPTS),
        "fair": prompt_sums([row + 0.6 * rng.normal(size=len(row)) for row in credit], truths, PROMPTS),
        "none": prompt_sums([np.full(len(row), 0.5) for row in true], truths, PROMPTS),
        "good": prompt_sums(credit, truths, PROMPTS),
        "not tested": prompt_sums(credit, truths, PROMPTS),
    }
    statistics = {label: (lambda counts, own=own: scores_of(counts @ own)) for label, own in sums.items()}
    found = compare(statistics, ["top_mass"], PROMPTS, untested=("not tested",))

    def value(label, left_out=None):
        rows = [prompt for prompt in range(PROMPTS) if prompt != left_out]
        return float(scores_of(sums[label][rows].sum(0))["top_mass"])

    for label, entry in ((label, found[label]["top_mass"]) for label in sums):
        for own, of in ((entry, value), (entry.get("difference"), lambda k, *j: value(k, *j) - value("uniform", *j))):
            if own is None:
                assert label == "uniform"
                continue
            without = [of(label, prompt) for prompt in range(PROMPTS)]
            error = math.sqrt((PROMPTS - 1) / PROMPTS * sum((x - sum(without) / PROMPTS) ** 2 for x in without))
            assert own["mean"] == pytest.approx(of(label))
            assert own["stderr"] == pytest.approx(error, abs=1e-12)
            assert own["low"] == pytest.approx(of(label) - student.ppf(0.975, PROMPTS - 1) * error, abs=1e-12)
            assert own["high"] == pytest.approx(of(label) + student.ppf(0.975, PROMPTS - 1) * error, abs=1e-12)
            if label in ("good", "fair") and own is entry["difference"]:
                assert entry["p"] == pytest.approx(2 * student.sf(abs(of(label)) / error, PROMPTS - 1))
                assert (entry["p"] < 0.05) == (own["low"] > 0 or own["high"] < 0)
    good, fair, none = (found[label]["top_mass"] for label in ("good", "fair", "none"))
    assert none["p"] == 1
    assert good["p"] < fair["p"] < 1
    # Holm: the smallest times the number of tests, the next times one fewer
    assert good["p_holm"] == pytest.approx(3 * good["p"])
    assert fair["p_holm"] == pytest.approx(min(1, max(2 * fair["p"], good["p_holm"])))
    assert none["p_holm"] == 1
    assert "p" not in found["uniform"]["top_mass"]
    assert "p" not in found["not tested"]["top_mass"]


def test_prompts_are_the_unit():
    """Of completions that are alike within a prompt, more tell nothing more."""
    truths, credit, _ = data(rows=PROMPTS)
    few = prompt_sums(credit, truths, PROMPTS)
    many = prompt_sums(credit * 50, truths * 50, PROMPTS)
    errors = [
        compare({"uniform": lambda counts, own=own: scores_of(counts @ own)}, ["within"], PROMPTS)["uniform"]["within"]
        for own in (few, many)
    ]
    assert errors[0]["stderr"] > 0
    assert errors[1]["stderr"] == pytest.approx(errors[0]["stderr"])


@pytest.mark.parametrize("without", [[0.5], [0.5, math.nan, 0.5], [math.inf, 0.5]])
def test_unknown_errors(without):
    entry = interval_of(0.5, np.array(without))
    assert entry["mean"] == 0.5
    assert all(math.isnan(entry[name]) for name in ("stderr", "low", "high"))


def test_tests_without_a_known_error_are_left_out():
    """They count neither as tests nor as a difference."""

    def constant(value):
        return lambda counts: {"x": np.full(np.shape(counts)[:-1], value)}

    def varied(counts):
        return {"x": counts @ np.array([0.1, 0.2, 0.3, 0.15]) / counts.sum(-1)}

    found = compare(
        {"uniform": constant(0.0), "varied": varied, "unknown": constant(math.nan), "shifted": constant(1.0)}, ["x"], 4
    )
    for label in ("unknown", "shifted"):
        assert math.isnan(found[label]["x"]["p"])
        assert math.isnan(found[label]["x"]["p_holm"])
    assert found["varied"]["x"]["p_holm"] == found["varied"]["x"]["p"] < 0.05
