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
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._util.text import nearest
from .._util.unsharded import unsharded
from .recorder import CONDITION, PipelineError, Recorder, nested, put
from .schedule import schedule_builder, step_log_prob, step_mean


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

# Arguments of a pipeline's call that the trainer sets, and those that are text for each image
_OURS = ("prompt", "latents", "generator", "return_dict")
_INSTEAD = {
    "num_images_per_prompt": "Set `num_generations` instead.",
    "eta": "Set `eta` of the config instead.",
    "timesteps": "Set `num_inference_steps`, or the scheduler's config.",
}
_PROMPT = re.compile(r"(negative_)?prompt(_\d)?")
# Columns of a trajectory's `coefficients`
SCALE, GAIN, STD, CLEAN_SCALE, CLEAN_GAIN = range(5)


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
    if index.exists() and json.loads(index.read_text(encoding="utf-8"))["_class_name"] == "DigitsPipeline":
        from ..toy.digits import load_digits_pipeline

        return load_digits_pipeline(model)
    try:
        with unsharded():  # text encoders stay out of the engine, and the engine shards the denoiser
            pipeline = diffusers.DiffusionPipeline.from_pretrained(model, dtype=dtype or torch.float32, **kwargs)
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


def stochastic_scheduler(pipeline: DiffusionPipeline) -> Any:
    """The pipeline's scheduler, or a `DDIMScheduler` of the same training schedule if its own has no stochastic step."""
    from diffusers import DDIMScheduler

    scheduler = pipeline.scheduler
    if type(scheduler) is not DDIMScheduler and "DDIMScheduler" in [cls.__name__ for cls in scheduler.compatibles]:
        if scheduler.config.get("prediction_type") == "flow_prediction":
            return scheduler
        return DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    return scheduler


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
        self.scheduler = stochastic_scheduler(pipeline)
        self._build_schedule = schedule_builder(self.scheduler, eta, sde)
        known = inspect.signature(pipeline.__call__).parameters
        if "guidance_scale" in known:
            scale = known["guidance_scale"].default if guidance_scale is None else guidance_scale
            self.guidance_scale = 1.0 if scale is None else float(scale)
        elif guidance_scale is not None:
            raise PipelineError(f"`guidance_scale` ({guidance_scale}): {type(pipeline).__name__} has no guidance.")
        else:
            self.guidance_scale = 1.0
        # FLUX reads `guidance_scale` as an input; its classifier-free guidance has a scale of its own
        if "true_cfg_scale" in known:
            cfg_scale = (arguments or {}).get("true_cfg_scale", known["true_cfg_scale"].default)
            self.cfg_scale = 1.0 if cfg_scale is None else float(cfg_scale)
        else:
            self.cfg_scale = self.guidance_scale
        self._arguments = {"num_inference_steps": steps, "output_type": "latent"}
        if "guidance_scale" in known and scale is not None:
            self._arguments["guidance_scale"] = self.guidance_scale
        for name, value in zip(("height", "width"), size, strict=True):
            if value is not None:
                self._arguments[name] = value
        for name, value in (arguments or {}).items():
            if name in self._arguments or name in _OURS:
                raise PipelineError(f"`pipeline_kwargs`: {name!r} is set by the trainer. Remove it.")
            if _PROMPT.fullmatch(name) and not isinstance(value, (str, type(None))):
                raise PipelineError(f"`pipeline_kwargs`: {name!r} must be one text for all images, got {value!r}.")
            if name in _INSTEAD:
                raise PipelineError(f"`pipeline_kwargs`: {name!r} cannot be set there. {_INSTEAD[name]}")
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
            recorder = Recorder(self, model, len(part))
            with recorder.installed(), _no_progress_bar(self.pipeline):
                try:
                    self.pipeline(prompt=part, **self._for_rows(len(part)))
                except (TypeError, ValueError) as error:
                    if isinstance(error, PipelineError) or recorder.started:
                        raise
                    raise PipelineError(
                        f"{type(self.pipeline).__name__} failed before its first step, as it does if an argument "
                        f"(`height`, `width`, `pipeline_kwargs`) is wrong: {error}"
                    ) from error
            trajectories += recorder.trajectories()
            images += self.decode(recorder.final)
        for name, first in trajectories[0].items():
            if any(trajectory[name].shape != first.shape for trajectory in trajectories):
                raise PipelineError(
                    f"{type(self.pipeline).__name__} pads prompts to the longest of a call, so `{name}` differs in size "
                    "between images. Set `pipeline_kwargs` to pad them alike (often `max_sequence_length` with `padding`), "
                    "or train another pipeline."
                )
        return trajectories, images

    def _for_rows(self, rows: int) -> dict[str, Any]:
        """The call's arguments, with a text such as the negative prompt once for each row: many pipelines demand it."""
        return {
            name: [value] * rows if isinstance(value, str) and _PROMPT.fullmatch(name) else value
            for name, value in self._arguments.items()
        }

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
        mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            mean, std = (torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        dtype = vae.dtype
        upcast = dtype == torch.float16 and vae.config.get("force_upcast") and hasattr(pipeline, "upcast_vae")
        if upcast:  # as the pipeline does: it overflows in float16
            vae.to(torch.float32)
        try:
            pixels = vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)[0]
        finally:
            if upcast:
                vae.to(dtype)
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
            arguments = nested(call["values"])
            for name in call["rows"]:
                value = trajectory[f"{CONDITION}{number}/{name}"][rows]  # (R, parts, ...)
                put(arguments, name, value.transpose(0, 1).flatten(0, 1))
            for name in call["shared"]:
                put(arguments, name, trajectory[f"{CONDITION}{number}/{name}"][rows[0]])
            arguments[self._latents_name] = torch.cat([latents] * parts)
            arguments["timestep"] = times.repeat(parts).to(getattr(torch, call["timestep"]))
            outputs += model(latents_name=self._latents_name, **arguments).float().chunk(parts)
        return self._guided(outputs)

    def _guided(self, outputs: Sequence[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        unconditional = self.template["unconditional"]
        base, conditional = outputs[unconditional], outputs[1 - unconditional]
        return base + self.cfg_scale * (conditional - base)

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
