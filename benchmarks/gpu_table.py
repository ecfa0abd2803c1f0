"""The results of gpu_check.py as Markdown for benchmarks/README.md."""

from collections.abc import Iterator


# Of TRL with a KL penalty: an update, and the whole step
TARGETS = {"update": 1.05, "step": 1.036}
_CREDIT = ("gcpo", "dgpo")


def markdown(results: dict) -> str:
    """The tables of a run."""
    parts = {name: result for name, result in results["parts"].items() if name != "environment"}
    found = {name: result["found"] for name, result in parts.items() if "found" in result}
    blocks = [_heading(results), _overview(parts, results["rehearsal"])]
    if "kernel" in found:
        blocks.append(_kernel(found["kernel"]))
    for name, title in (("update", "One update"), ("step", "The whole step, generated with transformers")):
        if name in found:
            blocks.append(_times(title, name, found[name], found.get("model", {}), results["rehearsal"]))
    blocks += [_engine(name, found[name], results["rehearsal"]) for name in ("colocate", "server") if name in found]
    blocks += [
        f"`{name}` failed:\n\n```text\n{_fenced(result['error'])}\n```"
        for name, result in parts.items()
        if "error" in result
    ]
    return "\n\n".join(blocks) + "\n"


def verdict(part: str, method: str, ratio: dict, rehearsal: bool) -> str:
    """What to write beside a ratio's target: its rounds must all lie on one side of it."""
    if method not in _CREDIT:
        return ""
    target, (low, high) = TARGETS[part], ratio["range"]
    judged = "not judged" if rehearsal else "met" if high <= target else "missed" if low > target else "within noise"
    return f"{target} ({judged})"


def _heading(results: dict) -> str:
    environment = results["parts"].get("environment", {}).get("found") or {}
    packages = environment.get("packages") or {}
    versions = [
        f"{name} {packages[name]['installed']}"
        for name in ("torch", "trl", "transformers", "triton", "vllm")
        if (packages.get(name) or {}).get("installed")
    ]
    torch = environment.get("torch") or {}
    cards = [f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in torch.get("gpus", []) if gpu.get("error") is None]
    where = ", ".join(dict.fromkeys(cards)) or "no GPU"
    if len(cards) > 1:
        where = f"{len(cards)} GPUs, {where}"
    driver = (environment.get("machine") or {}).get("driver")
    more = [f"driver {driver}"] * bool(driver) + [f"CUDA {torch.get('cuda')}"] * bool(torch.get("cuda"))
    what = "A rehearsal at small sizes: its times say nothing. " if results["rehearsal"] else ""
    state = "" if results["complete"] else " The run was not finished."
    return f"{what}`benchmarks/gpu_check.py`, {results['date']}: {', '.join([where, *more, *versions])}.{state}"


def _table(header: list[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _overview(parts: dict, rehearsal: bool) -> str:
    def say(name: str, result: dict) -> str:
        if result["status"] == "skipped":
            return result["reason"]
        if result["status"] == "failed":
            return result["error"].strip().splitlines()[0]
        found = result["found"]
        if name == "tests":
            return f"{found['passed']} passed"
        if name == "model":
            fewer = (
                ""
                if found["layers"] == found["of_layers"]
                else f", {found['layers']} of {found['of_layers']} layers fit"
            )
            return f"{found['parameters'] / 1e9:.2f}B parameters, {found['dtype']}{fewer}"
        return "without vLLM" if rehearsal and name in ("colocate", "server") else ""

    rows = [[f"`{name}`", r["status"], str(r.get("seconds", "")), say(name, r)] for name, r in parts.items()]
    return _table(["part", "", "seconds", ""], rows)


def _kernel(found: dict) -> str:
    rows, columns = found["tile"]
    copied = f"{found['copy_gb_per_s']:.4g} GB/s"
    text = f"The kernel on {rows} x {columns} logits of each side; a copy on this device reaches {copied}:"
    header = ["output", "ms", "torch, ms", "GB/s", "of a copy", "largest relative difference from torch"]
    lines = [
        [name, f"{1e3 * r['seconds']:.3f}", f"{1e3 * r['torch_seconds']:.3f}", f"{r['gb_per_s']:.4g}", f"{r['of_copy']:.0%}",
         f"{r['largest_relative_difference']:.1e}"]
        for name, r in found["outputs"].items()
    ]  # fmt: skip
    if "comparison" not in found:  # it has failed before
        return f"{text}\n\n{_table(header, lines)}"
    compared = [
        [name, f"{1e3 * r['seconds']:.2f}", f"{r['of_products']:.2f}", f"{r['mb']:.0f}"]
        for name, r in found["comparison"].items()
    ]
    bare = f"Two distributions compared; the two matrix products alone take {1e3 * found['products_seconds']:.2f} ms:"
    return "\n\n".join(
        [text, _table(header, lines), bare, _table(["outputs", "ms", "of the products", "MB"], compared)]
    )


def _times(title: str, part: str, found: dict, model: dict, rehearsal: bool) -> str:
    size = f" of the {model['parameters'] / 1e9:.2f}B model in {model['dtype']}" if model else ""
    apart = (
        "" if len(found["together"]) == 1 else " Memory did not hold all: each method ran in turn with `trl_kl` alone."
    )
    phases = ("rollout", "credit", "loss", "total")
    times = [
        [f"`{name}`", *(f"{1e3 * r[phase]:.1f}" for phase in phases), f"{r['peak_mb']:.0f}"]
        for name, r in found["variants"].items()
    ]
    ratios = [
        [f"`{name}` / `trl_kl`", f"{r['median']:.3f} ({r['range'][0]:.3f} to {r['range'][1]:.3f})", f"{r['fastest']:.3f}",
         f"{r['one_loss']:.3f}", verdict(part, name, r, rehearsal)]
        for name, r in found["ratios"].items()
    ]  # fmt: skip
    return "\n\n".join([
        f"{title}{size}, fastest of each, ms.{apart}",
        _table(["", *phases, "peak MB above what is held"], times),
        _table(["ratio", "median (range)", "fastest", "one loss for all", "target"], ratios),
    ])  # fmt: skip


def _engine(name: str, found: dict, rehearsal: bool) -> str:
    gap = "sampling/sampling_logp_difference/mean"
    place = {"colocate": "vLLM in the trainer's process", "server": "vLLM as a server, weights by NCCL"}[name]
    if rehearsal:
        place = f"In the place of {place}: transformers, without vLLM"
    start = f" The server started in {found['server_start_seconds']:.0f} s." if "server_start_seconds" in found else ""
    rows = [
        [
            str(number),
            *("" if row.get(key) is None else f"{row[key]:.4g}" for key in ("step_time", "loss", "grad_norm", gap)),
        ]
        for number, row in enumerate(found["updates"], 1)
    ]
    header = ["update", "seconds", "loss", "gradient norm", "sampler's log-probs from the trainer's"]
    return f"{place}, three updates of GCPO in {found['seconds']:.1f} s.{start}\n\n{_table(header, rows)}"


def _fenced(text: str) -> str:
    return text.replace("```", "'''").strip()[-3000:]
