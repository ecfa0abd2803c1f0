"""DGPO weights against an independent oracle, and adaptive temperature."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit import CreditInputs, build_credit
from trl_credit.methods.dgpo import adaptive_temperature, dgpo_scores, dgpo_weights
from trl_credit.methods.ops import effective_token_fraction


def test_hand_worked():
    # entropy ln 2 of |V| = 4 is 1/2; scores 0, ln 2 / 2 * tau-scaled: s / tau = 0, ln 2, ln 4
    entropy = torch.full((1, 3), math.log(2))
    distance = torch.tensor([[0.0, math.log(2), math.log(4)]])
    weights = dgpo_weights(distance, entropy, torch.ones(1, 3), vocab_size=4, temperature=0.5)
    torch.testing.assert_close(weights, 3 * torch.tensor([[1 / 7, 2 / 7, 4 / 7]]))


def test_entropy_exponent():
    entropy = torch.tensor([[math.log(4), math.log(2)]])  # g = 1, 1/2
    distance = torch.tensor([[1.0, 1.0]])
    weights = dgpo_weights(distance, entropy, torch.ones(1, 2), vocab_size=4, temperature=1.0, entropy_exponent=2.0)
    torch.testing.assert_close(weights[0, 0] / weights[0, 1], torch.tensor(math.exp(1 - 0.25)))
    off = dgpo_weights(distance, entropy * 0, torch.ones(1, 2), vocab_size=4, entropy_exponent=0.0)
    torch.testing.assert_close(off, torch.ones(1, 2))


def test_at_the_reference_weights_are_one():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    weights = dgpo_weights(torch.zeros(2, 3), torch.rand(2, 3), mask, vocab_size=10)
    assert torch.equal(weights, mask.float())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_gives_uniform_weights_to_its_completion_only(value):
    distance, entropy, mask = torch.rand(2, 4), torch.rand(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    clean = dgpo_weights(distance, entropy, mask, vocab_size=10)
    distance[0, 1] = value
    weights = dgpo_weights(distance, entropy, mask, vocab_size=10)
    assert torch.equal(weights[0], mask[0].float())
    assert torch.equal(weights[1], clean[1])


def test_no_gradient():
    distance = torch.rand(1, 4, requires_grad=True)
    assert not dgpo_weights(distance, torch.rand(1, 4, requires_grad=True), torch.ones(1, 4), 10).requires_grad


def test_sharp_temperature_does_not_overflow():
    weights = dgpo_weights(torch.tensor([[0.1, 0.9, 0.2]]), torch.ones(1, 3), torch.ones(1, 3), 10, temperature=1e-8)
    assert weights.tolist() == [[0.0, 3.0, 0.0]]


unit = st.floats(min_value=0, max_value=1, width=32)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    temperature=st.sampled_from([0.5, 0.01, 3.0]),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    vocab_size=st.sampled_from([2, 50, 151_936]),
)
def test_against_the_oracle(data, temperature, exponent, vocab_size):
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12)))
    n = shape[0] * shape[1]
    distance, share = (np.array(data.draw(st.lists(unit, min_size=n, max_size=n))).reshape(shape) for _ in range(2))
    entropy = (share * math.log(vocab_size)).astype(np.float32)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))).reshape(shape)
    expected = oracles.rows(oracles.dgpo_row, distance, entropy, mask, vocab_size, temperature, exponent)
    weights = dgpo_weights(
        torch.tensor(distance, dtype=torch.float32),
        torch.tensor(entropy),
        torch.tensor(mask),
        vocab_size,
        temperature,
        exponent,
    )
    # a relative error of eps in s becomes s / tau * eps in the weight
    np.testing.assert_allclose(weights.double().numpy(), expected, rtol=2e-5 / min(temperature, 1), atol=1e-6)


@pytest.mark.parametrize("target", [0.95, 0.5, 0.2])
def test_adaptive_temperature_reaches_its_target(target):
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(4, 60, generator=generator) ** 8 * torch.tensor([[1.0], [1e-3], [1e-6], [0.0]])
    entropy = torch.rand(4, 60, generator=generator)
    mask = torch.rand(4, 60, generator=generator) < 0.8
    temperature = adaptive_temperature(dgpo_scores(distance, entropy, 100), mask, target)
    weights = dgpo_weights(distance, entropy, mask, 100, temperature)
    reached = effective_token_fraction(weights, mask)
    torch.testing.assert_close(reached[:3], torch.full((3,), target), rtol=1e-3, atol=0)
    assert torch.equal(weights[3], mask[3].float())  # nothing to tell apart


def test_effective_token_fraction():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    weights = torch.tensor([[1.0, 1, 1, 1], [2.0, 0, 0, 0], [2.0, 2.0, 0, 0]])
    torch.testing.assert_close(effective_token_fraction(weights, mask), torch.tensor([1.0, 0.5, 0.5]))


def adaptive_weights(distance, entropy, mask, fraction=None, dtype=torch.float64):
    method = build_credit({"method": "dgpo", "temperature": "adaptive", "effective_fraction": fraction})
    inputs = CreditInputs(
        mask=mask,
        policy_logps=torch.zeros_like(distance),
        policy_entropy=entropy,
        vocab_size=100,
        signals={method.signals()[0]: distance},
        compute_dtype=dtype,
    )
    return method, inputs, method.weights(inputs)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    scale=st.sampled_from([1.0, 1e-3, 1e-8, 1e-15]),
    fraction=st.sampled_from([0.05, 0.3, 0.63, 0.9, 0.99]),
    length=st.integers(1, 30),
)
def test_adaptive_temperature_of_any_scores(data, scale, fraction, length):
    """The fraction asked for is reached wherever it can be: a softmax cannot put less than equal weight on the tokens that
    tie for the highest score, nor tell apart what is equal."""
    values = data.draw(st.lists(st.one_of(unit, st.sampled_from([0.0, 0.5])), min_size=length, max_size=length))
    distance = torch.tensor([values], dtype=torch.float64) * scale
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    entropy = torch.full_like(distance, math.log(100))  # g = 1: scores are the distances
    _, _, weights = adaptive_weights(distance, entropy, mask, fraction)
    weights, on = weights[0][mask[0]], distance[0][mask[0]]
    on = torch.where(on <= 1e-19, 0.0, on)
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    if not len(on):
        return
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0, dtype=torch.float64))
    if on.max() == on.min():
        assert torch.equal(weights, torch.ones_like(weights))
        return
    shares = weights / len(weights)
    reached = torch.exp(-torch.special.xlogy(shares, shares).sum()).item() / len(weights)
    lowest = (on == on.max()).sum().item() / len(on)
    # Gaps below a ten-thousandth of the spread are not told apart by the sharpest temperature that is tried
    nearly = (on >= on.max() - 1e-3 * (on.max() - on.min())).sum().item() / len(on)
    assert reached == pytest.approx(max(fraction, lowest), rel=1e-3) or lowest <= reached <= nearly + 1e-3
    order = on.argsort()
    assert (weights[order].diff() >= -1e-12).all()


def test_adaptive_temperature_is_logged_and_has_a_default():
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(3, 400, generator=generator) * torch.tensor([[1.0], [1e-4], [0.0]])
    mask = torch.ones(3, 400, dtype=torch.bool)
    method, inputs, weights = adaptive_weights(distance, torch.rand(3, 400, generator=generator) + 1, mask)
    reached = effective_token_fraction(weights, mask)
    torch.testing.assert_close(reached, torch.tensor([0.63, 0.63, 1.0]), rtol=1e-3, atol=1e-3)
    temperature = method.metrics(inputs)["temperature"]
    expected = [oracles.dgpo_row(d, e, [True] * 400, 100, t[0].item()) for d, e, t in zip(
        distance[:2].tolist(), inputs.policy_entropy[:2].tolist(), temperature[:2], strict=True)]  # fmt: skip
    np.testing.assert_allclose(weights[:2].numpy(), expected, rtol=2e-3, atol=1e-4)
    assert torch.isinf(temperature[2]).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-10), (torch.bfloat16, 5e-6), (torch.float16, 5e-8)])
def test_adaptive_temperature_does_not_sharpen_rounding(dtype, rounding):
    distance = torch.rand(1, 50, generator=torch.Generator().manual_seed(0)) * rounding
    mask = torch.ones(1, 50, dtype=torch.bool)
    _, _, weights = adaptive_weights(distance, torch.ones(1, 50), mask, 0.3, dtype)
    assert torch.equal(weights, torch.ones(1, 50))
    _, _, weights = adaptive_weights(distance * 100, torch.ones(1, 50), mask, 0.3, dtype)
    assert weights.std() > 0.5
