"""Measures what comparing two distributions costs on top of the two matrix products that it needs in any case.

    python benchmarks/compare_distributions.py [--tokens N] [--vocab N] [--hidden N] [--dtype NAME] [--device NAME]

Prints, from one run, the fastest time of the bare products (hidden states times heads, in pieces that fit memory), the
fastest time of `compare_distributions` for growing sets of outputs, their ratio, and the peak memory above the inputs
(on a CPU, the process's, Linux only). On a CPU, `compare_distributions` rounds to `--dtype` but multiplies in float32,
and so do the products.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trl_credit.signals.divergence import Head, compare_distributions


OUTPUTS = [("squared_hellinger",), ("squared_hellinger", "entropy"), ("squared_hellinger", "entropy", "kl")]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def added_memory(function: Callable[[], object], device: torch.device) -> float:
    """Peak memory in MB while `function` runs, above what was held before."""
    before = reset_peak(device)
    function()
    return peak(device) - before


def reset_peak(device: torch.device) -> float:
    """Resets the peak of the device's memory, on a CPU the process's. Returns the MB held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _process_memory("VmRSS")


def peak(device: torch.device) -> float:
    """The MB held at most since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _process_memory("VmHWM")


def _process_memory(field: str) -> float:
    """Memory in MB (Linux only)."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**10


def products(sides: list[tuple[torch.Tensor, torch.Tensor]], out: torch.Tensor) -> None:
    """Multiplies (N, H) hidden states with (V, H) heads, writing each piece to `out`."""
    for hidden, weight in sides:
        for some_columns in weight.split(out.size(1)):
            for some_rows in hidden.split(out.size(0)):
                place = out[: some_rows.size(0)]
                if some_columns.size(0) < out.size(1):
                    place = torch.empty(some_rows.size(0), some_columns.size(0), dtype=out.dtype, device=out.device)
                if out.dtype == some_rows.dtype:
                    torch.mm(some_rows, some_columns.t(), out=place)
                else:
                    torch.mm(some_rows, some_columns.t(), out_dtype=out.dtype, out=place)


def measure(
    tokens: int, vocab: int, hidden: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> tuple[float, dict[tuple[str, ...], tuple[float, float]]]:
    """Seconds of the two bare products, and seconds and MB of each set of outputs."""
    torch.manual_seed(0)
    sides = [
        (
            torch.randn(tokens, hidden, device=device, dtype=dtype),
            torch.randn(vocab, hidden, device=device, dtype=dtype).mul_(hidden**-0.5),
        )
        for _ in range(2)
    ]
    mask = torch.ones(1, tokens, dtype=torch.bool, device=device)
    (hidden_p, head_p), (hidden_q, head_q) = ((states.unsqueeze(0), Head(weight)) for states, weight in sides)

    def compare(outputs: tuple[str, ...], mask: torch.Tensor = mask) -> None:
        compare_distributions(hidden_p, head_p, hidden_q, head_q, mask, outputs, dtype=dtype)

    # First calls load libraries and compile kernels
    compare(OUTPUTS[-1], mask & (mask.cumsum(1) == 1))
    memory = [added_memory(lambda outputs=outputs: compare(outputs), device) for outputs in OUTPUTS]
    if device.type == "cpu":
        sides = [(states.float(), weight.float()) for states, weight in sides]
    out = torch.empty(1024 if device.type == "cpu" else 4096, 8192, device=device)
    # Interleaved, so that other load on the machine affects all alike
    runs = [lambda: products(sides, out), *(lambda outputs=outputs: compare(outputs) for outputs in OUTPUTS)]
    runs[0]()
    times = [[seconds(run, device) for run in runs] for _ in range(repeats)]
    bare, *ours = (min(column) for column in zip(*times, strict=True))
    return bare, dict(zip(OUTPUTS, zip(ours, memory, strict=True), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    sizes = (arguments.tokens, arguments.vocab, arguments.hidden)
    bare, ours = measure(*sizes, dtype, device, arguments.repeats)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"{arguments.tokens} tokens, vocabulary {arguments.vocab}, hidden {arguments.hidden}, ", end="")
    print(f"{arguments.dtype} on {device}{threads}")
    print(f"{'two matrix products':40} {bare:8.4f} s")
    for outputs, (fastest, megabytes) in ours.items():
        print(f"{', '.join(outputs):40} {fastest:8.4f} s   {fastest / bare:.2f} x   {megabytes:6.0f} MB")


if __name__ == "__main__":
    main()
