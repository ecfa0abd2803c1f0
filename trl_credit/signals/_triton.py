"""The fold of [`compare_distributions`] as a Triton kernel: each tile of logits is read once.

It is for CUDA (and XPU) tensors, and for CPU tensors with `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers.utils import is_triton_available


if is_triton_available():
    import triton
    import triton.language as tl

    @triton.jit
    def _tanh(x):
        # Exact to float32 rounding where x is small: a difference of exponentials would not be
        square = x * x
        series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
        exponential = tl.exp(-2 * tl.abs(x))
        large = (1 - exponential) / (1 + exponential)
        return tl.where(square < 0.04, series, tl.where(x < 0, -large, large))

    @triton.jit
    def _fold_kernel(
        x_ptr,
        y_ptr,
        stats_ptr,
        x_stride,
        y_stride,
        stat_stride,
        token_stride,
        columns,
        LOWEST: tl.constexpr,  # noqa: N803
        FLOOR: tl.constexpr,  # noqa: N803
        RATIO_LIMIT: tl.constexpr,  # noqa: N803
        HELLINGER: tl.constexpr,  # noqa: N803
        ENTROPY: tl.constexpr,  # noqa: N803
        KL: tl.constexpr,  # noqa: N803
        REVERSE_KL: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # One program a token; the columns of a tile fit its registers
        token = tl.program_id(0).to(tl.int64)
        place = tl.arange(0, BLOCK)
        inside = place < columns
        x = tl.load(x_ptr + token * x_stride + place, mask=inside, other=-float("inf"))
        y = tl.load(y_ptr + token * y_stride + place, mask=inside, other=-float("inf"))
        stats = stats_ptr + token * token_stride
        # Maxima and clamps drop NaN; this puts it back
        poison_p = tl.where(tl.sum((x != x).to(tl.int32), axis=0) > 0, float("nan"), 0.0)
        poison_q = tl.where(tl.sum((y != y).to(tl.int32), axis=0) > 0, float("nan"), 0.0)

        max_p = tl.maximum(tl.max(x, axis=0), LOWEST)
        max_q = tl.maximum(tl.max(y, axis=0), LOWEST)
        log_u = tl.maximum(x - max_p, FLOOR)
        u = tl.where(inside, tl.exp(log_u), 0.0)
        v = tl.where(inside, tl.exp(tl.maximum(y - max_q, FLOOR)), 0.0)
        sum_p = tl.sum(u * u, axis=0) + poison_p
        sum_q = tl.sum(v * v, axis=0) + poison_q
        tl.store(stats, max_p)
        tl.store(stats + stat_stride, sum_p)
        tl.store(stats + 2 * stat_stride, max_q)
        tl.store(stats + 3 * stat_stride, sum_q)
        if ENTROPY:
            entropy = -2 * tl.sum(u * u * log_u, axis=0) / sum_p
            tl.store(stats + 5 * stat_stride, entropy)
        u = u / tl.sqrt(sum_p)
        v = v / tl.sqrt(sum_q)
        if HELLINGER:
            tl.store(stats + 4 * stat_stride, tl.sum((u - v) * (u - v), axis=0) / 2)
        if KL or REVERSE_KL:
            h = y - x
            h = tl.where(inside & (h == h), h, 0.0) + (max_p - max_q + tl.log(sum_p / sum_q) / 2)
            p = u * u
            q = v * v
            difference = tl.sum(_tanh(h) * (p + q), axis=0)
            if KL:
                forward = difference - 2 * tl.sum(tl.minimum(h, RATIO_LIMIT) * p, axis=0)
                tl.store(stats + 6 * stat_stride, forward)
            if REVERSE_KL:
                backward = 2 * tl.sum(tl.maximum(h, -RATIO_LIMIT) * q, axis=0) - difference
                tl.store(stats + 7 * stat_stride, backward)


def use_triton(device: torch.device) -> bool:
    return is_triton_available() and device.type in ("cuda", "xpu")


def fold_triton(x: torch.Tensor, y: torch.Tensor, stats: torch.Tensor, outputs: Collection[str]) -> None:
    """`_fold` of statistics.py, which states the arguments; `x` and `y` are not overwritten."""
    from .statistics import _FLOOR, _LOWEST, _RATIO_LIMIT

    tokens, columns = x.shape
    if not tokens:
        return
    _fold_kernel[(tokens,)](
        x,
        y,
        stats,
        x.stride(0),
        y.stride(0),
        stats.stride(0),
        stats.stride(1),
        columns,
        LOWEST=_LOWEST,
        FLOOR=_FLOOR,
        RATIO_LIMIT=_RATIO_LIMIT,
        HELLINGER="squared_hellinger" in outputs or "bhattacharyya" in outputs,
        ENTROPY="entropy" in outputs,
        KL="kl" in outputs,
        REVERSE_KL="reverse_kl" in outputs,
        BLOCK=triton.next_power_of_2(columns),
        num_warps=8,
    )
