"""Products of sketched gradients, and the cosines that they give."""

import numpy as np
import pytest
import torch

from trl_credit.bench.true.gradients import TRUE, Sketch, statistics_of


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


def sketches(rng, noise=1.0, method_noise=2.0):
    """Gradients with known parts: of the prompts, of completions and of the values' errors."""
    prompts = rng.normal(size=(PROMPTS, SIZE)) + 0.2

    def noisy(scale):
        return scale * rng.normal(size=(PROMPTS, SIZE))

    completions, others = noisy(0.5), noisy(0.5)
    return {
        "uniform": prompts + noisy(method_noise),
        "true, half 0": prompts + completions + noisy(noise),
        "true, half 1": prompts + completions + noisy(noise),
        "others, half 0": prompts + others + noisy(noise),
        "others, half 1": prompts + others + noisy(noise),
    }


def test_cosines_are_those_of_the_parts():
    rng = np.random.default_rng(0)
    batch = 4
    found = {label: f(np.ones(PROMPTS)) for label, f in statistics_of(sketches(rng), batch).items()}
    # Expected squares of a batch's mean, in units of SIZE: the prompts' own, and the completions' noise
    target = 0.2**2 + 1 / batch
    for label, variance in (("uniform", 2.0**2), (TRUE, 0.5**2)):
        expected = np.sqrt(target / (target + variance / batch))
        assert float(found[label]["cosine"]) == pytest.approx(expected, abs=0.04)
        group = np.sqrt((1 + 0.2**2) / (1 + 0.2**2 + variance))
        assert float(found[label]["group_cosine"]) == pytest.approx(group, abs=0.04)
        assert float(found[label]["relative_variance"]) == pytest.approx(1 / group**2 - 1, rel=0.2)
    assert float(found[TRUE]["captured"]) == pytest.approx(1)
    assert float(found["uniform"]["captured"]) == 0


def test_counts_of_prompts_are_repetitions():
    """A prompt that counts twice is two prompts whose product with each other is left out."""
    rng = np.random.default_rng(0)
    own = {label: rows[:6] for label, rows in sketches(rng, 0.1, 0.1).items()}
    counts = np.array([2, 0, 1, 1, 0, 2])
    places = np.repeat(np.arange(6), counts)
    expected = []
    other = (own["others, half 0"] + own["others, half 1"]) / 2
    for a, b in (
        (own["uniform"], other),
        (own["uniform"], own["uniform"]),
    ):
        alike = np.mean([a[j] @ b[j] for j in places])
        pairs = [a[j] @ b[k] for j in places for k in places if j != k]
        expected.append(alike / 3 + 2 / 3 * np.mean(pairs))
    target = []
    for a, b in (("true, half 0", "others, half 1"), ("true, half 1", "others, half 0")):
        alike = np.mean([own[a][j] @ own[b][j] for j in places])
        pairs = [own[a][j] @ own[b][k] for j in places for k in places if j != k]
        target.append(alike / 3 + 2 / 3 * np.mean(pairs))
    found = statistics_of(own, 3)["uniform"](counts)["cosine"]
    assert float(found) == pytest.approx(expected[0] / np.sqrt(expected[1] * np.mean(target)))
