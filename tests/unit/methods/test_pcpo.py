"""PCPO against its formulas in float64, and its three forms against the losses they stand for."""

import itertools
import math

import pytest
import torch
from oracles import pcpo_row

from trl_credit import PCPO, CreditInputs, build_credit
from trl_credit.methods.pcpo import pcpo_weights
from trl_credit.signals.sampler_steps import StepShare


def weights_and_intervals(kind, steps=10, eta=0.7):
    """The native weights and intervals of a sampler, by the paper's formulas."""
    if kind == "ddim":
        betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
        bars = [math.prod(1 - b for b in betas[: i + 1]) for i in range(1000)]
        weights = []
        for i in reversed(range(steps)):
            now = bars[i * (1000 // steps) + 1]
            then = bars[i * (1000 // steps) + 1 - 1000 // steps] if i else bars[0]
            sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
            c1 = math.sqrt(1 - now) / math.sqrt(now / then)
            weights.append((c1 - math.sqrt(1 - then - sigma**2)) / sigma)
        return weights, [1.0] * steps
    even = [1 - i / steps for i in range(steps + 1)]
    times = [3 * t / (1 + 2 * t) for t in even]
    weights = []
    for t, following in itertools.pairwise(times):
        sigma = eta * math.sqrt(t / (1 - (times[1] if t == 1 else t)))
        weights.append(math.sqrt(t - following) / sigma * (1 + (1 - t) * sigma**2 / (2 * t)))
    return weights, [t - following for t, following in itertools.pairwise(times)]


def shares(values):
    return torch.tensor([[value / sum(values) for value in values]], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["ddim", "flow"])
@pytest.mark.parametrize("target", ["interval", "count"])
def test_weights_are_the_papers(kind, target):
    native, interval = weights_and_intervals(kind)
    target_values = interval if target == "interval" else [1.0] * len(interval)
    ours = pcpo_weights(shares(native), shares(target_values), torch.ones(1, 10, dtype=torch.bool))
    torch.testing.assert_close(ours[0].tolist(), pcpo_row(native, interval, target), rtol=1e-12, atol=0)
    # credit is moved, not added
    assert sum(c * w for c, w in zip(ours[0].tolist(), native, strict=True)) == pytest.approx(sum(native))


def test_for_flow_grpos_sde_it_is_tempflow_grpos_weighting_up_to_a_constant():
    native, interval = weights_and_intervals("flow")
    ours = pcpo_row(native, interval, "interval")
    even = [1 - i / 10 for i in range(11)]
    times = [3 * t / (1 + 2 * t) for t in even]
    noise = [0.7 * math.sqrt(t / (1 - t)) * math.sqrt(t - f) for t, f in itertools.pairwise(times[1:])]
    ratios = [c / n for c, n in zip(ours[1:], noise, strict=True)]
    assert max(ratios) - min(ratios) < 1e-9
    first = 0.7 * math.sqrt(times[0] / (1 - times[1])) * math.sqrt(interval[0])
    assert abs(ours[0] / first - ratios[0]) > 0.1  # t = 1 is the exception


def test_inputs_without_finite_shares_are_uniform():
    native, target = torch.full((3, 4), 0.25), torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(3, -1).clone()
    native[0, 1], native[1, 2] = 0.0, math.nan
    mask = torch.tensor([[True, True, True, False]] * 3)
    weights = pcpo_weights(native, target, mask)
    assert weights[0].tolist() == weights[1].tolist() == [1, 1, 1, 0]
    torch.testing.assert_close(weights[2], torch.tensor([0.4, 0.8, 1.2, 0.0]))


def hinge_gradient(logp, old, c, advantage, clip):
    """The paper's max(0, xi |A| - A c log rho): its derivative with respect to logp, by cases."""
    inside = clip * abs(advantage) - advantage * c * (logp - old) > 0
    return -advantage * c if inside else 0.0


def ratio_gradient(logp, old, c, advantage, clip):
    """The authors' clipped exp(c (logp - old)), its derivative by cases."""
    ratio = math.exp(c * (logp - old))
    clipped = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
    return 0.0 if clipped else -advantage * c * ratio


@pytest.mark.parametrize(("form", "oracle"), [("hinge", hinge_gradient), ("ratio", ratio_gradient)])
@pytest.mark.parametrize("advantage", [1.7, -0.8])
def test_the_clipped_loss_has_the_forms_gradient(form, oracle, advantage):
    method = PCPO(form=form)
    old = torch.linspace(-0.6, -0.4, 41, dtype=torch.float64)
    logps = (
        old + torch.linspace(-1.5, 1.5, 41, dtype=torch.float64)
    ).requires_grad_()  # beyond where 1 + c log rho < 0
    c = torch.linspace(0.3, 3.0, 41, dtype=torch.float64)
    shaped = method.ratio_logps(logps.unsqueeze(0), old.unsqueeze(0), c.unsqueeze(0))
    ratio = torch.exp(shaped - old)  # TRL's loss
    loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
    loss.backward()
    expected = [
        oracle(*values, advantage, 0.2) for values in zip(logps.tolist(), old.tolist(), c.tolist(), strict=True)
    ]
    assert 0 < sum(value == 0 for value in expected) < 41
    torch.testing.assert_close(logps.grad.tolist(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["hinge", "ratio", "advantage"])
def test_on_policy_all_forms_have_one_gradient(form):
    method = PCPO(form=form)
    inputs = CreditInputs(
        mask=torch.ones(2, 3, dtype=torch.bool),
        policy_logps=torch.full((2, 3), -0.5),
        policy_entropy=torch.zeros(2, 3),
        vocab_size=None,
        signals={
            StepShare("native"): torch.tensor([[0.2, 0.3, 0.5]] * 2),
            StepShare("interval"): torch.full((2, 3), 1 / 3),
        },
    )
    weights, advantages = method.weights(inputs), torch.tensor([1.5, -1.0])
    logps = inputs.policy_logps.clone().requires_grad_()
    shaped = method.ratio_logps(logps, logps.detach(), weights) if method.shapes_ratio else logps
    credit = method.token_advantages(advantages, weights, inputs)
    credit = credit.unsqueeze(1) if credit.dim() == 1 else credit
    torch.testing.assert_close(shaped.detach(), logps.detach())
    (-torch.exp(shaped - shaped.detach()) * credit).sum().backward()
    torch.testing.assert_close(logps.grad, -advantages.unsqueeze(1) * torch.tensor([[5 / 3, 10 / 9, 2 / 3]]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"form": "clip"}, "`form` must be one of hinge, ratio, advantage"),
        ({"target": "dt"}, "`target` must be one of"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        build_credit({"method": "pcpo", **parameters})
