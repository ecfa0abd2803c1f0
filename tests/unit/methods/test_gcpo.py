"""GCPO weights and contrasts against an independent oracle."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit import GCPO, CreditInputs
from trl_credit.methods.gcpo import average_ranks, contrast, full_contrast, gcpo_weights


def test_hand_worked():
    # exponent 1 (top half gets three quarters): 1 - y = (1 - x)^2 with x = 0.5, y = 0.75
    policy = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    negative = torch.tensor([[-1.5, -1.0, -3.0, -1.2]])
    weights = gcpo_weights(policy, negative, torch.ones(1, 4), top_fraction=0.5, top_mass=0.75)
    # ranks by |contrast|: u = -0.5, 0, -2, -0.2 -> 3, 1, 4, 2; w = 4 * rank / 10
    torch.testing.assert_close(weights, torch.tensor([[1.2, 0.4, 1.6, 0.8]]))


def test_ties_share_their_average_rank():
    policy = torch.zeros(1, 4)
    negative = torch.tensor([[-0.5, -0.5, 0.0, -2.0]])
    weights = gcpo_weights(policy, negative, torch.ones(1, 4), top_fraction=0.5, top_mass=0.75)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 0.4, 1.6]]))


def test_default_concentration():
    """The top 40 % of many tokens get 80 % of the weight; the largest weight is a + 1."""
    n = 20_000
    negative = -torch.linspace(0.01, 2.0, n).unsqueeze(0)
    weights = gcpo_weights(torch.zeros(1, n), negative, torch.ones(1, n))[0]
    assert weights[int(0.6 * n) :].sum().item() / n == pytest.approx(0.8, abs=1e-3)
    assert weights.max().item() == pytest.approx(math.log(0.2) / math.log(0.6), rel=1e-3)


def test_contrast_keeps_small_differences():
    u = torch.tensor([[1e-3, -1e-3, 3e-4]])
    expected = u.double().square() / 2 + u.double() ** 3 / 6 + u.double() ** 4 / 24
    torch.testing.assert_close(contrast(torch.zeros_like(u), u).double(), expected, rtol=1e-3, atol=0)


def test_contrast_is_clamped():
    u = torch.tensor([[100.0, -100.0, 3.0, -5.0]])
    expected = torch.tensor([[10.0, 10.0, 10.0, math.exp(-5) + 4.0]])
    torch.testing.assert_close(contrast(torch.zeros_like(u), u), expected)


def test_below_the_noise_floor_is_uniform():
    generator = torch.Generator().manual_seed(0)
    noise = 1e-5 * torch.randn(3, 50, generator=generator)
    mask = torch.ones(3, 50)
    torch.testing.assert_close(gcpo_weights(torch.zeros(3, 50), noise, mask), mask)
    assert gcpo_weights(torch.zeros(3, 50), noise, mask, noise_floor=0.0).std() > 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["policy", "negative"])
def test_nonfinite_gives_uniform_weights_to_its_completion_only(value, side):
    logps = {"policy": -torch.rand(2, 5), "negative": -3 * torch.rand(2, 5)}
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    clean = gcpo_weights(logps["policy"], logps["negative"], mask)
    logps[side][0, 2] = value
    weights = gcpo_weights(logps["policy"], logps["negative"], mask)
    assert torch.equal(weights[0], mask[0].float())
    assert torch.equal(weights[1], clean[1])


def test_nonfinite_off_the_mask_changes_nothing():
    policy, negative, mask = -torch.rand(1, 5), -3 * torch.rand(1, 5), torch.tensor([[1, 1, 0, 1, 0]])
    clean = gcpo_weights(policy, negative, mask)
    policy[0, 2] = negative[0, 4] = math.nan
    assert torch.equal(gcpo_weights(policy, negative, mask), clean)


def test_no_gradient():
    policy = (-torch.rand(1, 5)).requires_grad_()
    assert not gcpo_weights(policy, -torch.rand(1, 5).requires_grad_(), torch.ones(1, 5)).requires_grad


def test_average_ranks_against_scipy_definition():
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0, 9.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]).bool()
    ranks = average_ranks(values, mask)
    assert ranks[0, :4].tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ranks[1, [0, 1, 2, 4]].tolist() == [2.0, 2.0, 2.0, 4.0]


# Multiples of 1/8: exact in float32, so that ties in float32 are ties in the oracle's float64
logp = st.integers(min_value=-400, max_value=0).map(lambda i: i / 8)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), x=st.sampled_from([0.05, 0.2, 0.4, 0.7]), extra=st.sampled_from([0.0, 0.3, 0.9]))
def test_against_the_oracle(data, x, extra):
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12)))
    n = shape[0] * shape[1]
    policy, negative = (np.array(data.draw(st.lists(logp, min_size=n, max_size=n))).reshape(shape) for _ in range(2))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))).reshape(shape)
    y = x + (1 - x) * extra * 0.95
    expected = oracles.rows(oracles.gcpo_row, policy, negative, mask, x, y, 1e-4)
    weights = gcpo_weights(
        torch.tensor(policy, dtype=torch.float32),
        torch.tensor(negative, dtype=torch.float32),
        torch.tensor(mask),
        x,
        y,
    )
    np.testing.assert_allclose(weights.double().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_float64_is_exact():
    generator = torch.Generator().manual_seed(1)
    policy = -3 * torch.rand(4, 30, generator=generator, dtype=torch.float64)
    negative = policy + torch.randn(4, 30, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 30, generator=generator) < 0.7
    expected = oracles.rows(oracles.gcpo_row, policy.tolist(), negative.tolist(), mask.tolist(), noise_floor=1e-9)
    np.testing.assert_allclose(gcpo_weights(policy, negative, mask).numpy(), expected, rtol=1e-12, atol=0)


def full_inputs(divergence, policy=None, dtype=torch.float32):
    method = GCPO(divergence="full")
    zeros = torch.zeros_like(divergence)
    return method, CreditInputs(
        mask=torch.ones_like(divergence, dtype=torch.bool),
        policy_logps=zeros if policy is None else policy,
        policy_entropy=zeros,
        vocab_size=10,
        signals={method.signals()[0]: divergence},
        compute_dtype=dtype,
    )


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(0, 40).map(lambda i: i / 8), min_size=1, max_size=20))
def test_full_divergence_against_the_oracle(values):
    method, inputs = full_inputs(torch.tensor([values]))
    expected = oracles.rank_row(values, [True] * len(values))
    np.testing.assert_allclose(method.weights(inputs)[0].double().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_full_divergence_below_the_noise_floor_is_uniform():
    noise = torch.tensor([[1e-9, 3e-9, 0.0, 4e-9]])
    method, inputs = full_inputs(noise)
    assert torch.equal(method.weights(inputs), torch.ones(1, 4))
    assert float(method.metrics(inputs)["contrast_fraction"].sum()) == 0
    assert full_contrast(torch.tensor([[0.04, 0.06]]), noise_floor=0.3).tolist() == [[0.0, pytest.approx(0.06)]]
    method, inputs = full_inputs(torch.tensor([[0.01, 0.04, 0.02, 0.03]]), dtype=torch.bfloat16)
    assert torch.equal(method.weights(inputs), torch.ones(1, 4))


def test_full_divergence_that_is_not_finite_gives_uniform_weights():
    method, inputs = full_inputs(torch.tensor([[0.1, math.inf, 0.3], [0.1, math.nan, 0.3], [0.1, 0.2, 0.3]]))
    weights = method.weights(inputs)
    assert torch.equal(weights[:2], torch.ones(2, 3))
    assert weights[2].std() > 0.5


def test_unknown_divergence():
    with pytest.raises(ValueError, match=r"`divergence` is 'ful'.*full"):
        GCPO(divergence="ful")
