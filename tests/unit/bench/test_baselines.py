"""Baselines of the benchmark."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import make_inputs, make_rollout, mapped

from trl_credit import CreditInputs, build_credit
from trl_credit.bench.baselines import BASELINES, MeanShare, baselines, is_control, is_trivial
from trl_credit.methods.ops import effective_token_fraction
from trl_credit.methods.registry import METHODS


every_baseline = pytest.mark.parametrize("method", list(baselines().values()), ids=list(baselines()))

SEEDED = settings(deadline=None, max_examples=40)

# Baselines: held to what every method is held to

shapes = given(seed=st.integers(0, 10_000), batch=st.integers(2, 6), length=st.integers(1, 40))


@every_baseline
@SEEDED
@shapes
def test_baselines_are_weights(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights = method.weights(inputs)
    assert weights.dtype == torch.float32
    assert (torch.isfinite(weights) & (weights >= 0)).all()
    assert (weights[~inputs.mask] == 0).all()
    if method.mean_one:
        torch.testing.assert_close(weights.sum(-1), inputs.mask.sum(-1).float(), rtol=1e-5, atol=1e-6)
    fraction = effective_token_fraction(weights, inputs.mask)[weights.any(-1)]
    assert ((fraction > 0) & (fraction <= 1 + 1e-5)).all()


@every_baseline
@SEEDED
@shapes
def test_baselines_depend_on_the_completion_only(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights = method.weights(inputs)
    assert torch.equal(weights, method.weights(inputs))
    padded = mapped(inputs, lambda x: torch.nn.functional.pad(x, (0, 5), value=False if x.dtype == torch.bool else 9.0))
    torch.testing.assert_close(method.weights(padded)[:, :length], weights, rtol=1e-6, atol=1e-7)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(method.weights(mapped(inputs, lambda x: x[order])), weights[order], rtol=1e-6, atol=1e-7)


@every_baseline
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_baselines_do_not_depend_on_the_dtype(method, dtype):
    inputs = make_inputs(method, 0, 4, 33, dtype)
    wide = mapped(inputs, lambda x: x if x.dtype == torch.bool else x.double())
    torch.testing.assert_close(method.weights(inputs), method.weights(wide), rtol=1e-4, atol=1e-5)


@every_baseline
def test_baselines_round_trip(method):
    assert build_credit(method.to_dict()) == method
    if method.paper.title.startswith("CreditBench"):
        assert (method.paper.id, method.paper.citation) == ("", "")
    else:
        assert method.paper.title in method.paper.citation
    assert is_trivial(method)


def test_what_baselines_follow():
    inputs = CreditInputs(
        mask=torch.tensor([[True, True, False, True]]),
        policy_logps=torch.tensor([[-1.0, -3.0, -9.0, 0.0]]),
        policy_entropy=torch.tensor([[0.0, 0.5, 9.0, 1.5]]),
        vocab_size=9,
    )
    methods = baselines()
    expected = {
        "surprisal": [0.75, 2.25, 0, 0],
        "entropy": [0, 0.75, 0, 2.25],
        "position late": [0.5, 1, 0, 1.5],
        "position early": [1.5, 1, 0, 0.5],
        "uniform": [1, 1, 0, 1],
    }
    for name, row in expected.items():
        torch.testing.assert_close(methods[name].weights(inputs), torch.tensor([row], dtype=torch.float32))
    for broken in (math.nan, -math.inf):
        bad = dataclasses.replace(inputs, policy_logps=torch.tensor([[-1.0, broken, -9.0, 0.0]]))
        assert torch.equal(methods["surprisal"].weights(bad), inputs.mask.float())
    with pytest.raises(ValueError, match="Did you mean 'early'"):
        BASELINES["position"]("earl")


def test_a_share_of_the_mean():
    rollout = dataclasses.replace(
        make_rollout(0, torch.tensor([[True, False, True]] * 5)),
        rewards=torch.tensor([0.5, 1.5, 0.5, 2.0, 2.0]),
        groups=torch.tensor([0, 0, 0, 1, 1]),
    )
    for share in (0.0, 0.5, 1.0):
        found = MeanShare(share).rollout_stage(rollout)["advantages"]
        expected = [reward - 0.5 - share * (2.5 / 3 - 0.5) for reward in (0.5, 1.5, 0.5)]
        torch.testing.assert_close(found[:3, 0], torch.tensor(expected))
        assert torch.equal(found[:, 0], found[:, 2])
        assert not found[:, 1].any()
        assert not found[3:].any()
    assert build_credit(MeanShare(0.2).to_dict()) == MeanShare(0.2)
    with pytest.raises(ValueError, match="`share` must be between 0 and 1"):
        MeanShare(1.5)


def test_the_controls_are_the_registered_ones():
    found = baselines({"uniform": build_credit("uniform"), "otb": build_credit("otb"), "d": build_credit("dgpo")})
    assert found["random"] == build_credit("random")
    assert found["shuffled d"] == build_credit(
        {"method": "shuffled", "of": {"method": "dgpo"}}
    )  # the first with weights
    assert [label for label in found if label.startswith("shuffled")] == ["shuffled d"]
    assert all(map(is_trivial, found.values()))
    assert [name for name, cls in METHODS.items() if is_control(cls)] == ["uniform", "random", "shuffled"]
    assert not is_trivial(build_credit("gcpo"))
    # A method that weighs and adds cannot be shuffled
    assert not any(label.startswith("shuffled") for label in baselines({"both": build_credit(["gcpo", "otb"])}))


def test_the_random_weights_of_older_releases():
    """The path in a recipe still names random weights: today's."""
    with pytest.warns(FutureWarning, match=r"moved to `trl_credit\.methods\.random\.RandomTokens`"):
        method = build_credit({"method": "trl_credit.bench.baselines.Random", "seed": 3})
    assert method == build_credit({"method": "random", "seed": 3})
