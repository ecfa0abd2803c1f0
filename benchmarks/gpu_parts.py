"""The parts of gpu_check.py, each run in a process of its own: `python gpu_parts.py PART FOLDER [--rehearse]`.

A part reads the model that the part `model` left in FOLDER, and writes FOLDER/PART.json, again after each thing that it
measured: what comes later may fail, or the time be over. With `--rehearse` all sizes are small, so that a CPU runs the same
lines.
"""

import argparse
import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Args:
        model: Fields of the model's config.
        dtype: Its dtype.
        rounds: Updates of each variant that count.
        prompt_tokens: Length of the prompt.
        note_tokens: What GCPO's negative prompt adds.
        completion_tokens: Length of the 8 completions of an update.
        step_rounds: Whole steps of each variant that count.
        step_tokens: Completions' length in them.
        tile: Rows and columns of the tile that the kernel folds.
        repeats: Times that the kernel runs.
        head: Tokens, vocabulary and hidden size of the comparison of distributions.
        engine_tokens: Completions' length with vLLM.
        engine_context: vLLM's context.
    """

    model: dict
    dtype: str
    rounds: int
    prompt_tokens: int
    note_tokens: int
    completion_tokens: int
    step_rounds: int
    step_tokens: int
    tile: tuple[int, int]
    repeats: int
    head: tuple[int, int, int]
    engine_tokens: int
    engine_context: int


# Qwen2.5-1.5B's config
FULL = Sizes(
    {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6,
    },
    "bfloat16", 10, 200, 15, 512, 4, 128, (16384, 4096), 20, (4096, 151936, 1536), 128, 1024,
)  # fmt: skip
REHEARSAL = Sizes(
    FULL.model | {
        "vocab_size": 6000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "float32", 1, 8, 3, 6, 1, 4, (4, 300), 1, (16, 500, 16), 4, 64,
)  # fmt: skip
# Whole layers are left out of the model until it fits: shares of them
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
# Not counted by `bytes_needed`: what an update of 8 completions keeps for its backward pass, in bytes per token and layer at
# these sizes, and a fixed rest: tiles, the head's gradient in float32, CUDA's and the allocator's own
_ACTIVATIONS, _REST_GIB = 118e3, 4
BASE = "trl_kl"
UPDATE, STEP = ("trl_kl", "uniform", "gcpo", "dgpo"), ("trl_kl", "gcpo", "dgpo")
_WITH_REFERENCE = ("trl_kl", "dgpo")


def parameters_of(model: dict) -> int:
    """Parameters of a Qwen2 model by its config, without norms and biases."""
    hidden, kv = (
        model["hidden_size"],
        model["hidden_size"] * model["num_key_value_heads"] // model["num_attention_heads"],
    )
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * model["intermediate_size"]
    return model["vocab_size"] * hidden + model["num_hidden_layers"] * layer


def bytes_needed(variants: tuple[str, ...], parameters: int, width: int = 2) -> int:
    """Memory of variants side by side: weights and Adam's two states of each, a reference of some, and the gradients of
    the one that runs."""
    copies = 3 * len(variants) + sum(name in _WITH_REFERENCE for name in variants) + 1
    return copies * width * parameters


def layout(free_gib: float, sizes: Sizes, variants: tuple[str, ...] = UPDATE) -> tuple[int, list[tuple[str, ...]]]:
    """How much of the update fits: the number of layers, and the variants that run together, each group with the base.

    Args:
        free_gib: Free memory of the GPU.
        sizes: What is run.
        variants: All variants, the base first.
    """
    pairs = pairs_of(variants)
    largest = max(pairs, key=lambda pair: bytes_needed(pair, 1))
    tokens = 8 * (sizes.prompt_tokens + sizes.note_tokens + sizes.completion_tokens)
    for share in _SHARES:
        layers = max(1, round(share * sizes.model["num_hidden_layers"]))
        room = (free_gib - _REST_GIB) * 2**30 - _ACTIVATIONS * tokens * layers
        parameters = parameters_of(sizes.model | {"num_hidden_layers": layers})
        if share == 1.0 and bytes_needed(variants, parameters) <= room:
            return layers, [variants]
        if bytes_needed(largest, parameters) <= room:
            return layers, pairs
    return layers, pairs  # the smallest; if it does not fit either, the part says so


def pairs_of(variants: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Each variant with the base."""
    return [(BASE, name) for name in variants if name != BASE]


