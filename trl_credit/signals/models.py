"""Runs transformers models, sharded or not, for their hidden states."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from .._trl import FORWARD_KEYS


if TYPE_CHECKING:
    from .context import PolicyContext


# The keys that the model itself takes. The other two tell TRL how to split images
MODEL_INPUT_KEYS = tuple(name for name in FORWARD_KEYS if name not in ("num_images", "num_tiles"))


def vocabulary_size(model: nn.Module) -> int | None:
    """Number of logits of a transformers model, even if ZeRO-3 or FSDP2 sharded its head; `None` for a denoiser."""
    head = model.get_output_embeddings()
    if head is None and not hasattr(model.config.get_text_config(), "vocab_size"):
        return None
    return getattr(head, "out_features", None) or model.config.get_text_config().vocab_size


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model without its PEFT wrapper, if any."""
    return model.get_base_model() if is_peft_model(model) else model


class HiddenStates:
    """Captures the hidden states that a model's backbone passes to its output head, without an extra forward.

    The hook is permanent and switched on and off, because `torch.compile` does not notice added or removed hooks.
    """

    def __init__(self, model: nn.Module):
        self._on = False
        self._states: torch.Tensor | None = None
        causal_model(model).base_model.register_forward_hook(self._keep)

    def _keep(self, module, args, output) -> None:
        if self._on:
            self._states = output[0].detach()

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def pop(self, num_tokens: int) -> Float[Tensor, "batch tokens hidden"]:
        """Returns and forgets the (B, T, H) hidden states that predict the last `num_tokens` tokens."""
        states, self._states = self._states, None
        return states[:, -num_tokens - 1 : -1]


def model_inputs(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Builds a model's forward inputs from a batch: prompts and completions, images and token types."""
    inputs = {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        **{key: batch[key] for key in MODEL_INPUT_KEYS if batch.get(key) is not None},
    }
    if "pixel_values" not in inputs:
        inputs.pop("image_grid_thw", None)
    return inputs


def completion_hidden_states(
    context: PolicyContext, model: nn.Module, hidden_states: HiddenStates, batch: dict[str, Any]
) -> Float[Tensor, "batch tokens hidden"]:
    """Computes a backbone's (B, T, H) hidden states for the completions of a batch, in eval mode."""
    with eval_mode(model), context.accelerator.autocast(), hidden_states.captured():
        # Only the backbone's output is needed; one token is the least that `logits_to_keep` can ask for
        model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
    return hidden_states.pop(batch["completion_ids"].size(1))


def check_backbone(model: nn.Module) -> None:
    """Raises `ValueError` if [`completion_hidden_states`] would compute the logits of every token."""
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(
            f"{type(model).__name__} has no `logits_to_keep`, so a forward for its hidden states would compute the "
            "logits of every token. This credit method does not support it."
        )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def padding_affects_output(config: PretrainedConfig) -> str | None:
    """The reason if padding changes a model's output on real tokens by more than rounding, else `None`.

    TRL passes no positions, so left padding shifts them. Rotary embeddings are relative and unaffected, unless they are
    scaled with the padded length.

    Args:
        config: Config of the text model.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    # Either one mapping, or one per kind of layer
    mappings = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    kinds = {mapping.get("rope_type") for mapping in mappings}
    if kinds == {None}:
        return (
            f"a {config.model_type!r} model has no rotary embeddings, so that padding may shift its tokens' positions."
        )
    if scaled := kinds & {"dynamic", "longrope"}:
        return f"rotary embeddings of type {scaled.pop()!r} are scaled with the padded length."
    return None
