"""A diffusers denoiser as the model of TRL's trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


# Tokens of `step_tokenizer`
PAD, END = 0, 1


class DenoiserConfig(PretrainedConfig):
    """Config of a [`DenoiserPolicy`]. There is nothing to set: the denoiser has its own."""

    model_type = "trl_credit_denoiser"


class DenoiserPolicy(PreTrainedModel):
    """What TRL's trainer asks of a model, around a diffusers denoiser.

    The denoiser always runs in eval mode: label or condition dropout would make the update's log-probs differ from the
    sampler's.

    Args:
        denoiser: A UNet or transformer of diffusers.
        name: The pipeline's name or path, for model cards.
    """

    config_class = DenoiserConfig
    base_model_prefix = "denoiser"
    main_input_name = "latents"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, denoiser: nn.Module, name: str = ""):
        ends = {"pad_token_id": PAD, "eos_token_id": END}
        super().__init__(DenoiserConfig(name_or_path=name, **ends))
        self.denoiser = denoiser
        self.generation_config = GenerationConfig(**ends)
        self._no_split_modules = list(getattr(denoiser, "_no_split_modules", None) or [])
        self._inputs_require_grad = False
        self.eval()

    def train(self, mode: bool = True) -> DenoiserPolicy:
        super().train(mode)
        self.denoiser.eval()
        return self

    def forward(self, latents_name: str, **arguments: Any) -> torch.Tensor:
        """The denoiser's prediction, in its own dtype.

        Args:
            latents_name: Which argument holds the latents.
            **arguments: The denoiser's arguments. Floating-point tensors are cast to its dtype, except for positions
                (names that end in `_ids`), which half precision would round.
        """
        dtype = next(p.dtype for p in self.denoiser.parameters() if p.is_floating_point())
        arguments = {name: _cast(name, value, dtype) for name, value in arguments.items()}
        if self._inputs_require_grad and torch.is_grad_enabled():
            arguments[latents_name] = arguments[latents_name].detach().requires_grad_()
        return self.denoiser(**arguments, return_dict=False)[0]

    def get_output_embeddings(self) -> None:
        """There are none."""
        return

    def get_input_embeddings(self) -> None:
        """There are none; FSDP asks."""
        return

    # Gradient checkpointing is the denoiser's own

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable = torch.utils.checkpoint.checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(f"A denoiser checkpoints all of its blocks, not every {every_n_layers}th.")
        if enable:
            self.denoiser.enable_gradient_checkpointing(gradient_checkpointing_func)
        elif self.is_gradient_checkpointing:
            self.denoiser.disable_gradient_checkpointing()

    def enable_input_require_grads(self) -> None:
        """Lets reentrant checkpointing reach adapters although the denoiser's own weights are frozen."""
        self._inputs_require_grad = True


def _cast(name: str, value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(key, entry, dtype) for key, entry in value.items()}
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not name.endswith("_ids"):
        return value if name == "timestep" else value.to(dtype)
    return value


def step_tokenizer(count: int) -> PreTrainedTokenizerFast:
    """A tokenizer of a sampler's steps, for TRL's logs: token `i + 2` is step i; the last trained step is the end."""
    words = ["<pad>", "<end>", *(f"step{i}" for i in range(count))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
