"""Weight operations shared by the methods."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


# Weights with an effective token fraction above this count as uniform
UNIFORM_FRACTION = 0.999


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean_one(
    scores: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    valid: Bool[Tensor, "batch 1"] | None = None,
) -> Float[Tensor, "batch tokens"]:
    """Scales non-negative scores to mean 1 over each completion's mask.

    Args:
        scores: (B, T) float, non-negative on the mask.
        mask: (B, T) bool.
        valid: (B, 1) bool. Completions that are False get uniform weights (1 on the mask).

    Returns:
        (B, T) weights, 0 off the mask. Scores whose sum is zero or not finite give uniform weights.
    """
    scores = torch.where(mask, scores, 0.0)
    highest = scores.amax(-1, keepdim=True) if scores.size(-1) else scores.sum(-1, keepdim=True)
    scores = scores / torch.where(highest > 0, highest, 1.0)  # keeps the sum and its inverse from overflowing
    total, count = scores.sum(-1, keepdim=True), mask.sum(-1, keepdim=True)
    usable = torch.isfinite(total) & (total > 0)
    if valid is not None:
        usable = usable & valid
    weights = torch.where(usable, scores * (count / torch.where(usable, total, 1.0)), 1.0)
    return torch.where(mask, weights, 0.0)


def where_finite(
    token_advantages: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens"]:
    """(B, T) token advantages, 0 off the mask, in the dtype of the (B,) sequence advantages. A completion with a NaN or
    infinite one on its mask gets its sequence advantage on every token."""
    usable = (torch.isfinite(token_advantages) | ~mask).all(-1, keepdim=True)
    chosen = torch.where(usable, token_advantages.to(advantages.dtype), advantages.unsqueeze(1))
    return torch.where(mask, chosen, 0.0)


def weights_mean(
    weights: Float[Tensor, "batch tokens"], mask: Shaped[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """(B,) mean weight over each completion's mask; 0 for an empty one."""
    return torch.where(mask.bool(), weights, 0.0).sum(-1) / mask.bool().sum(-1).clamp(min=1)


def effective_token_fraction(
    weights: Float[Tensor, "batch tokens"], mask: Shaped[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """(B,) exp(H(w / sum w)) / T of each completion: 1 for uniform weights, 1 / T if one token has all the weight."""
    mask = mask.bool()
    count = mask.sum(-1).clamp(min=1)
    weights = torch.where(mask, weights, 0.0)
    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total > 0, total, 1.0)
    return torch.exp(torch.special.entr(share).sum(-1)) / count
