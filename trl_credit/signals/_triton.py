"""The fold of [`compare_distributions`] as a Triton kernel that reads each tile of logits once.

Works on CUDA and XPU tensors, and on CPU tensors with `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers.utils import is_triton_available


if is_triton_available():
    import triton
    import triton.language as tl

    @triton.jit
    def _tanh(h):
        # Exponentials cancel for small h, where the result needs a small relative error; the series does not
        s = h * h
        series = h * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
        e = tl.exp(-2 * tl.abs(h))
        t = (1 - e) / (1 + e)
        return tl.where(s < 0.0625, series, tl.where(h < 0, -t, t))

    @triton.jit
    def _fold_kernel(
        x_ptr,
        y_ptr,
        stats_ptr,
        x_stride,
        y_stride,
        stat_stride,
        token_stride,
        num_columns,
        LOWEST: tl.constexpr,  # noqa: N803
        FLOOR: tl.constexpr,  # noqa: N803
        RATIO_LIMIT: tl.constexpr,  # noqa: N803
        HELLINGER: tl.constexpr,  # noqa: N803
        ENTROPY: tl.constexpr,  # noqa: N803
        KL: tl.constexpr,  # noqa: N803
        REVERSE_KL: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # One program per token: its columns of a tile fit in registers. `_fold_rows` explains the steps
        token = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < num_columns
        x = tl.load(x_ptr + token * x_stride + columns, mask=inside, other=-float("inf"))
        y = tl.load(y_ptr + token * y_stride + columns, mask=inside, other=-float("inf"))
        stats = stats_ptr + token * token_stride

        max_p = tl.maximum(tl.max(x, axis=0), LOWEST)
        max_q = tl.maximum(tl.max(y, axis=0), LOWEST)
        # `where` keeps NaN, which `maximum` drops
        log_u = tl.where(x - max_p < FLOOR, FLOOR, x - max_p)
        log_v = tl.where(y - max_q < FLOOR, FLOOR, y - max_q)
        u = tl.where(inside, tl.exp(log_u), 0.0)
        v = tl.where(inside, tl.exp(log_v), 0.0)
        sum_p = tl.sum(u * u, axis=0)
        sum_q = tl.sum(v * v, axis=0)
        tl.store(stats, max_p)
        tl.store(stats + stat_stride, sum_p)
        tl.store(stats + 2 * stat_stride, max_q)
        tl.store(stats + 3 * stat_stride, sum_q)
        if ENTROPY:
            tl.store(stats + 5 * stat_stride, -2 * tl.sum(u * u * log_u, axis=0) / sum_p)
        u = u * (1 / tl.sqrt(sum_p))
        v = v * (1 / tl.sqrt(sum_q))
        if HELLINGER:
            tl.store(stats + 4 * stat_stride, tl.sum((u - v) * (u - v), axis=0) / 2)
        if KL or REVERSE_KL:
            h = y - x
            h = tl.where(h == h, h, 0.0) + (max_p - max_q + tl.log(sum_p / sum_q) / 2)
            p = u * u
            q = v * v
            difference = tl.sum((p + q) * _tanh(h), axis=0)
            if KL:
                kl = difference - 2 * tl.sum(p * tl.where(h > RATIO_LIMIT, RATIO_LIMIT, h), axis=0)
                tl.store(stats + 6 * stat_stride, kl)
            if REVERSE_KL:
                reverse_kl = 2 * tl.sum(q * tl.where(h < -RATIO_LIMIT, -RATIO_LIMIT, h), axis=0) - difference
                tl.store(stats + 7 * stat_stride, reverse_kl)


def use_triton(device: torch.device) -> bool:
    return is_triton_available() and device.type in ("cuda", "xpu")


def fold_triton(
    x: torch.Tensor,
    y: torch.Tensor,
    stats: torch.Tensor,
    outputs: Collection[str],
    lowest: float,
    floor: float,
    ratio_limit: float,
) -> None:
    """`_fold` of divergence.py (see there for arguments and constants), but `x` and `y` are not overwritten."""
    with torch.cuda.device_of(x):  # where Triton launches
        _fold_kernel[(x.size(0),)](
            x,
            y,
            stats,
            x.stride(0),
            y.stride(0),
            stats.stride(0),
            stats.stride(1),
            x.size(1),
            LOWEST=lowest,
            FLOOR=floor,
            RATIO_LIMIT=ratio_limit,
            HELLINGER="squared_hellinger" in outputs or "bhattacharyya" in outputs,
            ENTROPY="entropy" in outputs,
            KL="kl" in outputs,
            REVERSE_KL="reverse_kl" in outputs,
            BLOCK=triton.next_power_of_2(x.size(1)),
            num_warps=8,
        )
