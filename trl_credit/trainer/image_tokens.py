"""TRL's GRPOTrainer for autoregressive image models: a completion is the codes of an image.

The policy is a view ([`~trl_credit.image_tokens`]) that looks like a causal language model, so TRL's log-probs, loss and
metrics run unchanged, and so do the credit methods. What differs is the rollout.
"""

import copy
import functools
import re
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, ProcessorMixin, set_seed
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..extras.trainer import bind_arguments, check_arguments, default_output_dir
from ..image_tokens import VIEWS, ImageTokenView, check_architecture, image_token_view
from ..signals.models import causal_model
from .exactness import check_credit
from .grpo import CreditGRPOTrainer, set_quick_start
from .image_tokens_config import ImageTokenGRPOConfig


# Key of the dataset row that a rollout adds
IMAGES = "images"
# Stands for the image where TRL wants a completion's text
_TEXT = "<image>"


class _ImageRollout(GRPOTrainer):
    """The rollout of an image-token model. Stands below the extras, directly above TRL's trainer."""

    _start_token_id: int

    def _tokenize_prompts(self, prompts: list):
        ids, images, fields = super()._tokenize_prompts(prompts)
        start = self._start_token_id
        return [[*row] if row[-1:] == [start] else [*row, start] for row in ids], images, fields

    def _generate_single_turn(self, *args, **kwargs):
        # A code may equal the tokenizer's end-of-text id. No code ends an image
        ends, self.eos_token_ids = self.eos_token_ids, []
        try:
            with self.accelerator.autocast():
                return super()._generate_single_turn(*args, **kwargs)
        finally:
            self.eos_token_ids = ends

    def _generate(self, prompts: list):
        prompt_ids, codes, tool_mask, completions, *rest = super()._generate(prompts)
        # What the text tokenizer makes of codes is meaningless
        completions = [_TEXT if isinstance(text, str) else [{**text[0], "content": _TEXT}] for text in completions]
        rest[1] = {**rest[1], IMAGES: self._decode(codes)}
        return prompt_ids, codes, tool_mask, completions, *rest

    def _decode(self, codes: list[list[int]]) -> list:
        """A PIL image for each completion."""
        gathers = self.args.ds3_gather_for_generation
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=gathers
        ) as unwrapped:
            return causal_model(unwrapped).images_of(torch.tensor(codes, device=self.accelerator.device))

    def _generate_and_score_completions(self, inputs):
        inputs[:] = [dict(row) for row in inputs]  # rows of a stream may be one object, and each gets its own image
        return super()._generate_and_score_completions(inputs)


