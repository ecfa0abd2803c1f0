"""Calculates what token credit adds to an update: FLOPs, memory and communication, from 1.5B to 72B parameters.

    python benchmarks/scaling.py [--completion-tokens N] [--checkpointing] [--zero-advantage FRACTION] ...

Prints the tables of docs/scaling.md. `tests/trainer/test_scaling.py` checks the formulas against torch's counts.
"""

import argparse
from dataclasses import dataclass, replace

from trl_credit.planning.cards import CARDS
from trl_credit.planning.engine import own_engine
from trl_credit.planning.layouts import LAYOUTS
from trl_credit.planning.sizes import Model
from trl_credit.planning.work import (
    Pass,
    Update,
    loss_flops,
    pass_flops,
    received_bytes,
    rollout_seconds,
    update_seconds,
)


# The achieved shares of its peaks, by trainers and engines, are assumptions stated in docs/scaling.md
CARD, LAYOUT = CARDS["h100"], LAYOUTS["zero3"]
METHODS = (
    "trl", "trl_kl", "uniform", "gcpo", "gcpo_full", "dgpo", "forking", "random", "rlsd", "rlcsd", "teacher", "otb", "delta",
)  # fmt: skip
# Completions without an advantage stay in the loss
NEVER_SKIPPED = ("trl", "trl_kl", "forking", "teacher")

