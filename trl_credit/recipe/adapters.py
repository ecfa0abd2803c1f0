"""Continues training from a LoRA adapter."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers.utils import ADAPTER_CONFIG_NAME
from trl import ModelConfig, get_peft_config
from trl.trainer.utils import create_model_from_path

from ..model_files import LocalModel, base_of_adapter


def continue_adapter(
    arguments: dict[str, Any], model_args: ModelConfig, keep_init_kwargs: bool = False
) -> dict[str, Any]:
    """If the model is an adapter, puts it, loaded on its base model, into the trainer's arguments, to train it further.
    A reference or a KL penalty then compares with the adapter's current weights.

    Args:
        arguments: From `trainer_arguments`.
        model_args: The recipe's model settings.
        keep_init_kwargs: Whether to leave `model_init_kwargs` in the trainer's arguments, for a reward model.
    """
    args, adapter = arguments["args"], arguments["model"]
    base = base_of_adapter(adapter, model_args.model_revision)
    if base is None:
        return arguments
    kwargs = {**(args.model_init_kwargs or {}), "quantization_config": arguments["quantization_config"]}
    kwargs.pop("revision", None)  # it is the adapter's
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if kwargs["quantization_config"] is None:
        del kwargs["quantization_config"]
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    try:
        model = PeftModel.from_pretrained(
            create_model_from_path(base, **kwargs),
            adapter,
            revision=model_args.model_revision,
            is_trainable=True,
            autocast_adapter_dtype="quantization_config" in kwargs or not zero3,  # as for TRL's own adapters
        )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`model_name_or_path`: cannot read the adapter's weights in {adapter!r}: {reason}") from error
    if not keep_init_kwargs:
        args.model_init_kwargs = None
    tokenizer = LocalModel(base, adapter, model_args.model_revision, args.trust_remote_code).tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return arguments | {"model": model, "peft_config": None, "quantization_config": None, "processing_class": tokenizer}


def refuse_earlier_adapter(output_dir: str) -> None:
    """Raises `ValueError` if there is an adapter where a run will save a whole model, as loaders take the adapter."""
    if (Path(output_dir).expanduser() / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(
            f"`output_dir`: {output_dir!r} has the adapter of an earlier run ({ADAPTER_CONFIG_NAME}), which would be loaded "
            "in place of the model that this run saves there. Name another folder, or remove the adapter's files."
        )


def check_adapter(adapter: str, model_args: ModelConfig) -> None:
    """Raises `ValueError` if the recipe asks for a different adapter from the one it continues."""
    asked = get_peft_config(model_args)
    if asked is None:
        return
    there = PeftConfig.from_pretrained(adapter, revision=model_args.model_revision)
    if there.peft_type != asked.peft_type:
        raise ValueError(
            f"`use_peft` makes a LoRA adapter, but {adapter!r} is one of kind {there.peft_type.value}. Training "
            "continues it with its own settings: remove `use_peft`."
        )
    wrong = []
    for name, attribute in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("use_rslora", "use_rslora"),
        ("use_dora", "use_dora"),
    ):
        ours, theirs = getattr(asked, attribute), getattr(there, attribute)
        if ours != theirs:
            wrong.append(f"`{name}` is {ours}, the adapter's {theirs}")
    if wrong:
        raise ValueError(
            f"`model_name_or_path`: the adapter {adapter!r} keeps its own settings, but {'; '.join(wrong)}. Remove "
            "`use_peft` and the LoRA settings, or name the base model for a new adapter."
        )