class ImageTokenGRPOTrainer(CreditGRPOTrainer, _ImageRollout):
    """
    [`CreditGRPOTrainer`] for autoregressive image models such as Janus. A token is a code of the image's codebook; a
    completion is an image.

    It takes the arguments of [`~trl.GRPOTrainer`]. `model` is a [`~transformers.JanusForConditionalGeneration`], its path
    or hub id, or another model with a view ([`~trl_credit.image_tokens`]). Only the language model is trained, whole or
    with a LoRA adapter (`peft_config`), which is kept out of the vision tower. What is saved loads in the model's plain
    class.

    Rollouts use classifier-free guidance (`guidance_scale`); log-probs in the update are those of the prompt without
    guidance, at the same temperature, as in GCPO's official code.

    Reward functions get `images`, a list of PIL images, beside TRL's arguments: `f(images, prompts, **columns)`. Images are
    decoded once per rollout. `completion_ids` are the codes, and `completions` hold `<image>`.

    A code may equal the tokenizer's end-of-text id. It does not end an image: images are as long as they are. To TRL every
    code is an end (`eos_token_ids`), so no image counts as clipped, and while it generates, none is.

    FSDP is not supported, because generation calls parts of the model by themselves. Use DDP or DeepSpeed.

    Raises:
        ValueError: A model, setting or dataset that cannot be trained. What can be told without the weights is raised
            before they are loaded.

    Example:

    ```python
    from trl_credit import ImageTokenGRPOConfig, ImageTokenGRPOTrainer
    from trl_credit.rewards.images import clip_score

    trainer = ImageTokenGRPOTrainer(
        model="deepseek-community/Janus-Pro-1B",
        reward_funcs=clip_score(),
        args=ImageTokenGRPOConfig(output_dir="out", credit={"method": "gcpo", "negative_prompt": "pad"}),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, *args, **kwargs):
        arguments = bind_arguments(self, args, kwargs)
        model, training_args = arguments["model"], arguments["args"]
        for name in ("tools", "environment_factory", "rollout_func"):
            if arguments.get(name):
                raise ValueError(f"`{name}` has no meaning for an image-token model. Remove it.")
        if training_args is None:
            training_args = ImageTokenGRPOConfig(default_output_dir(model, "GRPO"))
        if not isinstance(training_args, ImageTokenGRPOConfig):
            raise ValueError(
                "`args` must be an ImageTokenGRPOConfig, which has the settings of image generation, got "
                f"{type(training_args).__name__}."
            )
        for dataset in ("train_dataset", "eval_dataset"):
            columns = set(getattr(arguments[dataset], "column_names", None) or ())
            if taken := columns & {"image", IMAGES}:
                raise ValueError(
                    f"`{dataset}` has a column {min(taken)!r}, which is the name of what the rollout adds. Rename or remove "
                    "it."
                )
        if training_args.distributed_state.distributed_type == "FSDP":
            raise ValueError("FSDP is not supported for image-token models. Use DDP or DeepSpeed.")
        method = self._resolve_credit(training_args)
        check_credit(method, training_args)
        if method.continuations():
            raise ValueError(
                f"credit method {method.name!r} continues completions from within, and images cannot be continued yet. Use "
                "another method."
            )
        arguments["args"] = training_args = copy.copy(training_args)
        check_arguments(type(self), arguments)

        config = self._config(model, training_args)
        kind = VIEWS[config.architectures[0] if isinstance(model, str) else type(model).__name__]
        _check_length(kind.length_of(config), training_args)
        tokenizer = _tokenizer(model, arguments["processing_class"], training_args, kind.chat_template)
        if isinstance(model, str):
            model = self._load(model, arguments)
            if training_args.beta == 0.0:  # else TRL loads its reference with them
                training_args.model_init_kwargs = None
        self._start_token_id = _start_token_id(model, tokenizer, training_args.image_start_token)
        self._view_settings = {
            "start_token_id": self._start_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "guidance_scale": training_args.guidance_scale,
            "sampling_batch_size": training_args.sampling_batch_size or training_args.per_device_train_batch_size,
        }
        arguments["model"] = view = image_token_view(model, **self._view_settings)
        arguments["processing_class"] = tokenizer
        arguments["peft_config"] = _inside_language_model(arguments["peft_config"], view)
        super().__init__(**arguments)
        self.eos_token_ids = list(range(view.code_head.out_features))
        if self.ref_model is not None:
            image_token_view(self.accelerator.unwrap_model(self.ref_model), **self._view_settings).requires_grad_(False)

    @staticmethod
    def _config(model: Any, args: ImageTokenGRPOConfig) -> PretrainedConfig:
        if not isinstance(model, str):
            if is_peft_model(model):
                raise ValueError("`model` has an adapter. Pass the model without it, and `peft_config`.")
            if not isinstance(model, ImageTokenView) and type(model).__name__ not in VIEWS:
                image_token_view(model, start_token_id=0, pad_token_id=0)  # raises the error
            return model.config
        options = args.model_init_kwargs or {}
        config = AutoConfig.from_pretrained(
            model, revision=options.get("revision"), trust_remote_code=args.trust_remote_code
        )
        check_architecture(config)
        return config

    @staticmethod
    def _load(model: str, arguments: dict[str, Any]) -> PreTrainedModel:
        """Loads as TRL does."""
        args = arguments["args"]
        set_seed(args.seed)
        options = dict(args.model_init_kwargs or {})
        if arguments.get("quantization_config") is not None:
            options["quantization_config"] = arguments["quantization_config"]
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            options["device_map"] = None
        options.setdefault("trust_remote_code", args.trust_remote_code)
        arguments["quantization_config"] = None
        return create_model_from_path(model, **options)

    @property
    def frame_token_ids(self) -> frozenset[int]:
        return super().frame_token_ids | {self._start_token_id}

    def _describe_use(self, card):
        set_quick_start(card, "Its base model's card says how to draw images with it.")
        card.data.pipeline_tag = "text-to-image"

    def _batch_settings(self):
        return super()._batch_settings() | {"guidance_scale": str(self.args.guidance_scale)}


def _check_length(length: int, args: ImageTokenGRPOConfig) -> None:
    if args.max_completion_length != length:
        raise ValueError(
            f"`max_completion_length` ({args.max_completion_length}) must be the number of codes of the model's images, "
            f"{length}. Set `max_completion_length: {length}`."
        )


def _tokenizer(model: Any, processing_class: Any, args: ImageTokenGRPOConfig, chat_template: str | None) -> Any:
    """The tokenizer, without the processor, with which TRL would take the policy for one that reads images."""
    if processing_class is None:
        options = args.model_init_kwargs or {}
        tokenizer = AutoTokenizer.from_pretrained(
            model if isinstance(model, str) else get_config_model_id(model.config),
            revision=options.get("revision"),
            padding_side="left",
            truncation_side="left",
            trust_remote_code=args.trust_remote_code,
        )
        tokenizer.chat_template = chat_template or tokenizer.chat_template
    else:
        tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
        tokenizer.chat_template = tokenizer.chat_template or chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _start_token_id(model: PreTrainedModel, tokenizer: Any, token: str | None) -> int:
    """The token that starts an image.

    Raises:
        ValueError: Nothing names one, or the tokenizer does not know it.
    """
    if token is None:
        options = getattr(model.generation_config, "generation_kwargs", None) or {}
        if options.get("boi_token_id") is not None:
            return int(options["boi_token_id"])
        token = getattr(tokenizer, "boi_token", None) or "<begin_of_image>"
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(
            f"`image_start_token`: the tokenizer has no token {token!r}. Set it to the token after which the model draws an "
            "image."
        )
    return found


def _inside_language_model(peft_config: Any, view: ImageTokenView) -> Any:
    """The LoRA config with every module outside the language model excluded: the vision tower has the same names."""
    if peft_config is None or not hasattr(peft_config, "exclude_modules"):
        return peft_config
    if peft_config.exclude_modules:
        raise ValueError(
            "`exclude_modules` cannot be set for an image-token model: it keeps the adapter inside the language model. "
            "Name the layers in `target_modules`."
        )
    peft_config = copy.copy(peft_config)
    language_model = view.language_model
    prefix = next(name for name, module in view.named_modules() if module is language_model)
    peft_config.exclude_modules = rf"(?!{re.escape(prefix)}\.).*"
    return peft_config
