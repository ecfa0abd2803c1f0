"""Config of the trainer for autoregressive image models."""

from dataclasses import dataclass, field

from .._util.settings import AtLeast1, NonNegative
from .config import VLLM_SETTINGS, CreditGRPOConfig, refuse_settings


# TRL's settings without meaning for image codes; the reason is said once
_TEXT_SETTINGS = {
    "codes are sampled from the whole guided distribution, so that training sees the same one": (
        "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs",
    ),
    "an image-token model generates with its own loop": (
        "use_vllm", "use_transformers_continuous_batching", "transformers_continuous_batching_config",
        "use_transformers_paged", "cache_implementation", *VLLM_SETTINGS,
    ),
    "every image has all of its codes": ("mask_truncated_completions", "pad_to_multiple_of"),
    "images call no tools": ("max_tool_calling_iterations",),
    "TRL looks for `lm_head`, and codes have a head of their own": ("cast_lm_head_to_fp32",),
}  # fmt: skip


@dataclass
class ImageTokenGRPOConfig(CreditGRPOConfig):
    r"""
    Config of the [`ImageTokenGRPOTrainer`]: every field of [`CreditGRPOConfig`] that has a meaning for image codes, plus
    three of its own. A field that has none is an error if it is set.

    Parameters:
        guidance_scale (`float`, *optional*, defaults to `5.0`):
            Scale of classifier-free guidance in rollouts; 1 is without. The update's log-probs are those of the prompt
            alone, without guidance, as in GCPO's official code.
        sampling_batch_size (`int`, *optional*):
            Images to sample at a time. If unset: `per_device_train_batch_size`.
        image_start_token (`str`, *optional*):
            Token that starts an image, added to every prompt that does not end with it. If unset: the one that the model's
            generation config or tokenizer names (`<begin_of_image>` for Janus).
        max_completion_length (`int`, *optional*, defaults to `576`):
            Codes of an image. Must be the model's.
    """

    guidance_scale: NonNegative = field(
        default=5.0, metadata={"help": "Scale of classifier-free guidance in rollouts; 1 is without."}
    )
    sampling_batch_size: AtLeast1 | None = field(
        default=None, metadata={"help": "Images to sample at a time. If unset: `per_device_train_batch_size`."}
    )
    image_start_token: str | None = field(
        default=None,
        metadata={"help": "Token that starts an image. If unset: the one that the model or tokenizer names."},
    )
    # Redeclared: known from the model
    max_completion_length: AtLeast1 = field(
        default=576, metadata={"help": "Codes of an image: 576 for Janus. Must be the model's."}
    )

    def _check_before_trl(self):
        super()._check_before_trl()
        refuse_settings(self, _TEXT_SETTINGS, "an image-token model")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` ({self.temperature!r}) must be above 0: codes are sampled.")
