"""Random numbers that depend on a completion's own tokens only.

A completion gets the same numbers however its rows are padded, dealt to micro-batches or processes, and after a resume.
"""

import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor


def mixed(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's finalizer, int64 to int64."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def draws(
    token_ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], seed: int = 0
) -> Float32[Tensor, "batch tokens"]:
    """Draws a number for each token of a completion.

    Args:
        token_ids: (B, T) int.
        mask: (B, T) bool, the tokens that count. Others have no influence.
        seed: Different seeds give different numbers.

    Returns:
        (B, T) float32 in [0, 1), meaningless off the mask.
    """
    places = mixed(mask.long().cumsum(-1) + 7919 * (seed + 1))
    completion = torch.where(mask, mixed(token_ids.long() + places), 0).sum(-1, keepdim=True)
    return (mixed(completion + places) & 0xFFFFFF).float() / 2**24
