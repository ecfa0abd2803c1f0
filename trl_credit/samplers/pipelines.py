"""Samples with a diffusers pipeline and repeats its denoiser calls for the update.

The pipeline samples as it always does. While it runs, its denoiser and its scheduler are replaced by two small objects:
one records each call's arguments and runs the policy, the other takes the stochastic step and keeps what its log-prob
needs. The update then makes the same calls with the policy as it is now. So whatever a pipeline puts into a call (text
embeddings, sizes, positions, guidance) is right by construction, and a pipeline that cannot be repeated is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from .._util.text import nearest
from .schedule import StepSchedule, drawn_steps, schedule_builder, step_log_prob, step_mean


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

logger = get_logger(__name__)

# Arguments of a denoiser that are the same for every row
_SHARED = ("txt_ids", "img_ids")
_CONDITION = "condition/"
# Columns of a trajectory's `coefficients`
SCALE, GAIN, STD, CLEAN_SCALE, CLEAN_GAIN = range(5)


class PipelineError(ValueError):
    """A pipeline whose sampling cannot be repeated for the update."""


def load_pipeline(model: str, dtype: torch.dtype | None = None, **kwargs: Any) -> DiffusionPipeline:
    """Loads a diffusers pipeline by path or hub id, or the embedded one (`trl_credit:digits`).

    Raises:
        ValueError: diffusers is not installed, or there is no such pipeline.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("Image models need diffusers: pip install 'trl-credit[images]'.") from error
    if model == "trl_credit:digits":
        from ..toy.digits import load_digits_pipeline

        return load_digits_pipeline()
    check_pipeline(model)
    index = Path(model) / "model_index.json"
    if index.exists() and json.loads(index.read_text())["_class_name"] == "DigitsPipeline":
        from ..toy.digits import load_digits_pipeline

        return load_digits_pipeline(model)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(model, torch_dtype=dtype or torch.float32, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`model_name_or_path`: cannot load the pipeline {model!r}: {reason}") from error
    return pipeline


def check_pipeline(model: str) -> None:
    """Raises `ValueError` if a local folder is no diffusers pipeline. Loads nothing."""
    if (Path(model) / "adapter_config.json").exists():
        raise ValueError(
            f"`model_name_or_path`: {model!r} is an adapter, and this trains a whole pipeline or a new adapter for one. "
            "Name the pipeline; to start from the adapter, load and fuse it, and save the pipeline."
        )
    if Path(model).is_dir() and not (Path(model) / "model_index.json").exists():
        raise ValueError(
            f"`model_name_or_path`: {model!r} is no diffusers pipeline: it has no model_index.json. To train a language "
            "model, leave `trainer` out."
        )


def use_stochastic_scheduler(pipeline: DiffusionPipeline) -> None:
    """Gives a pipeline whose scheduler has no stochastic step a `DDIMScheduler` with the same noise levels."""
    from diffusers import DDIMScheduler

    scheduler = pipeline.scheduler
    if type(scheduler) is not DDIMScheduler and "DDIMScheduler" in [cls.__name__ for cls in scheduler.compatibles]:
        if scheduler.config.get("prediction_type") == "flow_prediction":
            return
        logger.warning(
            "%s has no stochastic step that is known here: sampling uses a DDIMScheduler with its noise levels.",
            type(scheduler).__name__,
        )
        pipeline.scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """The component that a pipeline calls at each step: `transformer` or `unet`.

    Raises:
        PipelineError: It has neither.
    """
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return name
    raise PipelineError(f"{type(pipeline).__name__} has no component `transformer` or `unet` to train.")


class PipelineSampler:
    """Samples trajectories with a pipeline, and predicts their steps anew.

    Args:
        pipeline: The pipeline; its denoiser is not used, but replaced by the policy.
        steps: `num_inference_steps`.
        trained: Indices of the steps to keep for the update.
        drawn: If set, each image keeps a random subset of this many of them.
        eta: Noise level; `None` for the default of the scheduler's family.
        sde: Form of the flow-matching SDE; `None` for the default.
        guidance_scale: Scale of classifier-free guidance; `None` for the pipeline's default.
        size: Height and width in pixels; `None` for the pipeline's default.
        arguments: Further arguments of the pipeline's call.
        device: Where trajectories are kept; `None` for where they are sampled.

    Attributes:
        template (`dict`, *optional*): How the pipeline calls its denoiser, as plain values. Known after the first
            sampling, or from a checkpoint.

    Raises:
        PipelineError: The pipeline has no stochastic step, or does not take an argument.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        steps: int,
        trained: Sequence[int],
        drawn: int | None = None,
        eta: float | None = None,
        sde: str | None = None,
        guidance_scale: float | None = None,
        size: tuple[int | None, int | None] = (None, None),
        arguments: dict[str, Any] | None = None,
        device: str | None = None,
    ):
        self.pipeline = pipeline
        self.steps = steps
        self.trained = list(trained)
        self.drawn = drawn
        self.device = device
        self.template: dict[str, Any] | None = None
        self._checked = False
        self.component = denoiser_name(pipeline)
        use_stochastic_scheduler(pipeline)
        self._build_schedule = schedule_builder(pipeline.scheduler, eta, sde)
        known = inspect.signature(pipeline.__call__).parameters
        if "guidance_scale" in known:
            scale = known["guidance_scale"].default if guidance_scale is None else guidance_scale
            self.guidance_scale = float(scale)
        elif guidance_scale is not None:
            raise PipelineError(f"`guidance_scale` ({guidance_scale}): {type(pipeline).__name__} has no guidance.")
        else:
            self.guidance_scale = 1.0
        self._arguments = {"num_inference_steps": steps, "output_type": "latent"}
        if "guidance_scale" in known:
            self._arguments["guidance_scale"] = self.guidance_scale
        for name, value in zip(("height", "width"), size, strict=True):
            if value is not None:
                self._arguments[name] = value
        for name, value in (arguments or {}).items():
            if name in self._arguments or name in ("prompt", "latents", "generator", "return_dict"):
                raise PipelineError(f"`pipeline_kwargs`: {name!r} is set by the trainer. Remove it.")
            self._arguments[name] = value
        for name in self._arguments:
            if name not in known:
                raise PipelineError(
                    f"{type(pipeline).__name__} takes no argument {name!r}. {nearest(name, list(known))}"
                )
        forward = list(inspect.signature(getattr(pipeline, self.component).forward).parameters)
        self._positions, self._latents_name = forward, forward[0]

    # Sampling

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], model: Callable[..., Tensor], rows: int | None = None
    ) -> tuple[list[dict[str, Tensor]], list[Image]]:
        """Samples one image for each prompt.

        Args:
            prompts: The prompts.
            model: The policy as wrapped for training, a [`~trl_credit.samplers.policy.DenoiserPolicy`] at its core.
            rows: Prompts per call of the pipeline; all by default.

        Returns:
            Each image's trajectory, a dictionary of tensors that `predict` takes once stacked, and the images.

        Raises:
            PipelineError: The pipeline's sampling cannot be repeated for the update.
        """
        trajectories, images = [], []
        for start in range(0, len(prompts), rows or len(prompts)):
            part = list(prompts[start : start + (rows or len(prompts))])
            recorder = _Recorder(self, model, len(part))
            with recorder.installed(), _no_progress_bar(self.pipeline):
                self.pipeline(prompt=part, **self._arguments)
            trajectories += recorder.trajectories()
            images += self.decode(recorder.latents[-1])
        return trajectories, images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Decodes (R, ...) latents, as the pipeline has them in its loop, into PIL images."""
        pipeline = self.pipeline
        if hasattr(pipeline, "decode"):
            return pipeline.decode(latents)
        vae = pipeline.vae
        if hasattr(pipeline, "_unpack_latents"):
            default = pipeline.default_sample_size * pipeline.vae_scale_factor
            size = [self._arguments.get(name) or default for name in ("height", "width")]
            latents = pipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)
        latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pixels = vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)[0]
        return pipeline.image_processor.postprocess(pixels.float(), output_type="pil")

    # The update

    def predict(
        self, model: Callable[..., Tensor], trajectory: dict[str, Tensor], rows: Tensor, steps: Tensor
    ) -> Tensor:
        """Repeats the pipeline's prediction, guidance included, for some steps of some rows.

        Args:
            model: The policy.
            trajectory: Stacked trajectories of B images with K steps each.
            rows: (R,) rows of the batch.
            steps: (R,) columns of the trajectories, 0 to K - 1.

        Returns:
            (R, ...) float32 predictions.
        """
        latents = trajectory["latents"][rows, steps]
        times = trajectory["timestep"][rows, steps]
        outputs = []
        for number, call in enumerate(self.template["calls"]):
            parts = call["parts"]
            arguments = _nested(call["values"])
            for name in call["rows"]:
                value = trajectory[f"{_CONDITION}{number}/{name}"][rows]  # (R, parts, ...)
                _put(arguments, name, value.transpose(0, 1).flatten(0, 1))
            for name in call["shared"]:
                _put(arguments, name, trajectory[f"{_CONDITION}{number}/{name}"][rows[0]])
            arguments[self._latents_name] = torch.cat([latents] * parts)
            arguments["timestep"] = times.repeat(parts).to(getattr(torch, call["timestep"]))
            outputs += model(latents_name=self._latents_name, **arguments).float().chunk(parts)
        return self._guided(outputs)

    def _guided(self, outputs: Sequence[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        unconditional = self.template["unconditional"]
        base, conditional = outputs[unconditional], outputs[1 - unconditional]
        return base + self.guidance_scale * (conditional - base)

    def log_prob(self, prediction: Tensor, trajectory: dict[str, Tensor], rows: Tensor, steps: Tensor) -> Tensor:
        """(R,) log-probs of the steps that were taken, given (R, ...) predictions for them."""
        coefficients = trajectory["coefficients"][rows, steps]
        return step_log_prob(
            prediction,
            trajectory["latents"][rows, steps],
            trajectory["next"][rows, steps],
            *coefficients[:, : STD + 1].unbind(-1),
        )

    def clean_estimate(self, prediction: Tensor, trajectory: dict[str, Tensor], rows: Tensor, steps: Tensor) -> Tensor:
        """(R, ...) float32 latents of the clean images that (R, ...) predictions for some steps imply, for `decode`."""
        coefficients = trajectory["coefficients"][rows, steps]
        scale, gain = coefficients[:, CLEAN_SCALE], coefficients[:, CLEAN_GAIN]
        return step_mean(prediction, trajectory["latents"][rows, steps], scale, gain)


@contextlib.contextmanager
def _no_progress_bar(pipeline: DiffusionPipeline) -> Iterator[None]:
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**(before | {"disable": True}))
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


class _Recorder:
    """Takes the place of a pipeline's denoiser and scheduler during one call."""

    def __init__(self, sampler: PipelineSampler, model: Callable[..., Tensor], rows: int):
        self._sampler = sampler
        self._model = model
        self._rows = rows
        self._calls: list[dict[str, Any]] = []
        self._outputs: list[Tensor] = []
        self._first: list[dict[str, Any]] = []
        self._schedule: StepSchedule | None = None
        self.latents: list[Tensor] = []
        self._times: list[float] = []
        self._log_probs: list[Tensor] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        pipeline, name = self._sampler.pipeline, self._sampler.component
        denoiser, scheduler = getattr(pipeline, name), pipeline.scheduler
        # Around `DiffusionPipeline.__setattr__`, which would write them into the pipeline's config
        vars(pipeline)[name] = _Denoiser(denoiser, self._denoise)
        vars(pipeline)["scheduler"] = _Scheduler(scheduler, self._step)
        self._scheduler = scheduler
        try:
            yield
        finally:
            vars(pipeline)[name], vars(pipeline)["scheduler"] = denoiser, scheduler

    def _denoise(self, arguments: dict[str, Any]) -> Tensor:
        self._calls.append(arguments)
        output = self._model(latents_name=self._sampler._latents_name, **arguments)
        self._outputs.append(output)
        return output

    def _step(self, output: Tensor, sample: Tensor) -> Tensor:
        """The stochastic step, in place of the scheduler's."""
        sampler, latents, index = self._sampler, sample.float(), len(self._times)
        if self._schedule is None:
            self._schedule = sampler._build_schedule()
            if len(self._schedule) != sampler.steps:
                raise PipelineError(
                    f"{type(sampler.pipeline).__name__} takes {len(self._schedule)} steps, not `num_inference_steps` "
                    f"({sampler.steps})."
                )
            self.latents.append(latents)
            self._first = self._calls
            self._read_template(output)
        elif not sampler._checked:
            self._check_unchanged()
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
            raise PipelineError(
                f"{type(sampler.pipeline).__name__} combines its denoiser's predictions in a way that the update cannot "
                "repeat: only classifier-free guidance with one scale is known (no `guidance_rescale`, no skipped "
                "layers). Change `pipeline_kwargs`."
            )
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
        self.latents.append(following)
        self._calls, self._outputs = [], []
        return following

    def _read_template(self, output: Tensor) -> None:
        """Learns from the first step how the pipeline calls its denoiser."""
        sampler, rows = self._sampler, self._rows
        calls = []
        for call in self._calls:
            latents = call[sampler._latents_name]
            parts, rest = divmod(len(latents), rows)
            expected = torch.cat([self.latents[0]] * parts) if not rest else None
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
        if sampler.template is not None:
            template["unconditional"] = sampler.template["unconditional"]
        elif len(outputs) == 2:
            errors = []
            for unconditional in (0, 1):
                base, conditional = outputs[unconditional], outputs[1 - unconditional]
                guided = base + sampler.guidance_scale * (conditional - base)
                errors.append((guided - output.float()).abs().max().item())
            template["unconditional"] = int(errors[1] < errors[0])
        if sampler.template is not None and sampler.template != template:
            raise PipelineError(f"{type(sampler.pipeline).__name__} does not call its denoiser as it did before.")
        sampler.template = template

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
        without = [step for step in sampler.trained if schedule.std[step] <= 0]
        if without:
            raise PipelineError(
                f"`train_steps`: step {without[0]} of {len(schedule)} is deterministic in this schedule: it has no log-prob."
                f" Leave it out, for example with `train_steps: ':{without[0]}'`."
            )
        device = self.latents[0].device
        path, times = torch.stack(self.latents, 1), torch.tensor(self._times, device=device)
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
            "latents": path[row, chosen],
            "next": path[row, chosen + 1],
            "timestep": times[chosen],
            "coefficients": coefficients[chosen],
            "log_probs": log_probs[row, chosen],
            **{f"shares/{name}": share.float().to(device)[chosen] for name, share in schedule.shares().items()},
        }
        for number, (call, arguments) in enumerate(zip(sampler.template["calls"], self._first, strict=True)):
            given = dict(_flat(arguments))
            for name in call["rows"]:
                value = given[name]
                batch[f"{_CONDITION}{number}/{name}"] = value.unflatten(0, (call["parts"], rows)).transpose(0, 1)
            for name in call["shared"]:
                batch[f"{_CONDITION}{number}/{name}"] = given[name].unsqueeze(0).expand(rows, *given[name].shape)
        where = sampler.device or device
        return [{name: value[i].to(where, copy=True) for name, value in batch.items()} for i in range(rows)]


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

    def __init__(self, scheduler: Any, step: Callable[[Tensor, Tensor], Tensor]):
        self._scheduler = scheduler
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        following = self._step(model_output, sample)
        return SimpleNamespace(prev_sample=following) if return_dict else (following,)


def _flat(arguments: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Arguments with those of nested dictionaries, by dotted name."""
    flat = []
    for name, value in arguments.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return flat


def _put(arguments: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for key in path:
        arguments = arguments.setdefault(key, {})
    arguments[last] = value


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, value in flat.items():
        _put(arguments, name, value)
    return arguments
