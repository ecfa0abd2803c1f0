"""Loads and prepares models that run beside the policy and are not trained."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from .._trl import create_model_from_path, prepare_deepspeed, prepare_fsdp
from .models import vocabulary_size


if TYPE_CHECKING:
    from .context import PolicyContext


def load_frozen(
    context: PolicyContext, path: str, quantization_config: Any = None, *, policys_own: bool = False
) -> PreTrainedModel:
    """Loads a model as TRL loads a KL reference: with the policy's dtype and attention implementation.

    Args:
        context: The trainer.
        path: Folder or hub id.
        quantization_config: The policy's.
        policys_own: Whether these are the policy's own weights, to which its revision applies.
    """
    args = context.args
    kwargs = dict(args.model_init_kwargs or {})
    if not policys_own:
        kwargs.pop("revision", None)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    kwargs.setdefault("dtype", context.model.dtype)
    kwargs.setdefault("attn_implementation", context.model.config._attn_implementation)
    return create_model_from_path(path, **kwargs)


def check_vocabulary(model: nn.Module, policy: nn.Module, what: str, need: str) -> None:
    """Raises `ValueError` unless the model has as many logits as the policy.

    Args:
        model: The model.
        policy: The policy.
        what: The model's name, for the message.
        need: What cannot be done otherwise, and the way out.
    """
    size, policy_size = vocabulary_size(model), vocabulary_size(policy)
    if size != policy_size:
        raise ValueError(f"{what} has a vocabulary of {size}, the policy one of {policy_size}: {need}")


def reads_images(model: nn.Module) -> bool:
    """Whether a transformers model takes images."""
    return "pixel_values" in inspect.signature(type(model).forward).parameters


def check_images(context: PolicyContext, model: nn.Module, what: str) -> None:
    """Raises `ValueError` if the policy's data have a column of images and the model is text-only.

    Args:
        context: The trainer.
        model: The model.
        what: The model's name, for the message.
    """
    columns = {"image", "images"} & set(getattr(context.train_dataset, "column_names", None) or ())
    if context.is_vision and columns and not reads_images(model):
        raise ValueError(no_images(what, model, f"the data have a column {min(columns)!r}"))


def no_images(what: str, model: nn.Module, reason: str) -> str:
    """The message that a model is text-only."""
    return (
        f"{what} is text-only ({type(model).__name__}) and cannot read the policy's prompts: {reason}. Name a "
        "vision-language model of the policy's family."
    )


def freeze(model: nn.Module) -> None:
    """Puts a model in eval mode, without gradients."""
    model.requires_grad_(False)
    model.eval()


def prepare_frozen(context: PolicyContext, model: nn.Module) -> nn.Module:
    """Shards or places a frozen model as the policy is."""
    if context.is_deepspeed_enabled:
        return prepare_deepspeed(model, context.accelerator)
    if context.is_fsdp_enabled:
        return prepare_fsdp(model, context.accelerator)
    return context.accelerator.prepare_model(model, evaluation_mode=True)