def keep(folder: Path, part: str, found: dict) -> None:
    """Writes what a part has found so far, whole or not at all."""
    file = folder / f"{part}.json"
    file.with_suffix(".part").write_text(json.dumps(found))
    file.with_suffix(".part").replace(file)


def build_tokenizer(size: int):
    """Qwen2's tokenizer with `size` tokens: the bytes, and all words of two, three and four small letters, as many as fit.

    It must be of Qwen2's class: whatever the files say, transformers loads that for a Qwen2 model.
    """
    from string import ascii_lowercase as letters

    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    pairs = [(a, b) for a in letters for b in letters]
    merges = itertools.chain(
        pairs,
        ((a + b, c) for a, b in pairs for c in letters),
        ((a + b, c + d) for a, b in pairs for c, d in pairs),
    )
    tokens = ["<pad>", "<eos>", "<unk>", *bytes_to_unicode().values()]
    merges = list(itertools.islice(merges, size - len(tokens)))
    vocabulary = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, padding_side="left", **special)


def free_gib() -> float:
    """Free memory of the GPU; 0 without one."""
    import torch

    return torch.cuda.mem_get_info()[0] / 2**30 if torch.cuda.is_available() else 0.0


def model(folder: Path, sizes: Sizes) -> dict:
    """Builds the model with random weights, of as many layers as fit, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    free = free_gib()
    layers, groups = layout(free, sizes)
    together = {"update": groups, "step": groups}
    if sizes is REHEARSAL:  # both ways to run them
        layers, together = sizes.model["num_hidden_layers"], {"update": [UPDATE], "step": pairs_of(STEP)}
    tokenizer = build_tokenizer(sizes.model["vocab_size"])
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(**sizes.model | {"num_hidden_layers": layers}, **ids)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, sizes.dtype))
    made.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "parameters": made.num_parameters(),
        "layers": layers,
        "of_layers": sizes.model["num_hidden_layers"],
        "dtype": sizes.dtype,
        "free_gib": round(free, 1),
        "together": together,
    }


def kernel(folder: Path, sizes: Sizes) -> dict:
    """The Triton kernel against the fold in torch: values, time and bandwidth; then the whole comparison of distributions
    against the two matrix products."""
    import torch
    from compare_distributions import measure

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = _folds(folder, sizes, device)
    bare, ours = measure(*sizes.head, getattr(torch, sizes.dtype), device, 3)
    found["products_seconds"] = bare
    found["comparison"] = {
        "+".join(outputs): {"seconds": taken, "of_products": taken / bare, "mb": megabytes}
        for outputs, (taken, megabytes) in ours.items()
    }
    return found


def _folds(folder: Path, sizes: Sizes, device) -> dict:
    import torch
    from compare_distributions import seconds

    from trl_credit.signals import divergence
    from trl_credit.signals._triton import fold_triton

    rows, columns = sizes.tile
    torch.manual_seed(0)
    x = 3 * torch.randn(rows, columns, device=device)
    y = x + 0.3 * torch.randn(rows, columns, device=device)
    constants = {"lowest": divergence._LOWEST, "floor": divergence._FLOOR, "ratio_limit": divergence._RATIO_LIMIT}
    found = {"tile": [rows, columns], "bytes": 2 * x.numel() * x.element_size(), "outputs": {}}
    scratch_x, scratch_y = x.clone(), y.clone()

    def fastest(run) -> float:
        run()  # compiles
        return min(seconds(run, device) for _ in range(sizes.repeats))

    copied = fastest(lambda: scratch_x.copy_(x))  # reads one tile and writes one: as many bytes as the kernel reads
    found["copy_gb_per_s"] = found["bytes"] / copied / 1e9
    for outputs in (("squared_hellinger",), divergence.STATISTICS):
        ours, theirs = torch.zeros(2, 8, rows, device=device)

        def by_triton(outputs=outputs, stats=ours):
            fold_triton(x, y, stats, outputs, **constants)

        def by_torch(outputs=outputs, stats=theirs):
            divergence._fold(scratch_x, scratch_y, stats, outputs)  # overwrites them

        scratch_x.copy_(x)
        scratch_y.copy_(y)
        by_triton()
        by_torch()
        difference = ((ours - theirs).abs() / theirs.abs().clamp(min=1e-3)).max().item()
        taken = fastest(by_triton)
        found["outputs"]["+".join(outputs)] = {
            "seconds": taken,
            "torch_seconds": fastest(by_torch),
            "gb_per_s": found["bytes"] / taken / 1e9,
            "of_copy": copied / taken,
            "largest_relative_difference": difference,
        }
        keep(folder, "kernel", found)
        if not difference < 1e-3:
            raise AssertionError(f"{outputs}: kernel and torch differ by {difference:.1e}")
    return found


def _in_turn(folder: Path, part: str, sizes: Sizes, variants: tuple[str, ...], more: list[str]) -> dict:
    """Runs step_cost.py on variants, in groups that fit the memory together. A group that fails does not stop the others."""
    import gc

    import torch

    together = json.loads((folder / "model.json").read_text())["together"][part]
    groups = [[name for name in group if name in variants] for group in together]
    found = {"variants": {}, "ratios": {}, "together": [group for group in groups if len(group) > 1]}
    errors = []
    for group in found["together"]:
        try:
            measured = _group(folder, part, sizes, group, more)
            for name, values in measured.items():
                found[name] |= values
        except Exception:
            errors.append(f"{', '.join(group)}:\n{traceback.format_exc()}")
        keep(folder, part, found)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if errors:
        raise RuntimeError("\n".join(errors))
    bad = [name for name, ratio in found["ratios"].items() if not math.isfinite(ratio["median"])]
    if bad or set(found["variants"]) != set(variants):
        raise AssertionError(f"not measured: {bad or set(variants) - set(found['variants'])}")
    return found


def _group(folder: Path, part: str, sizes: Sizes, group: list[str], more: list[str]) -> dict:
    """Runs variants side by side: their times, and ratios to the base."""
    from step_cost import make_variants, parse_arguments, ratios_to, run_in_turn, summary

    rounds, tokens = {
        "update": (sizes.rounds, sizes.completion_tokens), "step": (sizes.step_rounds, sizes.step_tokens)
    }[part]  # fmt: skip
    words = [
        str(folder / "model"), "--rounds", str(rounds), "--prompt-tokens", str(sizes.prompt_tokens),
        "--note-tokens", str(sizes.note_tokens), "--completion-tokens", str(tokens), *more,
    ]  # fmt: skip
    words += ["--bf16"] * (sizes.dtype == "bfloat16") + ["--variants", *group]
    made = make_variants(parse_arguments(words))
    run_in_turn(made, rounds)
    return {
        "variants": {variant.name: summary(variant) for variant in made},
        "ratios": ratios_to(made[group.index(BASE)], made),
    }


def update(folder: Path, sizes: Sizes) -> dict:
    """An update of TRL with a KL penalty, `uniform`, GCPO and DGPO, in turn."""
    return _in_turn(folder, "update", sizes, UPDATE, [])


def step(folder: Path, sizes: Sizes) -> dict:
    """The whole step, which also generates with transformers."""
    return _in_turn(folder, "step", sizes, STEP, ["--generate"])


def three_updates(folder: Path, part: str, sizes: Sizes, **engine) -> dict:
    """Three updates of GCPO with vLLM; raises if one is not finite, weights do not move, or vLLM's do not follow."""
    import torch
    from datasets import Dataset
    from step_cost import text_of
    from transformers import AutoTokenizer

    from trl_credit import CreditGRPOConfig, CreditGRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rng = random.Random(0)
    prompts = [text_of(tokenizer, sizes.prompt_tokens, rng) for _ in range(8)]
    note = text_of(tokenizer, sizes.note_tokens, rng)
    settings = {
        "output_dir": str(folder / "trainer"),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "max_completion_length": sizes.engine_tokens,
        "learning_rate": 1e-4,  # so that weights which did not follow show
        "lr_scheduler_type": "constant",
        "bf16": sizes.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": sizes.dtype},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
        "credit": {"method": "gcpo", "negative_prompt": "{prompt} " + note},
    }
    if engine:
        engine = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate", **engine}
    trainer = CreditGRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=_by_place,
        args=CreditGRPOConfig(**settings, **engine),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    before = next(trainer.model.parameters()).detach().float().sum().item()
    started = time.perf_counter()
    trainer.train()
    taken = time.perf_counter() - started
    rows = [row for row in trainer.state.log_history if "loss" in row]
    gap = "sampling/sampling_logp_difference/mean"
    found = {
        "seconds": taken,
        "updates": [{name: row.get(name) for name in ("loss", "grad_norm", "step_time", gap)} for row in rows],
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
    }
    keep(folder, part, found)
    for row in found["updates"]:
        if not all(value is None or math.isfinite(value) for value in row.values()):
            raise AssertionError(f"not finite: {row}")
    if len(rows) != 3 or next(trainer.model.parameters()).detach().float().sum().item() == before:
        raise AssertionError(f"{len(rows)} updates of 3, or the weights did not move")
    if engine:
        gaps = [row[gap] for row in found["updates"]]
        if None in gaps or gaps[-1] > max(0.1, 3 * gaps[0]):
            raise AssertionError(f"vLLM's weights do not follow the trainer's: log-probs differ by {gaps}")
    return found


