"""Sequence-level importance ratios that keep token credit: GSPO-token (arXiv 2507.18071, equations 13 to 15).

A sequence-level ratio s_i has one value and one gradient for the whole completion, so token advantages with mean A_i
have the same effect as A_i. GSPO-token keeps the value but gives each token its own gradient:

    s_i    = exp(mean_t (log pi(y_t) - log pi_old(y_t)))
    s_i,t  = sg[s_i] * pi(y_t) / sg[pi(y_t)]

Clipping acts on the value s_i, so it treats all tokens of a completion alike if their advantages have the same sign.
The gradient of token t is s_i * A_i,t * grad log pi(y_t). TRL's token-level loss computes exactly that if the old
policy's log-probs are replaced. Their mean distance from the live policy's stays the true one, so TRL's off-policy mask
keeps the same completions.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def sequence_token_old_logps(
    logps: Float[Tensor, "batch tokens"],
    old_logps: Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens"]:
    """Computes old log-probs that turn a token-level ratio exp(logps - old) into GSPO-token's.

    Args:
        logps: (B, T) log-probs of the live policy.
        old_logps: (B, T) log-probs of the policy that generated.
        mask: (B, T) bool, the tokens in the loss. Values off the mask are ignored.

    Returns:
        (B, T) log sg[pi(y_t)] - log s_i, without gradient.
    """
    logps = logps.detach()
    log_ratio = torch.where(mask, logps - old_logps, 0.0)
    return logps - log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
