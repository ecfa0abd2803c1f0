"""Products of sketched gradients, and the cosines that they give."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import chain

from trl_credit.bench.groups import Group
from trl_credit.bench.true.gradients import (
    HALVES,
    HOPELESS,
    TRUE,
    Credited,
    Sketch,
    Tempered,
    effective_prompts,
    group_sketches,
    statistics_of,
)
from trl_credit.methods.otb import squared_gradients, token_baselines


def test_sketches_keep_products_on_average():
    torch.manual_seed(0)
    a, b = torch.randn(2, 50_000)
    b = 0.3 * a + b
    products = [float(Sketch(1024, seed)(a) @ Sketch(1024, seed)(b)) for seed in range(40)]
    scale = float(a.norm() * b.norm())
    assert np.mean(products) == pytest.approx(float(a @ b), abs=4 * scale / np.sqrt(1024 * 40))
    assert np.std(products) < 2 * scale / np.sqrt(1024)
    sketch = Sketch(1024)
    assert torch.equal(sketch(a), sketch(a))
    torch.testing.assert_close(sketch(a + b), sketch(a) + sketch(b), rtol=1e-4, atol=1e-3)
    places = sketch(torch.ones(50_000))
    assert (places != 0).float().mean() > 0.9  # all places are used, with both signs
    assert abs(float(places.mean())) < 1
    torch.testing.assert_close(Sketch(1024)(a[:100]), a[:100])  # short ones are kept
    with pytest.raises(ValueError, match="power of two"):
        Sketch(1000)


PROMPTS, SIZE = 400, 32


def sketches(rng, noise=1.0, method_noise=2.0, prompts=PROMPTS):
    """Gradients with known parts: of the prompts, of completions and of the values' errors."""
    own = rng.normal(size=(prompts, SIZE)) + 0.2

    def noisy(scale, *groups):
        return scale * rng.normal(size=(*groups, prompts, SIZE))

    true = own + noisy(0.5, 2)
    return {
        "uniform": own + noisy(method_noise, 2),
        # An error of the values is that of both groups, as prefixes that both have share continuations
        **{label: true + noisy(noise)[None] for label in HALVES},
    }


def test_cosines_are_those_of_the_parts():
    rng = np.random.default_rng(0)
    batch = 4
    found = {label: f(np.ones(PROMPTS)) for label, f in statistics_of(sketches(rng), batch).items()}
    # Expected squares of a batch's mean, in units of SIZE: the prompts' own, and the completions' noise
    target = 0.2**2 + 1 / batch
    for label, variance in (("uniform", 2.0**2), (TRUE, 0.5**2)):
        expected = np.sqrt(target / (target + variance / batch))
        assert float(found[label]["cosine"]) == pytest.approx(expected, abs=0.03)
        assert float(found[label]["limit"]) == pytest.approx(1, abs=0.03)
        assert float(found[label]["share"]) == pytest.approx(variance / 2.0**2, abs=0.02)
    assert float(found["uniform"]["share"]) == pytest.approx(1)
    assert float(found[TRUE]["limit"]) == pytest.approx(1)


def test_scores_by_their_definitions():
    """A prompt that counts twice is two prompts whose product with each other is left out."""
    rng = np.random.default_rng(0)
    own = sketches(rng, 0.1, 0.1, prompts=6)
    own["method"] = own["uniform"] + rng.normal(size=own["uniform"].shape)
    counts, batch = np.array([2, 0, 1, 1, 0, 2]), 3
    places = np.repeat(np.arange(6), counts)
    first, second = (own[label] for label in HALVES)
    true = (first + second) / 2

    def of(alike, a, b):
        """The first: products of a prompt with itself. The others: of which means two prompts have products."""
        apart = [a[:, j].mean(0) @ b[:, k].mean(0) for j in places for k in places if j != k]
        return np.mean([alike(j) for j in places]) / batch + (1 - 1 / batch) * np.mean(apart)

    def sums(g):
        return (
            of(lambda j: (g[0, j] @ true[1, j] + g[1, j] @ true[0, j]) / 2, g, true),
            of(lambda j: (g[0, j] @ g[0, j] + g[1, j] @ g[1, j]) / 2, g, g),
            of(lambda j: g[0, j] @ g[1, j], g, g),
        )

    length = of(lambda j: (first[0, j] @ second[1, j] + first[1, j] @ second[0, j]) / 2, true, true)
    found = {label: function(counts) for label, function in statistics_of(own, batch).items()}
    base_along, base_square, base_signal = sums(own["uniform"])
    for label in ("uniform", "method"):
        along, square, signal = sums(own[label])
        share = (square * (base_along / along) ** 2 - base_signal) / (base_square - base_signal)
        assert float(found[label]["cosine"]) == pytest.approx(along / np.sqrt(square * length))
        assert float(found[label]["limit"]) == pytest.approx(along / np.sqrt(signal * length))
        assert float(found[label]["share"]) == pytest.approx(share)
    square = of(lambda j: (first[0, j] @ second[0, j] + first[1, j] @ second[1, j]) / 2, true, true)
    assert float(found[TRUE]["cosine"]) == pytest.approx(np.sqrt(length / square))
    # Which group is the first does not matter
    again = statistics_of({label: rows[::-1] for label, rows in own.items()}, batch)
    for label, scores in found.items():
        for name, value in again[label](counts).items():
            assert float(value) == pytest.approx(float(scores[name]))


