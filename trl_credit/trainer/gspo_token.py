"""Importance ratios over the sequence that keep token credit: GSPO-token (arXiv 2507.18071, equations 13 to 15).

A sequence-level ratio s_i has one value and one gradient for the whole completion, so token advantages of mean A_i act as
A_i. GSPO-token keeps the value and gives each token its own gradient:

    s_i    = exp(mean_t (log pi(y_t) - log pi_old(y_t)))
    s_i,t  = sg[s_i] * pi(y_t) / sg[pi(y_t)]

Clipping acts on the value s_i, alike for all tokens of a completion whose advantages have one sign; the gradient of token
t is s_i * A_i,t * grad log pi(y_t). TRL's token-level loss computes just that from other log-probs of the old policy, whose
mean distance from the live policy's is the true one, so that TRL's off-policy mask keeps the same completions.
"""

import torch


def sequence_token_old_logps(logps: torch.Tensor, old_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The old log-probs with which a token-level ratio exp(logps - old) is GSPO-token's.

    Args:
        logps: (B, T) log-probs of the live policy.
        old_logps: (B, T) log-probs of the policy that generated.
        mask: (B, T) bool, the tokens in the loss; what stands elsewhere does not matter.

    Returns:
        (B, T), without gradient: log sg[pi(y_t)] - log s_i.
    """
    logps = logps.detach()
    log_ratio = torch.where(mask, logps - old_logps, 0.0)
    return logps - log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
