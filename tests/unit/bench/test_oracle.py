"""The yardstick: what bookkeeping says of a completion, and what the forms make of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit import CreditInputs, build_credit
from trl_credit.bench.oracle import DecidingTokens, Oracle, TrueAdvantages, checked, token_values, true_values


PATH = "trl_credit.bench.oracle.Oracle"


@pytest.mark.parametrize(
    ("prompt", "text", "finished", "mistake", "rest", "deciding"),
    [
        ("12+34+5=", "12+34=46;46+5=51;#51", True, None, "", "......xx......xx....-"),
        ("12+34+5=", "12+34=47;47+5=52;#52", True, 7, "6;46+5=51;#51", ".......x............-"),
        ("12+34+5=", "12+34=46;46+5=51;#5", True, 19, "1", "...................-x"),
        ("12+34+5=", "12+34=46;46", False, None, "+5=51;#51", "......xx...-"),
        ("12+34+5=", "12+34=46;46+5=51;#51;", True, 20, "", "....................x-"),
        ("Calculate 12 + 34.\n", r"12 + 34 = 46. \boxed{46}", True, None, "", "..........xx............-"),
        ("Calculate 12 + 34.\n", r"12 + 34 = 56. \boxed{56}", True, 10, r"46. \boxed{46}", "..........x.............-"),
        ("Calculate 12 + 34.\n", r"12 + 34 = 46. The", False, 14, r"\boxed{46}", "..............x..-"),
        ("~12+34+5=", "abcdef12+34=46;ab47+5=51;#51", True, 18, "6+5=51;#51", "." * 18 + "x" + "." * 9 + "-"),
    ],
)
def test_checked(prompt, text, finished, mistake, rest, deciding):
    found = checked(prompt, list(text), finished)
    assert (found.mistake, found.rest, found.styled) == (mistake, rest, prompt[0] == "~")
    expected = [mark == "x" for mark in deciding.replace("-x", "x").replace("-", ".")]
    assert found.deciding == expected
    assert len(found.deciding) == len(text) + 1


def test_tokens_of_several_characters():
    found = checked("12+34+5=", ["12+", "34=4", "7;", "47+5=52;#52"], True)
    assert (found.mistake, found.rest) == (2, "6;46+5=51;#51")
    right = checked("12+34+5=", ["12+", "34=4", "6;", "46+5=", "51;#51"], True)
    assert right.deciding == [False, True, True, False, True, False]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 20))
def test_values_are_products(seed, length):
    generator = torch.Generator().manual_seed(seed)
    logps = -2 * torch.rand(length, generator=generator, dtype=torch.float64)
    style = torch.rand(length, generator=generator) < 0.3
    found = true_values(logps, style).tolist()
    for place in range(length + 1):
        product = 1.0
        for logp, free in zip(logps[place:].tolist(), style[place:].tolist(), strict=True):
            product *= 1.0 if free else math.exp(logp)
        assert found[place] == pytest.approx(product, rel=1e-9)
    assert true_values(logps, style, fits=False).tolist() == [0.0] * (length + 1)


@pytest.mark.parametrize("least_variance", [False, True])
def test_token_values_have_the_gradient_of_the_value(least_variance):
    """Over what can be sampled at each place, the expected gradient at the logits is that of the value, and with the least
    variance it is the gradient itself, whatever is sampled."""
    chances = [0.9, 0.6, 0.99, 0.5]
    values = torch.tensor([math.prod(chances[t:]) for t in range(len(chances) + 1)], dtype=torch.float64)
    style = torch.tensor([False] * len(chances))
    right, wrong = token_values(values, style, least_variance)
    for place, chance in enumerate(chances):
        # At the right token's logit against one wrong token: d pi / dz = pi (1 - pi); score 1 - pi, or -pi
        true = chance * (1 - chance) * float(values[place + 1])
        sampled = (1 - chance) * float(right[place]), -chance * float(wrong[place])
        assert chance * sampled[0] + (1 - chance) * sampled[1] == pytest.approx(true)
        if least_variance:
            assert sampled == (pytest.approx(true), pytest.approx(true))
    styled = torch.tensor([False, True, False, False])
    assert float(token_values(values, styled, least_variance)[1][1]) == -float(values[1])
    assert token_values(values, styled, least_variance)[0].tolist() == [
        0.0 if free else value for free, value in zip(styled.tolist(), right.tolist(), strict=True)
    ]


def inputs(signal, values, advantages):
    values = torch.tensor(values)
    mask = torch.ones(values.shape, dtype=torch.bool)
    mask[:, -1] = False
    return CreditInputs(
        mask=mask,
        policy_logps=-torch.ones(values.shape),
        policy_entropy=torch.ones(values.shape),
        vocab_size=9,
        signals={signal: torch.where(mask, values, 0.0)},
        advantages=torch.tensor(advantages),
    )


def credit(form, values, advantages):
    method = build_credit({"method": PATH, "form": form})
    (signal,) = method.signals()
    given_ = inputs(signal, values, advantages)
    weights = method.weights(given_)
    return weights, method.token_advantages(given_.advantages, weights, given_)


def test_forms():
    values = [[0.1, -0.4, 0.3, 9.0], [0.2, -0.5, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0]]
    weights, found = credit("additive", values, [1.0, -2.0, 0.5])
    assert weights is None
    torch.testing.assert_close(found, torch.tensor([[0.1, -0.4, 0.3, 0], [0.2, -0.5, 0, 0], [0.0, 0, 0, 0]]))
    weights, found = credit("reweight", values, [1.0, -2.0, 0.5])
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0, 2.25, 0], [0, 3, 0, 0], [1.0, 1, 1, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0, 2.25, 0], [0, -6, 0, 0], [0.5, 0.5, 0.5, 0]]))
    assert torch.equal(
        credit("least_variance", values, [1.0, -2.0, 0.5])[1], credit("additive", values, [9.0, 9, 9])[1]
    )
    weights, _ = credit("deciding", [[0.0, 1.0, 1.0, 0.0]], [1.0])
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.5, 1.5, 0.0]]))


def test_what_bookkeeping_did_not_foresee_is_neutral():
    values = [[torch.nan] * 4, [0.2, -0.5, 0.1, 0.0]]
    assert credit("additive", values, [1.5, -2.0])[1].tolist()[0] == [1.5, 1.5, 1.5, 0.0]
    assert credit("reweight", values, [1.5, -2.0])[0].tolist()[0] == [1.0, 1.0, 1.0, 0.0]


def test_what_the_forms_are():
    forms = ("additive", "least_variance", "reweight", "deciding")
    assert [Oracle(form).own_advantages for form in forms] == [True, True, False, False]
    assert [Oracle(form).credits_zero_advantage for form in forms] == [True, True, False, False]
    assert Oracle().signals() == Oracle("reweight").signals() == (TrueAdvantages(),)
    assert Oracle("least_variance").signals() == (TrueAdvantages(least_variance=True),)
    assert Oracle("deciding").signals() == (DecidingTokens(),)
    assert build_credit(Oracle("reweight").to_dict()) == Oracle("reweight")
    with pytest.raises(
        ValueError, match="`form` must be one of additive, least_variance, reweight, deciding, got 'best'"
    ):
        Oracle("best")
