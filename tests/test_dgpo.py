import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit.methods.base import effective_token_fraction
from trl_credit.methods.dgpo import adaptive_temperature, dgpo_scores, dgpo_weights


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
