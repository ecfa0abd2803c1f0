"""The samplers' steps: the papers' formulas in float64, diffusers' own steps, and numbers that others have published."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from trl_credit.samplers.schedule import (
    ddim_schedule,
    drawn_steps,
    flow_schedule,
    schedule_builder,
    step_kl,
    step_log_prob,
    step_mean,
    steps_to_train,
)


def ddim(steps=50, **kwargs):
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = DDIMScheduler(**(settings | {"steps_offset": 1, "set_alpha_to_one": False} | kwargs))
    scheduler.set_timesteps(steps)
    return scheduler


def flow(steps=10, even=True, **kwargs):
    scheduler = FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | kwargs))
    scheduler.set_timesteps(
        **({"sigmas": np.linspace(1, 0, steps + 1)[:-1]} if even else {"num_inference_steps": steps})
    )
    return scheduler


def test_published_numbers():
    """Stable Diffusion 1.5 with 50 steps; the paper's zeta for DanceGRPO; the authors' constant; diffusers' own schedule."""
    weights = ddim_schedule(ddim(), 1.0).native
    assert (weights.mean().item(), weights.max().item()) == pytest.approx((0.516900, 3.2748), rel=1e-5)
    assert (weights.mean() / weights).mean().item() == pytest.approx(1.16, rel=1e-3)
    assert flow_schedule(flow(16), 0.3, "dance_grpo").native.sum().item() == pytest.approx(13.3432, rel=1e-5)
    weights = flow_schedule(flow(), 0.7).native
    assert weights[1] + weights[1:].sum() == pytest.approx(4.3152134639895925, rel=1e-6)
    weights = flow_schedule(flow(even=False), 0.7).native
    assert weights.sum().item() == pytest.approx(5.705, rel=1e-3)
    assert weights[:-1].sum().item() == pytest.approx(3.935, rel=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("last", [{"set_alpha_to_one": True}, {"set_alpha_to_one": False}])
def test_ddim_steps_are_diffusers_own(prediction_type, eta, last):
    scheduler = ddim(7, prediction_type=prediction_type, **last)
    schedule = ddim_schedule(scheduler, eta)
    generator = torch.Generator().manual_seed(0)
    for i, time in enumerate(scheduler.timesteps):
        x, f, noise = (torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
        theirs = scheduler.step(f, time, x, eta=eta, variance_noise=noise)
        rows = [values[i].expand(2) for values in (schedule.scale, schedule.gain)]
        ours = step_mean(f, x, *rows) + schedule.std[i] * noise
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-5, atol=1e-5)
        clean = schedule.clean_scale[i] * x + schedule.clean_gain[i] * f
        torch.testing.assert_close(clean, theirs.pred_original_sample, rtol=1e-5, atol=1e-5)
    assert (schedule.std[-1] == 0) == last["set_alpha_to_one"]


def oracle_flow_mean(x, v, t, following, eta, sde, first):
    """Flow-GRPO's equation 9, or DanceGRPO's: the reverse SDE with noise sigma, one number at a time."""
    sigma = eta * math.sqrt(t / (1 - (first if t == 1 else t))) if sde == "flow_grpo" else eta
    drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
    return x + drift * (following - t), sigma * math.sqrt(t - following)


@pytest.mark.parametrize("sde", ["flow_grpo", "dance_grpo"])
@pytest.mark.parametrize("even", [True, False])
def test_flow_steps_are_the_papers(sde, even):
    scheduler = flow(9, even)
    schedule = flow_schedule(scheduler, 0.6, sde)
    times = scheduler.sigmas.tolist()
    for i in range(9):
        mean, std = oracle_flow_mean(0.37, -1.4, times[i], times[i + 1], 0.6, sde, times[1])
        assert (schedule.scale[i] * 0.37 + schedule.gain[i] * -1.4).item() == pytest.approx(mean, abs=1e-12)
        assert schedule.std[i].item() == pytest.approx(std, abs=1e-12)
        assert (schedule.clean_scale[i] * 0.37 + schedule.clean_gain[i] * -1.4).item() == pytest.approx(
            0.37 + 1.4 * times[i]
        )
        weight = math.sqrt(times[i] - times[i + 1]) / (std / math.sqrt(times[i] - times[i + 1]))
        sigma = std / math.sqrt(times[i] - times[i + 1])
        assert schedule.native[i].item() == pytest.approx(weight * (1 + (1 - times[i]) * sigma**2 / (2 * times[i])))


@pytest.mark.parametrize("shift", [1.18, 1.32, 1.57, 1.91, 2.61])
def test_a_first_time_that_rounding_moves_is_one(shift):
    """diffusers computes sigmas in float32: shift / (1 + (shift - 1)) is not always 1."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[0] != 1
    found = flow_schedule(scheduler, 0.7)
    time, following = 1.0, float(scheduler.sigmas[1])
    expected = 0.7 * (time / (1 - following)) ** 0.5 * (time - following) ** 0.5
    assert found.std[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", [ddim_schedule(ddim(6), 1.0), flow_schedule(flow(6), 0.7)], ids=["ddim", "flow"])
def test_the_log_ratio_is_the_papers(schedule):
    """log rho_i = -[w mean(D eps) + w^2 / 2 mean(D^2)], from log-probs that know nothing of w."""
    generator = torch.Generator().manual_seed(1)

    def normal():
        return torch.randn(6, 3, 5, generator=generator, dtype=torch.float64)

    x, old, noise = normal(), normal(), normal()
    new = old + 0.1 * normal()
    steps = schedule.scale, schedule.gain, schedule.std
    following = step_mean(old, x, *steps[:2]) + schedule.std.view(-1, 1, 1) * noise
    ratio = step_log_prob(new, x, following, *steps) - step_log_prob(old, x, following, *steps)
    difference, w = new - old, schedule.native
    expected = -(w * (difference * noise).mean((1, 2)) + w**2 / 2 * (difference**2).mean((1, 2)))
    torch.testing.assert_close(ratio, expected, rtol=1e-9, atol=1e-12)
    # the KL divergence of two Gaussians, one dimension at a time
    both = [torch.distributions.Normal(step_mean(f, x, *steps[:2]), schedule.std.view(-1, 1, 1)) for f in (new, old)]
    kl = torch.distributions.kl_divergence(*both).mean((1, 2))
    torch.testing.assert_close(step_kl(new, old, schedule.gain, schedule.std), kl)


def test_shares_sum_to_one_and_follow_their_quantity():
    schedule = flow_schedule(flow(5), 0.7)
    shares = schedule.shares()
    assert all(share.sum().item() == pytest.approx(1) for share in shares.values())
    torch.testing.assert_close(shares["interval"], schedule.interval / schedule.interval.sum())
    torch.testing.assert_close(shares["count"], torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddim_schedule(ddim(), 0.0), "`eta` must be above 0"),
        (lambda: flow_schedule(flow(), -1.0), "`eta` must be above 0"),
        (lambda: ddim_schedule(ddim(clip_sample=True), 1.0), "`clip_sample`"),
        (lambda: ddim_schedule(ddim(thresholding=True), 1.0), "`thresholding`"),
        (lambda: ddim_schedule(ddim(20, timestep_spacing="trailing"), 1.2), "Set it to at most 1"),
        (
            lambda: ddim_schedule(ddim(timestep_spacing="trailing", rescale_betas_zero_snr=True), 1.0),
            "starts from pure noise",
        ),
        (lambda: flow_schedule(flow(), 0.7, "ode"), "`sde` must be one of flow_grpo, dance_grpo"),
        (lambda: flow_schedule(flow(invert_sigmas=True), 0.7), "must fall"),
        (lambda: schedule_builder(ddim(), None, "flow_grpo"), "has no effect with DDIMScheduler"),
        (lambda: schedule_builder(object(), None, None), "no stochastic step"),
    ],
)
def test_what_has_no_step_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [(":-1", [0, 1, 2, 3]), (":", [0, 1, 2, 3, 4]), ("1:3", [1, 2]), ("::2", [0, 2, 4]), ("3", [3]), ("-1, 0", [0, 4])],
)
def test_steps_to_train(steps, chosen):
    assert steps_to_train(steps, 5) == chosen


@pytest.mark.parametrize("steps", ["", "a", "1:b", "::0", "1,,2", "5", "-6", "4:2", "1:2:3:4"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match="`train_steps`"):
        steps_to_train(steps, 5)


def test_drawn_steps_are_drawn_equally_often():
    drawn = drawn_steps([0, 1, 3, 4], 2, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 2)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    counts = drawn.flatten().bincount(minlength=5).double() / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.5, 0, 0.5, 0.5], dtype=torch.float64), atol=0.03, rtol=0)
