"""One suite for every registered method; a new method is covered without writing a test."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from support.inputs import REQUIRED, built, credit, make_inputs, make_rollout, mapped

from trl_credit import METHODS, CreditInputs, build_credit
from trl_credit.methods.certainty import Certainty
from trl_credit.methods.metrics import credit_metrics
from trl_credit.methods.mix import Mix
from trl_credit.methods.ops import effective_token_fraction, mean_one
from trl_credit.methods.shuffled import Shuffled


# Every registered method at its defaults, and what needs other signals
EVERY = {name: built(name) for name in METHODS} | {
    "gcpo-full": build_credit({"method": "gcpo", "divergence": "full"}),
    "pcpo-ratio": build_credit({"method": "pcpo", "form": "ratio"}),
    "pcpo-advantage": build_credit({"method": "pcpo", "form": "advantage", "target": "count"}),
    "dgpo-adaptive": build_credit({"method": "dgpo", "temperature": "adaptive"}),
    "mix": build_credit(["gcpo", {"method": "dgpo", "temperature": 0.01}]),
}

every_method = pytest.mark.parametrize("method", list(EVERY.values()), ids=list(EVERY))

VOCAB = 50

shapes = given(seed=st.integers(0, 10_000), batch=st.integers(2, 6), length=st.integers(1, 40))


@every_method
@settings(deadline=None, max_examples=50)
@shapes
def test_credit_is_finite_and_without_gradient(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights, advantages = credit(method, inputs)
    assert advantages.shape == inputs.mask.shape
    assert not advantages.requires_grad
    assert torch.isfinite(advantages).all()
    if weights is None:
        return
    assert weights.shape == inputs.mask.shape
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (weights[~inputs.mask] == 0).all()
    if method.mean_one:
        torch.testing.assert_close(weights.sum(-1), inputs.mask.sum(-1).float(), rtol=1e-5, atol=1e-6)
    fraction = effective_token_fraction(weights, inputs.mask)[(weights > 0).any(-1)]
    assert ((fraction > 0) & (fraction <= 1 + 1e-5)).all()


@every_method
@settings(deadline=None, max_examples=30)
@shapes
def test_right_padding_changes_nothing(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)

    def with_garbage(x):
        filler = {torch.bool: False, torch.int64: 7}.get(x.dtype, 9.0)
        return torch.nn.functional.pad(x, (0, 7), value=filler) if x.dim() == 2 else x

    for padded, found in zip(credit(method, mapped(inputs, with_garbage)), credit(method, inputs), strict=True):
        if found is not None:
            torch.testing.assert_close(padded[:, :length], found, rtol=1e-6, atol=1e-6)
            assert (padded[:, length:] == 0).all()


@every_method
@settings(deadline=None, max_examples=30)
@shapes
def test_batch_order_changes_nothing(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    for shuffled, found in zip(credit(method, mapped(inputs, lambda x: x[order])), credit(method, inputs), strict=True):
        if found is not None:
            torch.testing.assert_close(shuffled, found[order], rtol=1e-6, atol=1e-7)


@every_method
def test_deterministic(method):
    inputs = make_inputs(method, 0, 4, 33)
    for first, second in zip(credit(method, inputs), credit(method, inputs), strict=True):
        assert first is second is None or torch.equal(first, second)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype(method, dtype):
    inputs = make_inputs(method, 0, 4, 33, dtype)
    weights, advantages = credit(method, inputs)
    wide = credit(method, mapped(inputs, lambda x: x.double() if x.is_floating_point() else x))
    if weights is None:  # the loss's dtype
        assert advantages.dtype == dtype
        resolution = torch.finfo(dtype).resolution
        torch.testing.assert_close(advantages.double(), wide[1].double(), rtol=4 * resolution, atol=4 * resolution)
        return
    wide_inputs = method.signals() or method.rollout_needs or method.needs_old_policy
    assert weights.dtype == (torch.float64 if dtype == torch.float64 and wide_inputs else torch.float32)
    torch.testing.assert_close(weights.double(), wide[0].double(), rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_signals(method, value):
    """Neutral credit for the completion: the sequence's advantage on each token; no other completion changes."""
    inputs = make_inputs(method, 5, 5, 21)
    row = int(inputs.mask.sum(-1).argmax())
    place = int(inputs.mask[row].nonzero()[0])
    clean = credit(method, inputs)
    inputs = mapped(inputs, torch.clone)
    bad = (*inputs.signals.values(), *inputs.rollout.values())
    for values in bad:
        values[row, place] = value
    weights, advantages = credit(method, inputs)
    assert int(inputs.nonfinite.sum()) == (1 if bad else 0)
    others = [i for i in range(5) if i != row]
    if method.reads_batch:  # the credit of the other completions is what it is without this one
        alone = credit(method, mapped(inputs, lambda x: x[others]))
    else:
        alone = (None if clean[0] is None else clean[0][others], clean[1][others])
    assert torch.equal(advantages[others], alone[1])
    if bad:
        assert torch.equal(advantages[row], inputs.mask[row] * inputs.advantages[row])
    if weights is not None:
        assert torch.equal(weights[others], alone[0])
        if bad:
            assert torch.equal(weights[row], inputs.mask[row].float())
    for name, values in method.metrics(inputs).items():
        assert values.shape == inputs.mask.shape, name


