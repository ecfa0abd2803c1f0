"""Statistics of two next-token distributions, computed from hidden states and output heads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from .._trl import maybe_gather_lm_head_ctx
from ._triton import fold_triton, use_triton


# Statistics that `compare_distributions` can compute
STATISTICS = ("squared_hellinger", "bhattacharyya", "entropy", "kl", "reverse_kl")

# Tokens whose hidden states are gathered and converted at a time
_TOKENS = 4096
# (tokens, vocabulary) size of a tile of logits, of which two exist at once: large enough for full matmul speed
_CPU_TILE = (512, 2048)
_GPU_TILE = (2048, 4096)
# Tokens that a CPU processes at a time after the matmul, so that tiles and scratch space stay in its caches
_CACHED_ROWS = 128

# Maximum of a block without a finite logit, so that differences of maxima are not NaN; exact in float32
_LOWEST = -(2.0**100)
# Square roots of probabilities are at least exp(-36) times the block's largest. That keeps their squares above slow
# denormals and makes the product with an infinite log-ratio infinite
_FLOOR = -36.0
# Finite stand-in for the log-ratio of a token that one side cannot emit; negligible times exp(2 * _FLOOR)
_RATIO_LIMIT = 1e5


# Older releases, and older ones for ROCm, refuse a product of half precision that is added to float32
_MIXED_PRODUCT = torch.__version__ >= (2, 10) and torch.version.hip is None


@dataclass(frozen=True)
class Head:
    """Turns hidden states into logits: `softcap(scale * (h @ weight.T + bias))`, weight (V, H), bias (V,)."""

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def rounded(self, dtype: torch.dtype, columns: slice = slice(None)) -> Head:
        """The head for part of the vocabulary, its weight rounded to `dtype`, but stored in float32 except on CUDA."""
        weight = self.weight[columns].to(dtype)
        bias = None if self.bias is None else self.bias[columns].float()
        return replace(self, weight=weight if weight.device.type == "cuda" else weight.float(), bias=bias)

    def logits(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        dtype: torch.dtype,
        divisor: float = 1.0,
        out: Float32[Tensor, "tokens vocabulary"] | None = None,
    ) -> Float32[Tensor, "tokens vocabulary"]:
        """(N, V) float32 logits of (N, H) hidden states, divided by `divisor`, written to `out` if given.

        Inputs are rounded to `dtype`; the product is accumulated and kept in float32.
        """
        if out is None:
            out = hidden_states.new_empty(hidden_states.size(0), self.weight.size(0), dtype=torch.float32)
        hidden_states, weight = hidden_states.to(dtype), self.weight.t()
        # The factors cost nothing inside the product
        factor = self.scale / (divisor if self.softcap is None else self.softcap)
        if self.bias is not None:
            out.copy_(self.bias)
        beta = 0.0 if self.bias is None else factor
        if weight.dtype == dtype != torch.float32 and weight.device.type == "cuda" and _MIXED_PRODUCT:
            torch.addmm(out, hidden_states, weight, out_dtype=torch.float32, beta=beta, alpha=factor, out=out)
        else:
            torch.addmm(out, hidden_states.float(), weight.float(), beta=beta, alpha=factor, out=out)
        return out if self.softcap is None else out.tanh_().mul_(self.softcap / divisor)


def logit_scale(config: PreTrainedConfig) -> float:
    """The factor that a model's forward applies to its head's output. Its name differs between architectures."""
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
    """Yields the full output head of a transformers model, or `module` instead, gathered if ZeRO-3 or FSDP2 sharded it.
    All processes must enter."""
    module = model.get_output_embeddings() if module is None else module
    weight, bias = module.weight, getattr(module, "bias", None)
    with maybe_gather_lm_head_ctx(weight, bias):
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        if isinstance(bias, DTensor):
            bias = bias.full_tensor()
        text_config = model.config.get_text_config()
        yield Head(weight, bias, logit_scale(model.config), getattr(text_config, "final_logit_softcapping", None))


def compare_distributions(
    hidden_p: Float[Tensor, "batch tokens hidden_p"],
    head_p: Head,
    hidden_q: Float[Tensor, "batch tokens hidden_q"],
    head_q: Head,
    mask: Bool[Tensor, "batch tokens"],
    outputs: Collection[str] = ("squared_hellinger",),
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Float32[Tensor, "batch tokens"]]:
    """Distances between the next-token distributions p and q of two models, in one pass over the vocabulary.

    Logits exist for only one tile of tokens and vocabulary at a time. Each block of the vocabulary yields its mass
    under p and q and the statistics of p and q within that block. The chain rule over blocks then gives the totals:

        entropy(p)  = entropy(P) + sum_k P_k entropy(p_k)
        KL(p || q)  = KL(P || Q) + sum_k P_k KL(p_k || q_k)
        H2(p, q)    = H2(P, Q) + sum_k sqrt(P_k Q_k) H2(p_k, q_k)

    P, Q are the distributions over blocks and p_k, q_k those within block k. Nothing is rescaled, and since no term is
    negative, nothing cancels when p and q are nearly equal.

    Args:
        hidden_p: (B, T, H_p) hidden states of one model.
        head_p: Its head.
        hidden_q: (B, T, H_q) hidden states of the other.
        head_q: Its head, with the same vocabulary size; may be the same.
        mask: (B, T) bool; only these tokens are computed.
        outputs: What to compute, of `STATISTICS`: "squared_hellinger" 1 - sum_v sqrt(p_v q_v), "bhattacharyya"
            sum_v sqrt(p_v q_v), "entropy" of p, "kl" KL(p || q), "reverse_kl" KL(q || p), in nats.
        temperature: Divides the logits of both models.
        dtype: Hidden states and weights are rounded to it before the product.

    Returns:
        A (B, T) float32 tensor without gradient for each of `outputs`, 0 off the mask. KL is infinite if one side emits
        a token that is impossible (logit -inf) for the other; NaN hidden states give NaN. The error against float64
        from the same logits is at most 1e-6 + 4 eps max|logit| (for KL, relative to max(KL, 1)), and a squared
        Hellinger distance of 1e-8 has a relative error below 1e-2.

    Raises:
        ValueError: An unknown statistic, or heads of different vocabulary sizes.
    """
    unknown = sorted(set(outputs) - set(STATISTICS))
    if unknown:
        raise ValueError(f"Unknown statistics {', '.join(unknown)}; known: {', '.join(STATISTICS)}")
    vocab_size = head_p.weight.size(0)
    if head_q.weight.size(0) != vocab_size:
        raise ValueError(f"The heads have different vocabulary sizes, {vocab_size} and {head_q.weight.size(0)}")
    device = head_p.weight.device  # with a model split across devices, the head's device
    results = {name: torch.zeros(mask.shape, dtype=torch.float32, device=mask.device) for name in outputs}
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for tokens in zip(*(places.split(_TOKENS) for places in mask.nonzero(as_tuple=True)), strict=True):
            # Only these tokens are copied, rounded and moved, never the whole batch
            chunk_p, chunk_q = (
                hidden[tuple(places.to(hidden.device) for places in tokens)].to(device, dtype)
                for hidden in (hidden_p, hidden_q)
            )
            stats = _fold_vocabulary(chunk_p, head_p, chunk_q, head_q, outputs, temperature, dtype)
            for name, values in _combine(stats, outputs).items():
                results[name][tokens] = values.to(mask.device, torch.float32)
    return results


def _fold_vocabulary(
    tokens_p: Float[Tensor, "tokens hidden_p"],
    head_p: Head,
    tokens_q: Float[Tensor, "tokens hidden_q"],
    head_q: Head,
    outputs: Collection[str],
    temperature: float,
    dtype: torch.dtype,
) -> Float32[Tensor, "8 tokens blocks"]:
    """(8, N, blocks) float32 statistics of (N, H) hidden states in each block of the vocabulary, see `_fold`."""
    device, num_tokens, vocab_size = tokens_p.device, tokens_p.size(0), head_p.weight.size(0)
    height, width = _CPU_TILE if device.type == "cpu" else _GPU_TILE
    height, width = max(min(height, num_tokens), 1), min(width, vocab_size)
    fold = _fold
    if use_triton(device):
        fold = partial(fold_triton, lowest=_LOWEST, floor=_FLOOR, ratio_limit=_RATIO_LIMIT)
    tiles = torch.empty(2, height * width, dtype=torch.float32, device=device)
    stats = torch.empty(8, num_tokens, -(-vocab_size // width), dtype=torch.float32, device=device)
    for block in range(stats.size(2)):
        columns = slice(block * width, (block + 1) * width)
        part_p, part_q = head_p.rounded(dtype, columns), head_q.rounded(dtype, columns)
        for start in range(0, num_tokens, height):
            rows = slice(start, min(start + height, num_tokens))
            shape = (rows.stop - rows.start, part_p.weight.size(0))
            x, y = tiles[:, : math.prod(shape)].view(2, *shape)
            # Half the logits: their exponentials are square roots of (unnormalised) probabilities
            part_p.logits(tokens_p[rows], dtype, 2 * temperature, out=x)
            part_q.logits(tokens_q[rows], dtype, 2 * temperature, out=y)
            fold(x, y, stats[:, rows, block], outputs)
    return stats


def _fold(
    x: Float32[Tensor, "tokens vocabulary"],
    y: Float32[Tensor, "tokens vocabulary"],
    stats: Float32[Tensor, "8 tokens"],
    outputs: Collection[str],
) -> None:
    """Statistics of one block of the vocabulary.

    Args:
        x: (N, C) halves of the logits of p; overwritten.
        y: (N, C) halves of the logits of q; overwritten.
        stats: (8, N), receives the maxima of x, the sums of exp(2 (x - maximum)), the same for y, and, if in `outputs`,
            within the block: the squared Hellinger distance, the entropy of p without the logarithm of its sum,
            KL(p || q) and KL(q || p).
        outputs: As in [`compare_distributions`].
    """
    height = _CACHED_ROWS if x.device.type == "cpu" else x.size(0)
    scratch = x.new_empty(3, min(height, x.size(0)), x.size(1))
    for rows in zip(x.split(height), y.split(height), stats.split(height, 1), strict=True):
        _fold_rows(*rows, *scratch[:, : rows[0].size(0)], outputs)


def _fold_rows(
    x: torch.Tensor,
    y: torch.Tensor,
    stats: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    outputs: Collection[str],
) -> None:
    """`_fold` for few enough rows to stay in the CPU cache; u, v and w are scratch space shaped like x."""
    max_p, max_q = (z.amax(1, keepdim=True).clamp_(min=_LOWEST) for z in (x, y))
    torch.sub(x, max_p, out=v).clamp_(min=_FLOOR)
    torch.exp(v, out=u)
    sum_p = torch.mul(u, u, out=w).sum(1, keepdim=True)
    if "entropy" in outputs:
        stats[5] = -2 * w.mul_(v).sum(1) / sum_p.squeeze(1)
    torch.sub(y, max_q, out=v).clamp_(min=_FLOOR).exp_()
    sum_q = torch.mul(v, v, out=w).sum(1, keepdim=True)
    stats[:4] = torch.cat([max_p, sum_p, max_q, sum_q], 1).t()
    # From here on, u and v are square roots of the probabilities within the block
    u *= sum_p.rsqrt()
    v *= sum_q.rsqrt()
    if "squared_hellinger" in outputs or "bhattacharyya" in outputs:
        stats[4] = torch.sub(u, v, out=w).square_().sum(1) / 2
    if "kl" in outputs or "reverse_kl" in outputs:
        # Half of log(q / p): accurate if p and q are close, and 0 instead of NaN for a token that neither can emit
        h = y.sub_(x).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        h += max_p - max_q + (sum_p / sum_q).log() / 2
        p, q = u.square_(), v.square_()
        # (p + q) tanh(h) is q - p, which sums to 0 except for the rounding of p, q and h. Adding it removes that
        # rounding from the sums of p log(q / p): without it their error is first order, while KL is second order.
        difference = torch.tanh(h, out=x).mul_(torch.add(p, q, out=w)).sum(1)
        if "kl" in outputs:
            stats[6] = difference - 2 * torch.clamp(h, max=_RATIO_LIMIT, out=w).mul_(p).sum(1)
        if "reverse_kl" in outputs:
            stats[7] = 2 * torch.clamp(h, min=-_RATIO_LIMIT, out=w).mul_(q).sum(1) - difference


def _combine(
    stats: Float32[Tensor, "8 tokens blocks"], outputs: Collection[str]
) -> dict[str, Float64[Tensor, " tokens"]]:
    """(N,) float64 statistics of the whole distributions, from `_fold`'s (8, N, blocks) block statistics."""
    # Subtracting block masses needs float64, which not every accelerator has: others move these few numbers to the CPU
    stats = stats.to(stats.device if stats.device.type == "cuda" else "cpu").double()
    max_p, sum_p, max_q, sum_q, hellinger, entropy, kl, reverse_kl = stats
    log_p, log_q = (
        torch.log_softmax((2 * top + total.log()).masked_fill((top == _LOWEST).all(1, keepdim=True), torch.nan), 1)
        for top, total in ((max_p, sum_p), (max_q, sum_q))
    )
    # Never 0, because 0 times a block's infinite KL would be NaN
    p, q = (log_mass.clamp(min=-700).exp() for log_mass in (log_p, log_q))
    results = {}
    if "squared_hellinger" in outputs or "bhattacharyya" in outputs:
        distance = (p.sqrt() - q.sqrt()).square().sum(1) / 2 + ((p * q).sqrt() * hellinger).sum(1)
        results["squared_hellinger"], results["bhattacharyya"] = distance.clamp(max=1), (1 - distance).clamp(min=0)
    if "entropy" in outputs:
        results["entropy"] = (p * (entropy + sum_p.log() - log_p)).sum(1)
    if "kl" in outputs:
        results["kl"] = (p * (kl + log_p - log_q)).sum(1).clamp(min=0)
    if "reverse_kl" in outputs:
        results["reverse_kl"] = (q * (reverse_kl + log_q - log_p)).sum(1).clamp(min=0)
    return {name: results[name] for name in outputs}
