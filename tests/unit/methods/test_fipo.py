"""FIPO against its definition."""

import dataclasses

import oracles
import pytest
import torch
from support.inputs import make_inputs

from trl_credit import FIPO
from trl_credit.methods.fipo import discounted_future, fipo_weights


@pytest.mark.parametrize(
    "parameters", [{}, {"both_sides": True}, {"ratio_limit": 1.3}, {"half_life": 2.0, "clip": 0.9}]
)
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_the_definition(seed, parameters):
    method = FIPO(safe_ratio=1.2, **parameters)
    inputs = make_inputs(method, seed, 6, 37)
    expected = oracles.fipo(
        inputs.policy_logps, inputs.old_logps, inputs.advantages, inputs.mask, safe_ratio=1.2, **parameters
    )
    torch.testing.assert_close(method.weights(inputs).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_a_likely_token_of_a_bad_completion_is_safe():
    log_ratio = torch.tensor([[1.5, 0.0], [1.5, 0.0]])
    weights = fipo_weights(log_ratio, torch.tensor([-1.0, 1.0]), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0], [1.2, 1.0]]))


@pytest.mark.parametrize("length", [1, 2, 3, 31, 64, 65, 1000])
def test_discounted_future(length):
    values = torch.randn(2, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    expected, later = torch.zeros_like(values), torch.zeros(2, dtype=torch.float64)
    for t in reversed(range(length)):
        later = values[:, t] + 0.97 * later
        expected[:, t] = later
    torch.testing.assert_close(discounted_future(values, 0.97), expected)


def test_on_policy_every_weight_is_exactly_one():
    inputs = make_inputs(FIPO(), 0, 5, 20)
    for old in (None, inputs.policy_logps.clone()):
        weights = FIPO().weights(dataclasses.replace(inputs, old_logps=old))
        assert torch.equal(weights, inputs.mask.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_ratio_leaves_the_completion_even(value):
    inputs = make_inputs(FIPO(), 5, 5, 21)
    row = int(inputs.mask.sum(-1).argmax())
    clean = FIPO().weights(inputs)
    inputs.old_logps[row, int(inputs.mask[row].nonzero()[0])] = value
    inputs.old_logps[~inputs.mask] = value
    weights = FIPO().weights(inputs)
    assert torch.equal(weights[row], inputs.mask[row].float())
    others = [i for i in range(5) if i != row]
    assert torch.equal(weights[others], clean[others])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"half_life": 0}, "half_life"),
        ({"clip": 1.0}, "clip"),
        ({"safe_ratio": 0.5}, "safe_ratio"),
        ({"ratio_limit": 1}, "ratio_limit"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        FIPO(**parameters)
