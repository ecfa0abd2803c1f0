"""One suite for every registered method; a new method is covered without writing a test."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from support.inputs import make_inputs, mapped

from trl_credit import METHODS, CreditInputs, build_credit
from trl_credit.methods.metrics import credit_metrics
from trl_credit.methods.ops import effective_token_fraction, mean_one


# Every registered method at its defaults, and what needs other signals
EVERY = {name: cls() for name, cls in METHODS.items()} | {
    "gcpo-full": build_credit({"method": "gcpo", "divergence": "full"}),
    "pcpo-ratio": build_credit({"method": "pcpo", "form": "ratio"}),
    "pcpo-advantage": build_credit({"method": "pcpo", "form": "advantage", "target": "count"}),
    "dgpo-adaptive": build_credit({"method": "dgpo", "temperature": "adaptive"}),
}

every_method = pytest.mark.parametrize("method", list(EVERY.values()), ids=list(EVERY))

VOCAB = 50

shapes = given(seed=st.integers(0, 10_000), batch=st.integers(2, 6), length=st.integers(1, 40))


@every_method
@settings(deadline=None, max_examples=50)
@shapes
def test_weights_are_weights(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights = method.weights(inputs)
    assert weights.shape == inputs.mask.shape
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (weights[~inputs.mask] == 0).all()
    if method.mean_one:
        torch.testing.assert_close(weights.sum(-1), inputs.mask.sum(-1).float(), rtol=1e-5, atol=1e-6)
    fraction = effective_token_fraction(weights, inputs.mask)[inputs.mask.any(-1)]
    assert ((fraction > 0) & (fraction <= 1 + 1e-5)).all()


@every_method
@settings(deadline=None, max_examples=30)
@shapes
def test_right_padding_changes_nothing(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    garbage = mapped(
        inputs, lambda x: torch.nn.functional.pad(x, (0, 7), value=False if x.dtype == torch.bool else 9.0)
    )
    torch.testing.assert_close(method.weights(garbage)[:, :length], method.weights(inputs), rtol=1e-6, atol=1e-7)
    assert (method.weights(garbage)[:, length:] == 0).all()


@every_method
@settings(deadline=None, max_examples=30)
@shapes
def test_batch_order_changes_nothing(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    shuffled = method.weights(mapped(inputs, lambda x: x[order]))
    torch.testing.assert_close(shuffled, method.weights(inputs)[order], rtol=1e-6, atol=1e-7)


@every_method
def test_deterministic(method):
    inputs = make_inputs(method, 0, 4, 33)
    assert torch.equal(method.weights(inputs), method.weights(inputs))


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype(method, dtype):
    inputs = make_inputs(method, 0, 4, 33, dtype)
    weights = method.weights(inputs)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 and method.signals() else torch.float32)
    wide = mapped(inputs, lambda x: x if x.dtype == torch.bool else x.double())
    torch.testing.assert_close(weights.double(), method.weights(wide).double(), rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_signals(method, value):
    inputs = make_inputs(method, 5, 5, 21)
    row = int(inputs.mask.sum(-1).argmax())
    place = int(inputs.mask[row].nonzero()[0])
    clean = method.weights(inputs)
    for values in inputs.signals.values():
        values[row, place] = value
    weights = method.weights(inputs)
    assert int(inputs.nonfinite.sum()) == (1 if inputs.signals else 0)
    others = [i for i in range(5) if i != row]
    assert torch.equal(weights[others], clean[others])
    if inputs.signals:
        assert torch.equal(weights[row], inputs.mask[row].float())
    for name, values in method.metrics(inputs).items():
        assert values.shape == inputs.mask.shape, name


@every_method
def test_token_advantages(method):
    inputs = make_inputs(method, 1, 4, 9)
    advantages = torch.tensor([1.0, -2.0, 0.0, 0.5])
    weights = method.weights(inputs)
    result = method.token_advantages(advantages, weights, inputs)
    full = result.unsqueeze(1) * inputs.mask if result.dim() == 1 else result
    if method.shapes_ratio:  # then weights enter through the ratio
        assert torch.equal(result, advantages)
    else:
        torch.testing.assert_close(full, advantages.unsqueeze(1) * weights)


@every_method
def test_the_gradient_at_ratio_1_is_the_weighted_policy_gradient(method):
    """Whatever way the weights enter: -A w d(logp)."""
    inputs = make_inputs(method, 3, 4, 9)
    advantages, weights = torch.tensor([1.0, -2.0, 0.0, 0.5]), method.weights(inputs)
    logps = inputs.policy_logps.clone().requires_grad_()
    shaped = method.ratio_logps(logps, logps.detach(), weights) if method.shapes_ratio else logps
    result = method.token_advantages(advantages, weights, inputs)
    result = result.unsqueeze(1) if result.dim() == 1 else result
    (-torch.exp(shaped - shaped.detach()) * result)[inputs.mask].sum().backward()
    torch.testing.assert_close(logps.grad, -(advantages.unsqueeze(1) * weights) * inputs.mask)


@every_method
def test_completions_without_an_advantage_may_be_left_out_where_the_method_says_so(method):
    """What `skip_zero_advantage` and the signals' forwards rely on."""
    if method.credits_zero_advantage:
        return
    inputs = make_inputs(method, 2, 5, 11)
    advantages = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.5])
    result = method.token_advantages(advantages, method.weights(inputs), inputs)
    kept = advantages.nonzero().flatten()
    part = mapped(inputs, lambda x: x[kept])
    torch.testing.assert_close(method.token_advantages(advantages[kept], method.weights(part), part), result[kept])
    assert (result[advantages == 0] == 0).all()