@every_method
def test_token_advantages(method):
    inputs = make_inputs(method, 1, 4, 9)
    weights, found = credit(method, inputs)
    expected = inputs.advantages.unsqueeze(1).expand_as(inputs.mask)
    if method.own_advantages:
        assert (found - torch.where(inputs.mask, expected, 0.0)).abs().max() > 1e-3
        return
    if weights is not None and not method.shapes_ratio:  # then weights enter through the ratio
        expected = expected * weights
    if method.has_term:
        expected = expected + method.term(inputs)
        assert (method.term(inputs)[~inputs.mask] == 0).all()
    torch.testing.assert_close(found, torch.where(inputs.mask, expected, 0.0))


@every_method
def test_the_gradient_at_ratio_1_is_the_weighted_policy_gradient(method):
    """Whatever way the credit enters: -A_t d(logp)."""
    inputs = make_inputs(method, 3, 4, 9)
    weights, advantages = credit(method, inputs)
    logps = inputs.policy_logps.clone().requires_grad_()
    shaped = method.ratio_logps(logps, logps.detach(), weights) if method.shapes_ratio else logps
    result = method.token_advantages(inputs.advantages, weights, inputs)
    result = result.unsqueeze(1) if result.dim() == 1 else result
    (-torch.exp(shaped - shaped.detach()) * result)[inputs.mask].sum().backward()
    expected = inputs.advantages.unsqueeze(1) * weights if method.shapes_ratio else advantages
    torch.testing.assert_close(logps.grad, -expected * inputs.mask)


@every_method
def test_completions_without_an_advantage_may_be_left_out_where_the_method_says_so(method):
    """What `skip_zero_advantage` and the signals' forwards rely on. A method with advantages of its own names the
    completions itself, at rollout time."""
    if method.credits_zero_advantage or method.reads_batch:
        return
    inputs = make_inputs(method, 2, 5, 11)
    inputs = dataclasses.replace(inputs, advantages=torch.tensor([0.0, 1.0, 0.0, -1.0, 0.5]))
    result = credit(method, inputs)[1]
    kept = inputs.advantages != 0
    if method.own_advantages:
        kept = method.rows_with_credit(make_rollout(2, inputs.mask))
    torch.testing.assert_close(credit(method, mapped(inputs, lambda x: x[kept]))[1], result[kept])
    torch.testing.assert_close(result[~kept], torch.zeros_like(result[~kept]))


READERS = {name: method for name, method in EVERY.items() if method.rollout_needs} | {
    "mix-otb": build_credit(["otb", "random"]),
    "mix-delta": build_credit(["delta", "gcpo"]),
    "shuffled-delta": build_credit({"method": "shuffled", "of": "delta"}),
}


