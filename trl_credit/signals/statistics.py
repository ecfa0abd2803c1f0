"""Statistics of two next-token distributions, from hidden states and output heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig
from trl.trainer.utils import maybe_gather_lm_head_ctx


# Logits of one side that exist at once: 2**24 float32 values are 64 MB
_TILE_ELEMENTS = 2**24


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: `softcap(scale * (h @ weight.T + bias))`, weight (V, H), bias (V,)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def rounded(self, dtype: torch.dtype) -> Head:
        """The head with its weight rounded to `dtype`, and held in float32 where matrix products need that."""
        weight = self.weight.to(dtype)
        return replace(self, weight=weight if weight.device.type == "cuda" else weight.float())

    def logits(self, hidden_states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, V) float32 logits of (N, H) hidden states; the inputs are rounded to `dtype`, the product is not."""
        hidden_states = hidden_states.to(dtype)
        if self.weight.dtype == dtype != torch.float32 and hidden_states.device.type == "cuda":
            logits = torch.mm(hidden_states, self.weight.t(), out_dtype=torch.float32)
        else:
            logits = torch.mm(hidden_states.float(), self.weight.float().t())
        if self.bias is not None:
            logits += self.bias.float()
        logits *= self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def logit_scale(config: PreTrainedConfig) -> float:
    """What a model's forward multiplies its head's output by (several architectures name it differently)."""
    config = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


@contextlib.contextmanager
def gathered_head(model: nn.Module, module: nn.Module | None = None) -> Iterator[Head]:
    """The output head of a transformers model (or another `module` in its place), whole, also where ZeRO-3 or FSDP2 has
    sharded it. Every process must enter."""
    module = model.get_output_embeddings() if module is None else module
    weight, bias = module.weight, getattr(module, "bias", None)
    with maybe_gather_lm_head_ctx(weight, bias):
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        if isinstance(bias, DTensor):
            bias = bias.full_tensor()
        text_config = model.config.get_text_config()
        yield Head(weight, bias, logit_scale(model.config), getattr(text_config, "final_logit_softcapping", None))


def squared_hellinger(
    hidden_p: torch.Tensor,
    head_p: Head,
    hidden_q: torch.Tensor,
    head_q: Head,
    mask: torch.Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Squared Hellinger distance 1 - sum_v sqrt(p_v q_v) of the next-token distributions of two models.

    It is computed as half the sum of (sqrt(p_v) - sqrt(q_v))^2, which does not cancel where p and q are close, a chunk
    of tokens at a time: (B, T, V) logits never exist.

    Args:
        hidden_p: (B, T, H_p) hidden states of one model.
        head_p: Its head.
        hidden_q: (B, T, H_q) hidden states of the other.
        head_q: Its head, with the same vocabulary size.
        mask: (B, T) bool; only these tokens are computed.
        temperature: What the logits of both are divided by.
        dtype: What hidden states and weights are rounded to before the product.

    Returns:
        (B, T) float32 in [0, 1] up to rounding, without gradient; 0 off the mask.
    """
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    device = head_p.weight.device  # a model split across devices ends where its head is
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        tokens_p, tokens_q = (hidden[mask.to(hidden.device)].to(device) for hidden in (hidden_p, hidden_q))
        head_p, head_q = head_p.rounded(dtype), head_q.rounded(dtype)
        values = torch.empty(tokens_p.size(0), dtype=torch.float32, device=device)
        chunk = max(1, _TILE_ELEMENTS // head_p.weight.size(0))
        for start in range(0, tokens_p.size(0), chunk):
            rows = slice(start, start + chunk)
            root_p = torch.log_softmax(head_p.logits(tokens_p[rows], dtype) / temperature, -1).div_(2).exp_()
            root_q = torch.log_softmax(head_q.logits(tokens_q[rows], dtype) / temperature, -1).div_(2).exp_()
            values[rows] = root_p.sub_(root_q).square_().sum(-1) / 2
        result[mask] = values.to(result.device)
    return result