def test_a_method_with_token_advantages_of_its_own_credits_every_completion():
    class Additive(type(EVERY["dgpo"])):
        def token_advantages(self, advantages, weights, inputs):
            return advantages.unsqueeze(1) + weights

    assert Additive().credits_zero_advantage
    assert [method.credits_zero_advantage for method in EVERY.values()] == [False] * len(EVERY)


@every_method
def test_round_trip(method):
    assert build_credit(method.to_dict()) == method
    assert build_credit(method.name) == type(method)()


@every_method
def test_documentation(method):
    assert method.paper.id
    assert method.paper.title in method.paper.citation
    assert method.paper.id in method.paper.citation
    for field in dataclasses.fields(method):
        assert f"{field.name}:" in type(method).__doc__, field.name


def test_inputs_are_checked():
    good = {"mask": torch.ones(2, 3).bool(), "policy_logps": torch.zeros(2, 3), "policy_entropy": torch.zeros(2, 3)}
    CreditInputs(**good, vocab_size=5)
    for broken, message in [
        ({"mask": torch.ones(2, 3)}, "bool"),
        ({"policy_logps": torch.zeros(2, 4)}, r"policy_logps has shape \(2, 4\)"),
        ({"policy_entropy": torch.zeros(2, 3, requires_grad=True)}, "policy_entropy requires grad"),
    ]:
        with pytest.raises(ValueError, match=message):
            CreditInputs(**(good | broken), vocab_size=5)


def test_mean_one_at_the_ends_of_float32():
    mask = torch.ones(1, 2).bool()
    for scale in (1e-45, 1e-38, 1.0, 1e38):
        scores = torch.tensor([[1.0, 2.0]]) * scale
        torch.testing.assert_close(mean_one(scores, mask).sum(), torch.tensor(2.0))
        if scale > 1e-40:  # denormals have no digits left
            torch.testing.assert_close(mean_one(scores, mask), torch.tensor([[2 / 3, 4 / 3]]))


class TwoProcesses:
    """Gathers what two processes with equal numbers of rows would send."""

    def __init__(self):
        self.sent = []

    def gather(self, tensor):
        self.sent.append(tensor)
        return torch.cat(self.sent)


@every_method
def test_metrics_are_global(method):
    inputs = make_inputs(method, 11, 6, 17)
    weights = method.weights(inputs)
    gathering = TwoProcesses()
    expected = credit_metrics(method, inputs, weights, 3)
    for rows, unscored in ((slice(0, 2), 1), (slice(2, 6), 2)):
        part = mapped(inputs, lambda x, rows=rows: x[rows])
        result = credit_metrics(method, part, weights[rows], unscored, gathering.gather)
    assert result == pytest.approx(expected, rel=1e-9, abs=1e-12)
    mask = inputs.mask
    rows = [row[on].double() for row, on in zip(weights, mask, strict=True) if on.any()]
    spread = torch.cat([row - (1 if method.mean_one else row.mean()) for row in rows])
    assert expected["credit/weight_std"] == pytest.approx(spread.square().mean().sqrt().item(), rel=1e-6)
    if not method.mean_one:
        assert expected["credit/weight_mean"] == pytest.approx(torch.cat(rows).mean().item(), rel=1e-6)
    assert expected["credit/weight_max"] == pytest.approx(torch.cat(rows).max().item())
    assert expected["credit/nonfinite_tokens"] == 3


def test_shapes_and_dtypes_are_checked_in_the_tests():
    """By conftest.py, in every call of the methods' functions."""
    weights, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for wrong in ((weights[0], mask), (weights, mask[:, :2]), (weights.long(), mask), (weights, mask.float())):
        with pytest.raises(TypeCheckError):
            mean_one(*wrong)
