"""Records how a diffusers pipeline samples: one call of the pipeline, its denoiser and scheduler replaced."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .schedule import StepSchedule, drawn_steps, step_log_prob, step_mean


if TYPE_CHECKING:
    from .pipelines import PipelineSampler

# Arguments of a denoiser that are the same for every row
_SHARED = ("txt_ids", "img_ids")
# Prefix of a trajectory's entries that hold a denoiser's arguments
CONDITION = "condition/"


class PipelineError(ValueError):
    """A pipeline whose sampling cannot be repeated for the update."""


class Trajectory(dict[str, Tensor]):
    """An image's trajectory. TRL prints dataset rows in warnings, so it shows no numbers."""

    def __repr__(self) -> str:
        return f"<trajectory of {len(self['steps'])} steps>"


class Recorder:
    """Takes the place of a pipeline's denoiser and scheduler during one call."""

    def __init__(self, sampler: PipelineSampler, model: Callable[..., Tensor], rows: int):
        self._sampler = sampler
        self._model = model
        self._rows = rows
        self._calls: list[dict[str, Any]] = []
        self._outputs: list[Tensor] = []
        self._first: list[dict[str, Any]] = []
        self._schedule: StepSchedule | None = None
        # Latents before and after each step
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._times: list[float] = []
        self._log_probs: list[Tensor] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        pipeline, name = self._sampler.pipeline, self._sampler.component
        denoiser, own = getattr(pipeline, name), pipeline.scheduler
        # Around `DiffusionPipeline.__setattr__`, which would write them into the pipeline's config
        vars(pipeline)[name] = _Denoiser(denoiser, self._denoise)
        vars(pipeline)["scheduler"] = _Scheduler(self._sampler.scheduler, self._step)
        try:
            yield
        finally:
            vars(pipeline)[name], vars(pipeline)["scheduler"] = denoiser, own

    @property
    def started(self) -> bool:
        """True once the pipeline has called its denoiser."""
        return bool(self._calls or self._after)

    @property
    def final(self) -> Tensor:
        """(R, ...) latents of the finished images."""
        return self._after[-1]

    def _denoise(self, arguments: dict[str, Any]) -> Tensor:
        self._calls.append(arguments)
        output = self._model(latents_name=self._sampler._latents_name, **arguments)
        self._outputs.append(output)
        return output

    def _step(self, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """The stochastic step, in place of the scheduler's."""
        sampler, latents, index = self._sampler, sample.float(), len(self._times)
        name = type(sampler.pipeline).__name__
        if self._schedule is None:
            self._schedule = sampler._build_schedule()
            if len(self._schedule) != sampler.steps:
                raise PipelineError(
                    f"{name} takes {len(self._schedule)} steps, not `num_inference_steps` ({sampler.steps})."
                )
            self._first = self._calls
            self._read_template(output, latents)
        elif not sampler._checked:
            self._check_unchanged()
        times = sampler.scheduler.timesteps
        if index >= len(times) or not math.isclose(float(timestep), float(times[index]), rel_tol=1e-5, abs_tol=1e-6):
            raise PipelineError(
                f"{name} does not take its scheduler's steps from the first to the last, as image-to-image pipelines do. "
                "Train a text-to-image pipeline."
            )
        # A NaN of the policy is no change of the pipeline's
        if index and not torch.allclose(sample, self._after[-1].to(sample.dtype), rtol=0, atol=0, equal_nan=True):
            raise PipelineError(f"{name} changes the latents between its steps, which the update cannot repeat.")
        self._before.append(latents)
        prediction = sampler._guided(
            [
                part.float()
                for call, outputs in zip(sampler.template["calls"], self._outputs, strict=True)
                for part in outputs.chunk(call["parts"])
            ]
        )
        # In half precision, guidance multiplies the rounding of the two predictions
        tolerance = max(1e-3, 10 * torch.finfo(output.dtype).eps)
        if not sampler._checked and (prediction - output).norm() > tolerance * output.float().norm():
            raise self._unknown_combination()
        schedule = self._schedule
        scale, gain, std = (
            values[index].to(latents).expand(len(latents)) for values in (schedule.scale, schedule.gain, schedule.std)
        )
        mean = step_mean(prediction, latents, scale, gain)
        following = mean + std[0] * torch.randn_like(latents)
        has_noise = bool(schedule.std[index] > 0)
        self._log_probs.append(
            step_log_prob(prediction, latents, following, scale, gain, std)
            if has_noise
            else scale.new_full(scale.shape, torch.nan)
        )
        self._times.append(float(self._calls[0]["timestep"].flatten()[0]))
        self._after.append(following)
        self._calls, self._outputs = [], []
        return following

    def _read_template(self, output: Tensor, sample: Tensor) -> None:
        """Learns from the first step how the pipeline calls its denoiser."""
        sampler, rows = self._sampler, self._rows
        calls = []
        for call in self._calls:
            latents = call[sampler._latents_name]
            parts, rest = divmod(len(latents), rows)
            expected = torch.cat([sample] * parts) if not rest else None
            if (
                rest
                or latents.shape != expected.shape
                or not torch.equal(latents.float(), expected.to(latents.dtype).float())
            ):
                raise PipelineError(
                    f"{type(sampler.pipeline).__name__} changes the latents before it calls its denoiser, so the update "
                    "cannot repeat the call."
                )
            found = {
                "parts": parts,
                "timestep": str(call["timestep"].dtype).removeprefix("torch."),
                "rows": [],
                "shared": [],
                "values": {},
            }
            for name, value in _flat(call):
                if name in (sampler._latents_name, "timestep"):
                    continue
                if isinstance(value, Tensor):
                    shared = name.rpartition(".")[2] in _SHARED or value.dim() == 0 or len(value) != parts * rows
                    found["shared" if shared else "rows"].append(name)
                elif value is None or isinstance(value, (bool, int, float, str)):
                    found["values"][name] = value
                else:
                    raise PipelineError(
                        f"{type(sampler.pipeline).__name__} calls its denoiser with `{name}`, a {type(value).__name__}, "
                        "which the update cannot keep."
                    )
            calls.append(found)
        if sum(call["parts"] for call in calls) > 2:
            raise PipelineError(
                f"{type(sampler.pipeline).__name__} makes {sum(call['parts'] for call in calls)} predictions for each step; "
                "one, or two for classifier-free guidance, are known."
            )
        template = {"calls": calls, "unconditional": 0}
        outputs = [
            part.float()
            for call, value in zip(calls, self._outputs, strict=True)
            for part in value.chunk(call["parts"])
        ]
        if outputs[0].shape != output.shape:
            raise self._unknown_combination()
        if sampler.template is not None:
            template["unconditional"] = sampler.template["unconditional"]
        elif len(outputs) == 2:
            errors = []
            for unconditional in (0, 1):
                base, conditional = outputs[unconditional], outputs[1 - unconditional]
                guided = base + sampler.cfg_scale * (conditional - base)
                errors.append((guided - output.float()).nan_to_num().abs().max().item())  # rows may overflow
            template["unconditional"] = int(errors[1] < errors[0])
        if sampler.template is not None and sampler.template != template:
            raise PipelineError(f"{type(sampler.pipeline).__name__} does not call its denoiser as it did before.")
        sampler.template = template

    def _unknown_combination(self) -> PipelineError:
        return PipelineError(
            f"{type(self._sampler.pipeline).__name__} combines its denoiser's predictions in a way that the update cannot "
            "repeat: only classifier-free guidance with one scale is known (no `guidance_rescale`, no skipped layers, no "
            "learned variance). Change `pipeline_kwargs`, or train another pipeline."
        )

    def _check_unchanged(self) -> None:
        """Only latents and time may change between steps."""
        skipped = (self._sampler._latents_name, "timestep")
        if [list(call) for call in self._first] != [list(call) for call in self._calls]:
            raise PipelineError(
                f"{type(self._sampler.pipeline).__name__} calls its denoiser differently from step to step, which the "
                "update cannot repeat. Change `pipeline_kwargs`."
            )
        for before, now in zip(self._first, self._calls, strict=True):
            for (name, first), (_, value) in zip(_flat(before), _flat(now), strict=True):
                if name in skipped or first is value:
                    continue
                same = torch.equal(first, value) if isinstance(first, Tensor) else first == value
                if not same:
                    raise PipelineError(
                        f"{type(self._sampler.pipeline).__name__} changes its denoiser's `{name}` between steps, which the "
                        "update cannot repeat."
                    )

    def trajectories(self) -> list[dict[str, Tensor]]:
        """Each row's trajectory: K trained steps' latents and the next ones, times, coefficients, shares and log-probs."""
        sampler, schedule, rows = self._sampler, self._schedule, self._rows
        sampler._checked = True
        if len(self._after) != len(schedule):
            raise PipelineError(
                f"{type(sampler.pipeline).__name__} took {len(self._after)} steps, not `num_inference_steps` "
                f"({len(schedule)})."
            )
        without = [step for step in sampler.trained if schedule.std[step] <= 0]
        if without:
            way = f"Leave it out, for example with `train_steps: ':{without[0]}'`."
            raise PipelineError(
                f"`train_steps`: step {without[0]} of {len(schedule)} is deterministic in this schedule: it has no "
                f"log-prob. {way if without[0] else 'Raise `num_inference_steps`.'}"
            )
        device = self._before[0].device
        before, after = torch.stack(self._before, 1), torch.stack(self._after, 1)
        times = torch.tensor(self._times, device=device)
        values = [getattr(schedule, name) for name in ("scale", "gain", "std", "clean_scale", "clean_gain")]
        coefficients = torch.stack(values, -1).float().to(device)
        log_probs = torch.stack(self._log_probs, 1)
        if sampler.drawn is None:
            chosen = torch.tensor(sampler.trained).expand(rows, -1).to(device)
        else:
            chosen = drawn_steps(sampler.trained, sampler.drawn, rows).to(device)
        row = torch.arange(rows, device=device).unsqueeze(1)
        batch = {
            "steps": chosen,
            "latents": before[row, chosen],
            "next": after[row, chosen],
            "timestep": times[chosen],
            "coefficients": coefficients[chosen],
            "log_probs": log_probs[row, chosen],
            **{f"shares/{name}": share.float().to(device)[chosen] for name, share in schedule.shares().items()},
        }
        for number, (call, arguments) in enumerate(zip(sampler.template["calls"], self._first, strict=True)):
            given = dict(_flat(arguments))
            for name in call["rows"]:
                value = given[name]
                batch[f"{CONDITION}{number}/{name}"] = value.unflatten(0, (call["parts"], rows)).transpose(0, 1)
            for name in call["shared"]:
                batch[f"{CONDITION}{number}/{name}"] = given[name].unsqueeze(0).expand(rows, *given[name].shape)
        where = sampler.device or device
        return [Trajectory({name: value[i].to(where, copy=True) for name, value in batch.items()}) for i in range(rows)]


class _Denoiser(nn.Module):
    """A denoiser whose call goes to a function; all else is the denoiser's own. A module, so that a pipeline without
    other models finds its device."""

    def __init__(self, denoiser: nn.Module, call: Callable[[dict[str, Any]], Tensor]):
        super().__init__()
        self._denoiser = denoiser
        self._call = call
        self._names = list(inspect.signature(denoiser.forward).parameters)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_denoiser"), name)

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        output = self._call(dict(zip(self._names, args, strict=False)) | kwargs)
        return SimpleNamespace(sample=output) if return_dict else (output,)


class _Scheduler:
    """A scheduler whose step goes to a function; all else is the scheduler's own."""

    def __init__(self, scheduler: Any, step: Callable[[Tensor, Any, Tensor], Tensor]):
        self._scheduler = scheduler
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        following = self._step(model_output, timestep, sample)
        return SimpleNamespace(prev_sample=following) if return_dict else (following,)


def _flat(arguments: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Arguments with those of nested dictionaries, by dotted name."""
    flat = []
    for name, value in arguments.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return flat


def put(arguments: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for key in path:
        arguments = arguments.setdefault(key, {})
    arguments[last] = value


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, value in flat.items():
        put(arguments, name, value)
    return arguments