MODELS = (
    Model.dense("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936, tied=True),
    Model.dense("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 152064),
    Model.dense("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 152064),
    Model.dense("Qwen2.5-72B", 80, 8192, 29568, 64, 8, 152064),
)


@dataclass(frozen=True)
class Second:
    """Tokens that second prompts add.

    Args:
        note: Of the negative prompt.
        hint: The reference answer in RLSD's prompt.
        sibling: A sibling in RLCSD's prompt. By default a completion's and 64 around it.
        siblings: RLCSD's siblings, the right one included.
    """

    note: int = 15
    hint: int = 256
    sibling: int | None = None
    siblings: int = 5


def passes_of(model: Model, update: Update, method: str, second: Second = Second()) -> list[Pass]:
    """What a method adds to an update. The teacher is as large as the policy."""
    sibling = update.completion + 64 if second.sibling is None else second.sibling
    found = {
        "trl_kl": [Pass("KL", every_row=True, fused=True, model=model)],
        "gcpo": [Pass("negative prompt", second.note, repeated=True, fused=True)],
        "gcpo_full": [Pass("negative prompt", second.note, repeated=True, compares=True)],
        "dgpo": [Pass("reference", compares=True, model=model)],
        "rlsd": [Pass("hint", second.hint, repeated=True, fused=True)],
        "rlcsd": [Pass("sibling", sibling, repeated=True, fused=True)] * second.siblings,
        "teacher": [Pass("teacher", every_row=True, model=model)],
        "otb": [Pass("rollout stage")],
        "delta": [Pass("rollout stage")],
    }
    return found.get(method, [])


def method_flops(
    model: Model,
    update: Update,
    method: str,
    savings: bool = True,
    second: Second = Second(),
) -> dict[str, float]:
    """FLOPs of loss and credit. `savings` (`skip_zero_advantage`) leaves completions without advantage out of the loss."""
    update = replace(update, skipping=savings and method not in NEVER_SKIPPED)
    passes = passes_of(model, update, method, second)
    return {"loss": loss_flops(model, update), "credit": float(sum(pass_flops(model, update, p) for p in passes))}


def held_bytes(model: Model, method: str, gpus: int) -> float:
    """Bytes that a GPU holds under ZeRO-3: weights and gradients in bf16, master weights and Adam in fp32, and
    the reference's weights."""
    reference = 2 if method in ("trl_kl", "dgpo") else 0
    return (2 + 2 + 12 + reference) * model.parameters / gpus


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=Update.prompt)
    parser.add_argument("--completion-tokens", type=int, default=Update.completion)
    parser.add_argument("--completions", type=int, default=Update.completions, help="per optimizer step")
    parser.add_argument("--zero-advantage", type=float, default=0.4, help="share without an advantage, second table")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    arguments = parser.parse_args()
    if min(arguments.prompt_tokens, arguments.completion_tokens, arguments.completions) < 1:
        parser.error("--prompt-tokens, --completion-tokens and --completions must be at least 1")
    if not 0 <= arguments.zero_advantage <= 1:
        parser.error(f"--zero-advantage must be from 0 to 1, got {arguments.zero_advantage}")
    update = Update(
        prompt=arguments.prompt_tokens,
        completion=arguments.completion_tokens,
        completions=arguments.completions,
        checkpointing=arguments.checkpointing,
    )

    def ratio(model: Model, update: Update, method: str, base: str) -> str:
        ours, theirs = (sum(method_flops(model, update, name).values()) for name in (method, base))
        return f"{ours / theirs:.3f}"

    print("FLOPs of an update, all advantages non-zero, relative to TRL with a KL penalty\n")
    names = ["trl", "gcpo", "gcpo_full", "dgpo", "rlsd", "rlcsd", "otb"]
    print(table(["model", *names], [[m.name, *(ratio(m, update, n, "trl_kl") for n in names)] for m in MODELS]))

    skipping = replace(update, zero_advantage=arguments.zero_advantage)
    print(
        f"\nThe same, {arguments.zero_advantage:.0%} of the completions without an advantage, relative to TRL without one\n"
    )
    names = ["trl_kl", "uniform", "gcpo", "gcpo_full", "dgpo", "rlsd", "rlcsd", "otb"]
    print(table(["model", *names], [[m.name, *(ratio(m, skipping, n, "trl") for n in names)] for m in MODELS]))

    print("\nWhat credit adds to an update's time under ZeRO-3, all advantages non-zero; and rollout / update\n")
    names = ["trl_kl", "gcpo", "gcpo_full", "dgpo"]
    rows = []
    for model in MODELS:
        for gpus in (1, 8, 64, 256):
            if held_bytes(model, "trl", gpus) > 0.7 * CARD.memory:
                rows.append([model.name, str(gpus), *["does not fit"] * len(names), ""])
                continue
            cells = []
            for name in names:
                seconds = update_seconds(model, update, passes_of(model, update, name), CARD, LAYOUT, gpus)
                fits = held_bytes(model, name, gpus) <= 0.7 * CARD.memory
                cells.append(f"{seconds['credit'] / seconds['loss']:.0%}" if fits else "does not fit")
            seconds = sum(update_seconds(model, update, [], CARD, LAYOUT, gpus).values())
            engine = own_engine(model, CARD, gpus, update.length)
            rows.append(
                [model.name, str(gpus), *cells, f"{rollout_seconds(model, update, CARD, engine) / seconds:.1f}"]
            )
    print(table(["model", "GPUs", *names, "rollout / update"], rows))

    print("\nBytes a GPU receives in one micro-batch under ZeRO-3 on 64 GPUs, and holds\n")
    rows = []
    for model in MODELS:
        names = ("trl_kl", "gcpo", "gcpo_full", "dgpo")
        traffic = {name: received_bytes(model, update, passes_of(model, update, name), LAYOUT, 64, 1) for name in names}
        rows.append(
            [
                model.name,
                f"{traffic['gcpo']['loss'] / 1e9:.1f} GB",
                *(f"{value['credit'] / 1e9:.1f} GB" for value in traffic.values()),
                f"{held_bytes(model, 'trl', 64) / 1e9:.1f} GB",
                f"{2 * model.parameters / 64 / 1e9:.2f} GB",
            ]
        )
    print(table(["model", "loss", "trl_kl", "gcpo", "gcpo_full", "dgpo", "held by TRL", "a reference adds"], rows))


if __name__ == "__main__":
    main()