def test_methods_that_point_nowhere_or_have_no_noise():
    rng = np.random.default_rng(0)
    own = sketches(rng, 0.1, 0.1, prompts=6)
    own |= {"against": -own["uniform"], "nothing": np.zeros_like(own["uniform"])}
    found = {label: function(np.ones(6)) for label, function in statistics_of(own, 2).items()}
    assert found["against"]["cosine"] < 0
    assert found["against"]["share"] == found["nothing"]["share"] == HOPELESS
    assert np.isnan(found["nothing"]["cosine"])
    assert np.isnan(found["nothing"]["limit"])
    own["uniform"] = np.repeat(own["uniform"][:1], 2, 0)  # equal groups have no noise to take as a unit
    assert np.isnan(statistics_of(own, 2)[TRUE](np.ones(6))["share"])


def test_one_prompt_has_a_group_s_cosine_only():
    own = sketches(np.random.default_rng(0), 0.1, 0.1, prompts=1)
    assert statistics_of(own, 1)["uniform"](np.ones(1))["cosine"] == pytest.approx(1, abs=0.05)
    assert np.isnan(statistics_of(own, 2)["uniform"](np.ones(1))["cosine"])


def test_effective_prompts():
    def of(lengths):
        rows = np.sqrt(np.array(lengths))[None, :, None] * np.ones((2, 1, 1))
        return effective_prompts(dict.fromkeys(HALVES, rows))

    assert of([1, 1, 1, 1]) == pytest.approx(4)
    assert of([1, 0, 0, 0]) == pytest.approx(1)
    assert of([3, 1]) == pytest.approx(16 / 10)
    assert np.isnan(of([0, 0]))
    opposite = np.array([[[1.0], [1.0]], [[1.0], [-1.0]]])  # a negative product is an error of the estimates
    assert effective_prompts(dict.fromkeys(HALVES, opposite)) == pytest.approx(1)


# Policies whose gradients are known


@pytest.fixture(scope="module")
def prompts():
    """Near-certain policies, as they are late in training."""
    rng = np.random.default_rng(0)
    return [chain.known(chain.make_prompt(rng, sure=4.0)) for _ in range(6)]


@pytest.mark.parametrize("batch", [1, 8])
def test_scores_of_a_chain_are_those_of_all_its_groups(batch):
    """By enumeration. Errors of the values, which both groups share, do not matter."""
    rng = np.random.default_rng(1)
    copies = [chain.known(chain.make_prompt(rng, sure=2.0)) for _ in range(6)] * 300
    found = statistics_of(chain.sampled(copies, rng, noise=0.1), batch)
    exact = {method: chain.expected(copies, method, batch) for method in chain.METHODS}
    base = exact["uniform"]
    for method, sums in exact.items():
        scores = found[method](np.ones(len(copies)))
        cosine = sums["along"] / np.sqrt(sums["square"] * sums["length"])
        share = sums["square"] * (base["along"] / sums["along"]) ** 2 - base["signal"]
        assert float(scores["cosine"]) == pytest.approx(cosine, abs=0.02)
        assert float(scores["limit"]) == pytest.approx(
            sums["along"] / np.sqrt(sums["signal"] * sums["length"]), abs=0.03
        )
        assert float(scores["share"]) == pytest.approx(share / (base["square"] - base["signal"]), abs=0.1)


