"""Config of the trainer for diffusion and flow-matching models."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from .._util.settings import AtLeast1, Finite, NonNegative, Rule, Unchecked, one_of
from ..samplers.schedule import FLOW_SDES, steps_to_train
from .config import VLLM_SETTINGS, CreditGRPOConfig, refuse_settings


_VESPO = tuple(f.name for f in fields(CreditGRPOConfig) if f.name.startswith("vespo_"))
# TRL's settings without meaning for images, with their defaults; the reason is said once
_TEXT_SETTINGS = {
    "it samples text": (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation",
        "use_transformers_continuous_batching", "transformers_continuous_batching_config", "use_transformers_paged",
        "use_vllm", *VLLM_SETTINGS, "chat_template_kwargs", "max_tool_calling_iterations",
    ),
    "the entropy of a sampler's step does not depend on the policy": (
        "entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
        "use_adaptive_entropy", "top_entropy_quantile",
    ),
    "a denoiser always runs in eval mode": ("disable_dropout",),
    "a pipeline samples with the sharded denoiser": ("ds3_gather_for_generation",),
    "every image has all of its steps": ("mask_truncated_completions", "trim_padding", "pad_to_multiple_of"),
    "a step has a log-prob of its own": ("importance_sampling_level", "off_policy_mask_threshold"),
    "it is for a language model": (
        "cast_lm_head_to_fp32", "router_aux_loss_coef", "neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config",
    ),
    "the KL divergence is exact, and its reference stays as it is": (
        "use_bias_correction_kl", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
    ),
    "its loss is made for a sequence's ratio": _VESPO,
}  # fmt: skip
# Losses made for sequences
_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo")


@dataclass
class DiffusionGRPOConfig(CreditGRPOConfig):
    r"""
    Config of the [`DiffusionGRPOTrainer`]: every field of [`CreditGRPOConfig`] that has a meaning for images, plus the
    sampler's. A field that has none is an error if it is set.

    Parameters:
        num_inference_steps (`int`, *optional*, defaults to `10`):
            Steps of the sampler, in training and evaluation.
        train_steps (`str`, *optional*, defaults to `":-1"`):
            Which of them are trained: a slice as in Python, or indices (`"0, 2"`). The default leaves the last step out, as
            the authors of PCPO, DanceGRPO and Flow-GRPO do; `":"` trains all.
        train_steps_drawn (`int`, *optional*):
            Train only a random subset of this many of `train_steps`, drawn anew for each image. The mean over the subset
            is an unbiased estimate of the mean over all. If unset: all of them.
        eta (`float`, *optional*):
            Noise level of the sampler; above 0, because a deterministic sampler has no log-probs. If unset: 1 for DDIM
            (which is DDPM's noise), 0.7 for flow matching.
        sde (`str`, *optional*):
            For flow matching: `"flow_grpo"`, noise eta sqrt(t / (1 - t)), or `"dance_grpo"`, noise eta. If unset:
            `"flow_grpo"`.
        guidance_scale (`float`, *optional*):
            Scale of classifier-free guidance, in sampling and in the update: the log-prob is that of the guided
            prediction. If unset: the pipeline's default.
        height, width (`int`, *optional*):
            Size of the images in pixels. If unset: the pipeline's default.
        pipeline_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of the pipeline's call, such as `negative_prompt`.
        sampling_batch_size (`int`, *optional*):
            Images per call of the pipeline in a rollout. If unset: `per_device_train_batch_size`.
        denoiser_batch_size (`int`, *optional*):
            Steps per forward of the denoiser in the update, before guidance doubles them. A micro-batch is images x steps;
            with gradient checkpointing, smaller forwards lower the peak of memory. If unset: all at once.
        latents_device (`str`, *optional*):
            Where trajectories are kept: `"cpu"`, or if unset the device that sampled them. An image takes 2 x trained steps
            x latents in float32, and its text embeddings: 2.6 MB + 1.3 MB for Stable Diffusion 3 at 512 pixels and 9 steps.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL divergence from the frozen model, in closed form: the mean over dimensions of the squared
            difference of the steps' means, over 2 std^2. Costs a forward of the frozen model in each update.
        max_completion_length (`int`, *optional*):
            Set to the number of trained steps.
    """

    policy_kind: ClassVar[str] = "steps"

    _VALID_DICT_FIELDS = [*CreditGRPOConfig._VALID_DICT_FIELDS, "pipeline_kwargs"]

    num_inference_steps: AtLeast1 = field(default=10, metadata={"help": "Steps of the sampler."})
    train_steps: str = field(
        default=":-1",
        metadata={"help": "Which steps are trained: a slice (':-1' leaves the last out, ':' takes all), or '0, 2'."},
    )
    train_steps_drawn: AtLeast1 | None = field(
        default=None, metadata={"help": "Train a random subset of this many of `train_steps`, drawn for each image."}
    )
    eta: Annotated[Finite, Gt(0), Rule("above 0: a deterministic sampler has no log-probs")] | None = field(
        default=None, metadata={"help": "Noise level of the sampler. If unset: 1 for DDIM, 0.7 for flow matching."}
    )
    sde: one_of(*FLOW_SDES) | None = field(
        default=None,
        metadata={"help": "For flow matching: `flow_grpo` (noise eta sqrt(t / (1 - t))) or `dance_grpo` (noise eta)."},
    )
    guidance_scale: NonNegative | None = field(
        default=None, metadata={"help": "Scale of classifier-free guidance. If unset: the pipeline's default."}
    )
    height: AtLeast1 | None = field(default=None, metadata={"help": "Height of the images in pixels."})
    width: AtLeast1 | None = field(default=None, metadata={"help": "Width of the images in pixels."})
    pipeline_kwargs: Annotated[dict | str | None, Unchecked] = field(
        default=None, metadata={"help": "Further arguments of the pipeline's call, such as `negative_prompt`."}
    )
    sampling_batch_size: AtLeast1 | None = field(
        default=None,
        metadata={"help": "Images per call of the pipeline. If unset: `per_device_train_batch_size`."},
    )
    denoiser_batch_size: AtLeast1 | None = field(
        default=None, metadata={"help": "Steps per forward of the denoiser in the update. If unset: all at once."}
    )
    latents_device: one_of("cpu") | None = field(
        default=None, metadata={"help": "Where trajectories are kept: `cpu`, or if unset the device that sampled them."}
    )
    # Redeclared: known from the steps
    max_completion_length: AtLeast1 | None = field(
        default=None, metadata={"help": "Set to the number of trained steps; leave it out."}
    )

    def _check_before_trl(self):
        super()._check_before_trl()
        refuse_settings(self, _TEXT_SETTINGS, "an image model")
        if self.loss_type not in _LOSSES:
            raise ValueError(
                f"`loss_type` ({self.loss_type!r}) is made for a sequence's ratio. Set it to one of {', '.join(_LOSSES)}."
            )
        trained = self.trained_steps
        if self.train_steps_drawn is not None and self.train_steps_drawn >= len(trained):
            raise ValueError(
                f"`train_steps_drawn` ({self.train_steps_drawn}) must be below the number of `train_steps` "
                f"({len(trained)}). Remove it to train them all."
            )
        count = self.train_steps_drawn or len(trained)
        if self.max_completion_length not in (None, count):
            raise ValueError(
                f"`max_completion_length` ({self.max_completion_length}) has no meaning for an image model, whose trained "
                f"steps ({count}) follow from `num_inference_steps` and `train_steps`. Remove it."
            )
        self.max_completion_length = count
        if isinstance(self.pipeline_kwargs, str) and not self.pipeline_kwargs.startswith("{"):  # else JSON, for TRL
            raise ValueError(f"`pipeline_kwargs` must be a mapping, got {self.pipeline_kwargs!r}.")

    @property
    def trained_steps(self) -> list[int]:
        """Indices of the trained steps."""
        return steps_to_train(self.train_steps, self.num_inference_steps)

    @property
    def call_arguments(self) -> dict[str, Any]:
        """The arguments of [`~trl_credit.samplers.pipelines.PipelineSampler`]."""
        return {
            "steps": self.num_inference_steps,
            "trained": self.trained_steps,
            "drawn": self.train_steps_drawn,
            "eta": self.eta,
            "sde": self.sde,
            "guidance_scale": self.guidance_scale,
            "size": (self.height, self.width),
            "arguments": self.pipeline_kwargs,
            "device": self.latents_device,
        }