def _by_place(completions, **kwargs) -> list[float]:
    return [float(place) for place in range(len(completions))]


def colocate(folder: Path, sizes: Sizes) -> dict:
    """vLLM in the trainer's process. The rehearsal generates with transformers."""
    if sizes is REHEARSAL:
        return three_updates(folder, "colocate", sizes)
    engine = {"vllm_gpu_memory_utilization": 0.3, "vllm_max_model_length": sizes.engine_context}
    return three_updates(folder, "colocate", sizes, vllm_mode="colocate", **engine)


def server(folder: Path, sizes: Sizes) -> dict:
    """vLLM as a server on the second GPU, which gets its weights by NCCL. In the rehearsal something else is started, waited
    for and ended in its place."""
    rehearsed = sizes is REHEARSAL
    port, group_port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}/"
    if rehearsed:
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    else:
        address += "health"
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"),
            "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(sizes.engine_context), "--dtype", sizes.dtype,
            "--gpu-memory-utilization", "0.5", "--weight-transfer-config", '{"backend": "nccl"}',
            "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--enforce-eager",
        ]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": os.environ.get("SECOND_GPU", ""), "VLLM_SERVER_DEV_MODE": "1"}
    with open(folder / "server.txt", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        started = time.perf_counter()
        wait_for(address, process, folder / "server.txt")
        waited = time.perf_counter() - started
        engine = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        engine = {} if rehearsed else engine | {"vllm_group_port": group_port}
        found = three_updates(folder, "server", sizes, **engine)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    return found | {"server_start_seconds": waited}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    """Waits until a server answers.

    Raises:
        RuntimeError: It has ended; the message has the end of its log.
    """
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)


PARTS = {part.__name__: part for part in (model, kernel, update, step, colocate, server)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    found = PARTS[arguments.part](arguments.folder, REHEARSAL if arguments.rehearse else FULL)
    keep(arguments.folder, arguments.part, found)


if __name__ == "__main__":
    main()
