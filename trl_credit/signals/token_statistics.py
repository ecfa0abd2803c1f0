"""Statistics of the next-token distributions along given tokens, computed from hidden states and the output head."""

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from .divergence import Head


# Logits that exist at once: 128 MB
_LOGITS = 2**25


def token_statistics(
    hidden_states: Float[Tensor, "batch tokens hidden"],
    head: Head,
    token_ids: Int[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Float32[Tensor, "batch tokens"]]:
    """Log-probs of tokens and the sum of squared probabilities, without the logits of a whole batch.

    Args:
        hidden_states: (B, T, H) states that predict the tokens.
        head: The output head.
        token_ids: (B, T) int.
        mask: (B, T) bool; only these tokens are computed.
        temperature: Divides the logits.
        dtype: Hidden states and weights are rounded to it before the product.

    Returns:
        (B, T) float32, 0 off the mask: `logps`, nats, and `sum_squared_probs`, sum_v pi(v)^2.
    """
    places = mask.nonzero(as_tuple=True)
    head = head.rounded(dtype)
    device = head.weight.device
    results = {name: torch.zeros(mask.shape, device=mask.device) for name in ("logps", "sum_squared_probs")}
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for chunk in zip(*(p.split(max(1, _LOGITS // head.weight.size(0))) for p in places), strict=True):
            logits = head.logits(hidden_states[chunk].to(device), dtype, divisor=temperature)
            total = logits.logsumexp(-1)
            chosen = logits.gather(1, token_ids[chunk].to(device).unsqueeze(1)).squeeze(1)
            results["logps"][chunk] = (chosen - total).to(mask.device)
            squared = torch.exp(logits.mul_(2).logsumexp(-1) - 2 * total)
            results["sum_squared_probs"][chunk] = squared.to(mask.device)
    return results