def test_true_advantages_are_no_bound(prompts):
    """Where the policy is nearly certain, their baseline, the value, is far from the one with the least variance."""
    exact = {method: chain.expected(prompts, method, 1) for method in chain.METHODS}
    cosines = {method: sums["along"] / np.sqrt(sums["square"] * sums["length"]) for method, sums in exact.items()}
    assert cosines["otb"] > 1.1 * cosines["true"]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.99])
def test_the_best_baseline_of_one_binary_decision_leaves_no_variance(probability):
    """And is what `otb` has: p (1 - p) for every group with both outcomes, scaled by how often each came."""
    for right in range(1, 8):
        rewards = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
        p = torch.where(rewards > 0, probability, 1 - probability).double()
        energies = squared_gradients(p.log(), (p**2 + (1 - p) ** 2)).unsqueeze(1)
        ones = torch.ones(8, 1, dtype=torch.bool)
        baseline = token_baselines(energies, rewards, torch.zeros(8, dtype=torch.long), ones)[:, 0]
        slopes = torch.where(rewards > 0, 1 - probability, -probability).double()  # of the log-probs at the logit
        pushes = (rewards - baseline) * slopes
        assert (pushes > 0).all()
        share = right / 8
        expected = share * (1 - share) * probability * (1 - probability)
        expected /= share * (1 - probability) ** 2 + (1 - share) * probability**2
        assert float(pushes.mean()) == pytest.approx(expected)
        if share == probability:
            assert float(pushes.std()) == pytest.approx(0, abs=1e-12)
            assert float(pushes.mean()) == pytest.approx(probability * (1 - probability))


def test_share_is_that_of_uniform_with_more_completions(prompts):
    """Twice as many completions of each prompt are a share of a half, but for the group's own mean and deviation."""
    twice = [chain.known(known.prompt, 6, ("uniform",)) for known in prompts[:3]]
    base, more = (chain.expected(own, "uniform", 8) for own in (prompts[:3], twice))
    share = (more["square"] * (base["along"] / more["along"]) ** 2 - base["signal"]) / (base["square"] - base["signal"])
    assert share == pytest.approx(0.5, abs=0.1)


def test_the_target_s_errors_cancel(prompts):
    """The cosine of a method without noise of its own hardly scatters, unlike with one group of each prompt for it and the
    other for the target."""
    rng = np.random.default_rng(0)
    exact = np.array([[known.prompt.gradient() for known in prompts * 4]] * 2)
    crossed, single = [], []
    for _ in range(60):
        own = chain.sampled(prompts * 4, rng) | {"exact": exact}
        crossed.append(float(statistics_of(own, 8)["exact"](np.ones(24))["cosine"]))
        half = {label: np.stack([rows[0], rows[0]]) if label == "exact" else rows for label, rows in own.items()}
        true = half[HALVES[0]]
        along, length = ((a.mean(0) @ b.mean(0)) for a, b in ((exact[0], true[1]), (true[0], true[1])))
        single.append(along / np.sqrt(length * (exact[0].mean(0) @ exact[0].mean(0))))
    assert np.std(crossed) < 0.5 * np.std(single)


class Bigrams(torch.nn.Module):
    """Logits that only the last token decides."""

    def __init__(self, size=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(size, size, generator=generator))
        self.device = torch.device("cpu")

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.table[input_ids])


def test_gradients_of_groups_by_hand():
    """Each side has its own completions and credit; a group without credit has the gradient 0."""
    model = Bigrams()
    rows = [[[1, 2], [3]], [[4, 0, 2], [1]]]
    credit = [[[0.5, -1.0], [2.0]], [[0.0, 0.0, 0.0], [0.0]]]
    groups = [Group("", [2, 3], own, torch.tensor([0.0, 1.0])) for own in rows]
    pair = tuple(
        Credited(group, {"uniform": [np.array(row) for row in own], HALVES[0]: [np.ones(len(row)) for row in own]})
        for group, own in zip(groups, credit, strict=True)
    )
    found = group_sketches(Tempered(model, 2.0), [pair], 0, 64)
    assert set(found) == {"uniform", HALVES[0]}
    probabilities = (model.table.detach().double() / 2.0).softmax(-1).numpy()
    for label in found:
        assert found[label].shape == (2, 1, 25)
        for side in (0, 1):
            expected = np.zeros((5, 5))
            for row, own in zip(rows[side], pair[side].credit[label], strict=True):
                for before, token, a in zip([3, *row], row, own, strict=False):
                    expected[before] -= a / 2 / 2.0 * ((np.arange(5) == token) - probabilities[before])
            np.testing.assert_allclose(found[label][side, 0], expected.flatten(), atol=1e-6)
