"""The steps of a stochastic sampler: Gaussians whose means are linear in the denoiser's prediction.

    next_i = a_i x_i + b_i f(x_i, t_i) + s_i eps_i
    w_i    = -b_i / s_i                                            the step's native weight
    log rho_i = -[w_i mean(D eps) + w_i^2 / 2 mean(D^2)]           D = f_new - f_old, means over dimensions

DDIM and DDPM (arXiv 2010.02502) and the flow-matching SDEs of Flow-GRPO (2505.05470) and DanceGRPO (2505.07818) all have
this form, so everything after the coefficients is shared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


# Default of `eta`
DDIM_ETA, FLOW_ETA = 1.0, 0.7
FLOW_SDES = ("flow_grpo", "dance_grpo")


@dataclass(frozen=True)
class StepSchedule:
    """Coefficients of a sampler's N steps, in the order of sampling. All are (N,) float64.

    Args:
        scale: a_i, the factor of the latents in the mean of the next ones.
        gain: b_i, the factor of the prediction.
        std: s_i, the standard deviation; 0 for a deterministic step, which has no log-prob.
        interval: Length of the step in the sampler's own time: dt_i for flow matching, 1 for DDIM.
        clean_scale: Factor of the latents in the estimate of the clean image.
        clean_gain: Factor of the prediction in that estimate.
    """

    scale: Float[Tensor, " steps"]
    gain: Float[Tensor, " steps"]
    std: Float[Tensor, " steps"]
    interval: Float[Tensor, " steps"]
    clean_scale: Float[Tensor, " steps"]
    clean_gain: Float[Tensor, " steps"]

    def __len__(self) -> int:
        return len(self.std)

    @property
    def native(self) -> Float[Tensor, " steps"]:
        """(N,) w_i = -b_i / s_i, by which a step's log-ratio responds to the prediction; 0 for deterministic steps."""
        return torch.where(self.std > 0, -self.gain / torch.where(self.std > 0, self.std, 1.0), 0.0)

    def shares(self) -> dict[str, Float[Tensor, " steps"]]:
        """(N,) quantities of each step as shares of their sum over all steps: `native`, `interval`, `noise` (s_i) and
        `count` (1 / N)."""
        values = {
            "native": self.native,
            "interval": self.interval,
            "noise": self.std,
            "count": torch.ones_like(self.std),
        }
        return {name: value / value.sum() for name, value in values.items()}


