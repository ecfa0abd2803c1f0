"""Forwards of transformers models for their hidden states, sharded or not."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PretrainedConfig

from .._trl import FORWARD_KEYS


if TYPE_CHECKING:
    from .context import PolicyContext


# Those among them that the model itself takes; the others tell TRL how to cut them
MODEL_INPUT_KEYS = tuple(name for name in FORWARD_KEYS if name not in ("num_images", "num_tiles"))


def vocabulary_size(model: nn.Module) -> int:
    """Number of logits of a transformers model; also right where ZeRO-3 or FSDP2 has sharded the head."""
    head = model.get_output_embeddings()
    return getattr(head, "out_features", None) or model.config.get_text_config().vocab_size


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside: without PEFT."""
    return model.get_base_model() if is_peft_model(model) else model


class HiddenStates:
    """Takes what a model's backbone hands to its output head, without a forward of its own.

    The hook stays for good and is switched on and off: `torch.compile` does not notice hooks that come and go.
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

    def pop(self, num_tokens: int) -> torch.Tensor:
        """(B, T, H) hidden states that give the logits of the last `num_tokens` tokens; they are not kept."""
        states, self._states = self._states, None
        return states[:, -num_tokens - 1 : -1]


def model_inputs(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The inputs of a model's forward from a batch: prompts and completions, images and token types."""
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
) -> torch.Tensor:
    """(B, T, H) hidden states of a model's backbone for the completions of a batch, in eval mode."""
    with eval_mode(model), context.accelerator.autocast(), hidden_states.captured():
        # Only the backbone's output is wanted; logits of one token are the fewest that can be asked for
        model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
    return hidden_states.pop(batch["completion_ids"].size(1))


def check_backbone(model: nn.Module) -> None:
    """Raises `ValueError` where [`completion_hidden_states`] would compute the logits of every token."""
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
    """Why a model's output on the tokens depends on their padding by more than rounding; `None` if it does not.

    TRL passes no positions, so that padding on the left shifts them: rotary embeddings, which are relative, do not mind,
    unless they are scaled with the padded length.

    Args:
        config: The text model's.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    # One mapping, or one for each kind of layer
    mappings = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    kinds = {mapping.get("rope_type") for mapping in mappings}
    if kinds == {None}:
        return (
            f"a {config.model_type!r} model has no rotary embeddings, so that padding may shift its tokens' positions."
        )
    if scaled := kinds & {"dynamic", "longrope"}:
        return f"rotary embeddings of type {scaled.pop()!r} are scaled with the padded length."
    return None
