"""RLCSD's term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rlcsd_row
from support.inputs import make_inputs

from trl_credit import RLCSD, build_credit
from trl_credit.methods.rlcsd import rlcsd_term, sibling_contrast


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    wrongs=st.integers(1, 4),
    scale=st.floats(0.1, 3.0),
    temperature=st.sampled_from([0.02, 1.0]),
    clip=st.sampled_from([0.3, 2.0]),
)
def test_oracle(seed, wrongs, scale, temperature, clip):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    right, wrong = -4 * uniform(6, 9), -4 * uniform(wrongs, 6, 9)
    wrong[:, 2] = right[2] + 1e-3 * (uniform(wrongs, 9) - 0.5)  # at the threshold
    mask = uniform(6, 9) < 0.7
    mask[0], mask[1] = False, torch.arange(9) == 4
    has_right = (uniform(6, 1) < 0.8).expand(6, 9)
    has_wrong = (uniform(wrongs, 6, 1) < 0.7).expand(wrongs, 6, 9)
    advantages = torch.tensor([1.0, -1.0, 0.3, 2.0, -0.2, 0.0], dtype=torch.float64)
    where = mask & has_right & has_wrong.any(0)
    contrast = sibling_contrast(right, wrong, has_wrong)
    found = rlcsd_term(contrast, advantages, where, scale, temperature, 0.02, clip)
    expected = [
        rlcsd_row(
            right[i].tolist(), wrong[:, i].tolist(), has_right[i].tolist(), has_wrong[:, i].tolist(), mask[i].tolist(),
            advantages[i].item(), scale, temperature, 0.02, clip,
        )
        for i in range(6)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_sign_is_the_rewards():
    method = RLCSD()
    for seed in range(5):
        inputs = make_inputs(method, seed, 6, 30)
        token_advantages = method.token_advantages(inputs.advantages, None, inputs)
        a = inputs.advantages.unsqueeze(1)
        assert (token_advantages * a >= 0).all()
        assert (token_advantages - a)[inputs.mask].abs().max() > 0.1


def test_completions_without_siblings_train_as_in_grpo():
    method = RLCSD(wrong_siblings=2)
    right, first, _, has_right, has_first, has_second = method.signals()
    inputs = make_inputs(method, 3, 5, 30)
    signals = dict(inputs.signals)
    ones = torch.ones_like(signals[right])
    for has, rows in ((has_right, [0, 1, 2]), (has_first, [1, 2, 3]), (has_second, [2])):
        signals[has] = ones * torch.tensor([float(i in rows) for i in range(5)]).unsqueeze(1)
    object.__setattr__(inputs, "signals", signals)
    object.__setattr__(inputs, "mask", torch.ones_like(inputs.mask))
    object.__setattr__(inputs, "advantages", torch.tensor([1.0, -1.0, 0.5, 1.0, -0.5]))
    term = method.term(inputs)
    assert [bool(row.any()) for row in term] == [False, True, True, False, False]
    assert inputs.nonfinite.sum() == 0
    metrics = method.metrics(inputs)
    assert metrics["without_siblings"].mean(1).tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert metrics["selected"].isnan().all(1).tolist() == [True, False, False, True, True]
    alone = sibling_contrast(signals[right], signals[first].unsqueeze(0), torch.ones_like(ones).bool().unsqueeze(0))
    torch.testing.assert_close(metrics["sibling_contrast"][1], alone[1])
    assert method.is_uniform({"credit/without_siblings": 1.0, "credit/advantage_change": 0.0}) is True
    assert method.is_uniform({"credit/without_siblings": 0.5, "credit/advantage_change": 0.2}) is False


def test_it_stands_alone():
    with pytest.raises(ValueError, match="'rlcsd' cannot be part of a list: its bonus stops where"):
        build_credit(["rlcsd", "gcpo"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scale": 0}, "`scale` must be above 0"),
        ({"temperature": math.inf}, "`temperature` must be above 0 and finite"),
        ({"threshold": 0.5}, "below the largest bonus"),
        ({"wrong_siblings": 0}, "`wrong_siblings` must be at least 1"),
        ({"template": "{prompt}"}, r"\{solution\} is missing"),
    ],
)
def test_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        RLCSD(**parameters)