@pytest.mark.parametrize("method", list(READERS.values()), ids=list(READERS))
@settings(deadline=None, max_examples=30)
@shapes
def test_the_rollout_stage_reads_the_policy_of_the_rows_that_it_names(method, seed, batch, length):
    """The others may have anything there: they are not computed."""
    mask = make_inputs(method, seed, batch, length).mask
    rollout = make_rollout(seed, mask, requests=method.continuations())
    rollout.advantages[seed % batch] = 0
    bare = dataclasses.replace(rollout, logps=None, sum_squared_probs=None, hidden_states=None)
    rows = method.rollout_rows(bare)
    filled = bare.filled(logps=rollout.logps, sum_squared_probs=rollout.sum_squared_probs)
    assert filled.all_rewards is bare.all_rewards  # gathered once
    expected = method.rollout_stage(rollout)
    for value in (0.0, torch.nan):
        changed = {name: getattr(rollout, name).clone() for name in ("logps", "sum_squared_probs", "hidden_states")}
        for tensor in changed.values():
            tensor[~(rows & mask.any(-1))] = value
        for name, found in method.rollout_stage(bare.filled(**changed)).items():
            torch.testing.assert_close(found, expected[name], rtol=0, atol=0, equal_nan=True)


@every_method
def test_what_a_method_is_goes_with_what_it_has(method):
    """One kind, stated by its class attributes."""
    kinds = [method.reweights or method.shapes_ratio, method.has_term, method.own_advantages]
    if not isinstance(method, Mix) and method.name not in ("uniform", "pcpo"):
        assert sum(kinds) == 1
        assert method.credits_tokens
    weights = method.weights(make_inputs(method, 0, 4, 9))
    assert (weights is not None) or not method.reweights


def test_a_method_with_token_advantages_of_its_own_credits_every_completion():
    class Additive(type(EVERY["dgpo"])):
        def token_advantages(self, advantages, weights, inputs):
            return advantages.unsqueeze(1) + weights

    assert Additive().credits_zero_advantage
    credit_all = {name for name, method in EVERY.items() if method.credits_zero_advantage}
    assert credit_all == {name for name, method in EVERY.items() if method.has_term and not method.reads_sign}


@every_method
def test_round_trip(method):
    assert build_credit(method.to_dict()) == method
    if method.name not in REQUIRED and not isinstance(method, Mix):
        assert build_credit(method.name) == type(method)()


@every_method
def test_documentation(method):
    if isinstance(method, Mix):  # the papers are its parts'
        return
    if isinstance(method, (Certainty, Shuffled)):  # ours
        assert not method.paper.id
        assert not method.paper.citation
    else:
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
        result = credit_metrics(method, part, None if weights is None else weights[rows], unscored, gathering.gather)
    # Of tokens that may not be there
    nan_ok = isinstance(method, Certainty)
    assert result == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=nan_ok)
    assert expected["credit/nonfinite_tokens"] == 3
    mask = inputs.mask
    if weights is None or method.has_term:
        changed = (credit(method, inputs)[1] - inputs.advantages.unsqueeze(1))[mask]
        assert expected["credit/advantage_change"] == pytest.approx(changed.abs().double().mean().item(), rel=1e-6)
    if weights is None:
        return
    rows = [row[on].double() for row, on in zip(weights, mask, strict=True) if on.any()]
    spread = torch.cat([row - (1 if method.mean_one else row.mean()) for row in rows])
    assert expected["credit/weight_std"] == pytest.approx(spread.square().mean().sqrt().item(), rel=1e-6)
    if not method.mean_one:
        assert expected["credit/weight_mean"] == pytest.approx(torch.cat(rows).mean().item(), rel=1e-6)
    assert expected["credit/weight_max"] == pytest.approx(torch.cat(rows).max().item())


def test_shapes_and_dtypes_are_checked_in_the_tests():
    """By conftest.py, in every call of the methods' functions."""
    weights, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for wrong in ((weights[0], mask), (weights, mask[:, :2]), (weights.long(), mask), (weights, mask.float())):
        with pytest.raises(TypeCheckError):
            mean_one(*wrong)
