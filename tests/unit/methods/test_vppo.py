"""VPPO's factors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import vppo
from support.inputs import make_inputs

from trl_credit import VPPO, HasSecondPrompt
from trl_credit.methods.registry import standalone_methods
from trl_credit.methods.vppo import completion_factors, top_tokens, vppo_factors


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    top_fraction=st.floats(0.01, 1.0),
    scaling_min=st.floats(0.0, 1.0),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    tied=st.booleans(),
)
def test_oracle(seed, top_fraction, scaling_min, bad, tied):
    generator = torch.Generator().manual_seed(seed)
    policy, damaged = (-4 * torch.rand(7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    policy[3] *= 200  # beyond both clamps
    mask = torch.rand(7, 11, generator=generator) < 0.7
    mask[0], mask[1] = False, torch.arange(11) == 4
    has_image = torch.arange(7) != 2
    if tied:
        damaged = policy + (damaged - policy).round()
    if bad is not None:
        (policy if seed % 2 else damaged)[4, seed % 11] = bad
    found = vppo_factors(policy, damaged, mask, has_image, top_fraction, scaling_min)
    expected = vppo(*(x.tolist() for x in (policy, damaged, mask, has_image)), top_fraction, scaling_min)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_the_first_of_equal_tokens_wins():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0], [0.0, 5.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, False, True, True, True], [True, False, True, True, True]])
    found = top_tokens(values, mask, 0.4)  # ceil(1.6) of four
    assert found.int().tolist() == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0]]
    long = torch.arange(100.0).unsqueeze(0)
    assert top_tokens(long, long >= 0, 0.07).sum() == 7


def test_factors_of_completions():
    means, every = torch.tensor([0.1, 0.3, 0.5, 0.9]), torch.ones(4, dtype=torch.bool)
    found = completion_factors(means, every, 0.9)
    assert found.mean() == pytest.approx(1.0)
    assert found[0] == pytest.approx(0.9)
    assert found[3] == pytest.approx(0.9 + 0.1 / (1.75 / 4))
    ones = torch.ones(4)
    assert torch.equal(completion_factors(torch.full((4,), 0.3), every, 0.9), ones)
    assert torch.equal(completion_factors(0.3 + 1e-7 * torch.arange(4.0).double(), every, 0.9), ones.double())
    assert torch.equal(completion_factors(means, torch.arange(4) == 2, 0.9), ones)
    two = completion_factors(means, torch.tensor([True, False, False, True]), 0.9)
    torch.testing.assert_close(two, torch.tensor([0.9, 1.0, 1.0, 1.1]))


def test_completions_without_an_image_train_as_without_credit():
    method = VPPO()
    inputs = make_inputs(method, 3, 6, 30)
    has_image = HasSecondPrompt(method.signals()[0])
    inputs.signals[has_image][:] = torch.tensor([1.0, 1, 1, 0, 1, 1]).unsqueeze(1)
    weights = method.weights(inputs)
    assert torch.equal(weights[3], inputs.mask[3].float())
    others = [0, 1, 2, 4, 5]
    assert torch.equal(weights[others], method.weights(inputs.map(lambda x: x[others])))
    assert (weights[others] == 0)[inputs.mask[others]].any()
    assert weights[others].max() > 1
    metrics = method.metrics(inputs)
    assert all(values[3].isnan().all() for values in metrics.values())
    chosen = metrics["selected"][others]
    assert torch.equal(chosen == 1, weights[others] > 0)
    inputs.signals[has_image][:] = 0.0
    assert torch.equal(method.weights(inputs), inputs.mask.float())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_fraction": 0}, "`top_fraction` must be above 0"),
        ({"top_fraction": 1.1}, "at most 1"),
        ({"scaling_min": -0.1}, "`scaling_min` must be between 0 and 1"),
        ({"scaling_min": 1.0, "top_fraction": 1.0}, "that is `uniform`"),
        ({"patch_size": 0}, "`patch_size` must be at least 1"),
        ({"damage_probability": 0}, "`damage_probability` must be above 0"),
    ],
)
def test_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        VPPO(**parameters)


def test_collapse_is_damage_without_effect():
    method = VPPO()
    inputs = make_inputs(method, 3, 6, 30)
    damaged, has_image = method.signals()
    inputs.signals[has_image][:] = 1.0
    inputs.signals[damaged][:] = inputs.policy_logps + 5e-5  # below the noise floor of float32

    def logged():
        return {f"credit/{name}": values[inputs.mask].mean().item() for name, values in method.metrics(inputs).items()}

    assert method.is_uniform(logged()) is True
    assert logged()["credit/contrast"] < 1e-8
    inputs.signals[damaged][:, ::2] += 0.1
    assert method.is_uniform(logged()) is False
    assert method.is_uniform({"credit/contrast_fraction": math.nan}) is None
    assert method.is_uniform({}) is None
    assert "`damage_probability`" in method.remedy(inputs)


def test_no_default_of_text_only_commands():
    assert "gcpo" in standalone_methods()
    assert "vppo" not in standalone_methods()