def over_rows(values: Float[Tensor, " rows"], like: Float[Tensor, "rows ..."]) -> Tensor:
    """(R,) values in the shape that broadcasts over (R, ...)."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


def step_mean(
    prediction: Float[Tensor, "rows ..."],
    latents: Float[Tensor, "rows ..."],
    scale: Float[Tensor, " rows"],
    gain: Float[Tensor, " rows"],
) -> Float[Tensor, "rows ..."]:
    """(R, ...) mean of the next latents."""
    return over_rows(scale, latents) * latents + over_rows(gain, latents) * prediction


def step_log_prob(
    prediction: Float[Tensor, "rows ..."],
    latents: Float[Tensor, "rows ..."],
    following: Float[Tensor, "rows ..."],
    scale: Float[Tensor, " rows"],
    gain: Float[Tensor, " rows"],
    std: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """(R,) log-probs of the next latents in nats, means over dimensions, without the terms that do not depend on the
    prediction.

    Leaving those out keeps the values near -1/2, where float32 resolves the small ratios of image models.
    """
    noise = (following - step_mean(prediction, latents, scale, gain)) / over_rows(std, latents)
    return -noise.flatten(1).square().mean(1) / 2


def step_kl(
    prediction: Float[Tensor, "rows ..."],
    reference: Float[Tensor, "rows ..."],
    gain: Float[Tensor, " rows"],
    std: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """(R,) KL(policy || reference) of the steps in nats, means over dimensions: (b / s)^2 / 2 mean((f - f_ref)^2)."""
    return (gain / std).square().to(prediction) * (prediction - reference).flatten(1).square().mean(1) / 2


def ddim_schedule(scheduler: Any, eta: float) -> StepSchedule:
    """The steps of a `DDIMScheduler` whose timesteps are set. `eta=1` is DDPM's variance.

    Raises:
        ValueError: `eta` is 0, or the scheduler clips its estimate of the clean image, which makes steps nonlinear.
    """
    if eta <= 0:
        raise ValueError(f"`eta` must be above 0, got {eta}: a deterministic sampler has no log-probs.")
    _check_config(scheduler)
    config = scheduler.config
    times = scheduler.timesteps.long().cpu()
    before = times - config.num_train_timesteps // scheduler.num_inference_steps
    cumulative = scheduler.alphas_cumprod.cpu().double()
    now = cumulative[times]
    then = torch.where(before >= 0, cumulative[before.clamp(min=0)], float(scheduler.final_alpha_cumprod))
    std = eta * ((1 - then) / (1 - now) * (1 - now / then)).clamp(min=0).sqrt()
    # The estimates of the clean image and of the noise, as (factor of the latents, factor of the prediction)
    signal, noise, zero, one = now.sqrt(), (1 - now).sqrt(), torch.zeros_like(now), torch.ones_like(now)
    kinds = {
        "epsilon": ((1 / signal, -noise / signal), (zero, one)),
        "v_prediction": ((signal, -noise), (noise, signal)),
        "sample": ((zero, one), (1 / noise, -signal / noise)),
    }
    clean, estimate = kinds[config.prediction_type]
    if (std.square() > (1 - then) * (1 + 1e-6)).any():  # at eta 1 it may exceed that by rounding
        noisy = std > 0
        most = math.floor(1e3 * eta * ((1 - then[noisy]).sqrt() / std[noisy]).min().item()) / 1e3
        raise ValueError(
            f"`eta` ({eta:g}) adds more noise than a step's result may have. Set it to at most {most:g} for these steps; "
            "1 is DDPM's noise."
        )
    direction = (1 - then - std.square()).clamp(min=0).sqrt()
    scale, gain = (then.sqrt() * c + direction * e for c, e in zip(clean, estimate, strict=True))
    if not (scale.isfinite() & gain.isfinite()).all():
        raise ValueError(
            f"a step starts from pure noise, of which a prediction of {config.prediction_type!r} says nothing. Load the "
            "pipeline with `rescale_betas_zero_snr` false, or with another `timestep_spacing`."
        )
    return StepSchedule(scale, gain, std, torch.ones_like(std), *clean)


def flow_schedule(scheduler: Any, eta: float, sde: str = "flow_grpo") -> StepSchedule:
    """The SDE steps of a `FlowMatchEulerDiscreteScheduler` whose timesteps are set.

    Args:
        scheduler: The scheduler; its `sigmas` are the times t_i.
        eta: Noise level.
        sde: `"flow_grpo"`: sigma_i = eta sqrt(t_i / (1 - t_i)), where t_i = 1 takes the next time. `"dance_grpo"`:
            sigma_i = eta.

    Raises:
        ValueError: `eta` is 0, an unknown `sde`, or a scheduler whose times do not fall from at most 1 to 0.
    """
    if eta <= 0:
        raise ValueError(f"`eta` must be above 0, got {eta}: a deterministic sampler has no log-probs.")
    if sde not in FLOW_SDES:
        raise ValueError(f"`sde` must be one of {', '.join(FLOW_SDES)}, got {sde!r}.")
    times = scheduler.sigmas.cpu().double()
    times = torch.where((times - 1).abs() < 1e-6, 1.0, times)  # diffusers computes them in float32
    _check_config(scheduler)
    if times[0] > 1 or (times.diff() >= 0).any() or times[-1] < 0:
        raise ValueError("the scheduler's `sigmas` must fall from at most 1 to 0.")
    time, interval = times[:-1], -times.diff()
    if sde == "flow_grpo":
        inside = torch.where(time == 1, times[1], time)
        sigma = eta * (time / (1 - inside)).sqrt()
    else:
        sigma = torch.full_like(time, eta)
    half = sigma.square() / (2 * time)
    return StepSchedule(
        scale=1 - half * interval,
        gain=-(1 + half * (1 - time)) * interval,
        std=sigma * interval.sqrt(),
        interval=interval,
        clean_scale=torch.ones_like(time),
        clean_gain=-time,
    )


def _check_config(scheduler: Any) -> None:
    """Raises `ValueError` for settings of a scheduler with which its steps are not the known ones."""
    config = scheduler.config
    for name in ("clip_sample", "thresholding"):
        if config.get(name):
            raise ValueError(
                f"the scheduler's `{name}` cuts the estimate of the clean image, so a step is not Gaussian in the "
                f"prediction. Load the pipeline with a scheduler whose `{name}` is false."
            )
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"the scheduler's `prediction_type` is {config.prediction_type!r}; it must be epsilon, v_prediction or sample."
        )
    if config.get("invert_sigmas"):
        raise ValueError(
            "the scheduler's `invert_sigmas` turns time around: its `sigmas` must fall from at most 1 to 0."
        )


def schedule_builder(scheduler: Any, eta: float | None, sde: str | None) -> Callable[[], StepSchedule]:
    """A function that reads the steps from a diffusers scheduler once its timesteps are set.

    Raises:
        ValueError: The scheduler has no stochastic step that is known here, or `sde` has no effect.
    """
    name = type(scheduler).__name__
    if name == "DDIMScheduler" or name.startswith("FlowMatchEuler"):
        _check_config(scheduler)
    if name.startswith("FlowMatchEuler"):
        return lambda: flow_schedule(scheduler, FLOW_ETA if eta is None else eta, sde or FLOW_SDES[0])
    if name == "DDIMScheduler":
        if sde is not None:
            raise ValueError(f"`sde` ({sde!r}) has no effect with {name}: it is for flow-matching models. Remove it.")
        return lambda: ddim_schedule(scheduler, DDIM_ETA if eta is None else eta)
    raise ValueError(
        f"the pipeline's {name} has no stochastic step that is known here. Load the pipeline with a DDIMScheduler or a "
        "FlowMatchEulerDiscreteScheduler."
    )


def steps_to_train(steps: str, count: int) -> list[int]:
    """Indices of the steps to train, in order.

    Args:
        steps: A slice as in Python (`":-1"` leaves the last step out, `":"` takes all), or indices (`"0, 2, -1"`).
        count: Number of the sampler's steps.

    Raises:
        ValueError: Neither of the two, an index out of range, or no step left.
    """
    if not isinstance(steps, str):
        raise ValueError(f"`train_steps` must be text, such as ':-1', '2:8' or '0, 2, 4', got {steps!r}.")
    sliced = ":" in steps
    try:
        numbers = [int(part) if part.strip() or not sliced else None for part in steps.split(":" if sliced else ",")]
        chosen = list(range(count))[slice(*numbers)] if sliced else numbers
    except (ValueError, TypeError):
        raise ValueError(
            f"`train_steps` must be a slice such as ':-1' or '2:8', or steps such as '0, 2, 4', got {steps!r}."
        ) from None
    for step in chosen:
        if not -count <= step < count:
            raise ValueError(
                f"`train_steps` ({steps!r}): there is no step {step}: those of `num_inference_steps` ({count}) are numbered "
                f"from 0 to {count - 1}."
            )
    if not chosen:
        raise ValueError(f"`train_steps` ({steps!r}) leaves none of `num_inference_steps` ({count}) steps to train.")
    return sorted({step % count for step in chosen})


def drawn_steps(
    steps: list[int], count: int, rows: int, generator: torch.Generator | None = None
) -> Int[Tensor, "rows count"]:
    """(R, K) random subsets of K steps for each row, in order. Each step is drawn equally often, so that a mean over the
    subset is an unbiased estimate of the mean over all."""
    order = torch.rand(rows, len(steps), generator=generator).argsort(-1)[:, :count].sort(-1).values
    return torch.as_tensor(steps)[order]
