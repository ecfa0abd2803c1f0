"""Calculates what token credit adds to an update: FLOPs, memory and communication, from 1.5B to 72B parameters.

    python benchmarks/scaling.py [--completion-tokens N] [--checkpointing] [--zero-advantage FRACTION] ...

Prints the tables of docs/scaling.md. `tests/trainer/test_scaling.py` checks the formulas against torch's counts.
"""

import argparse
from dataclasses import dataclass, replace


# One H100 SXM. The achieved shares of its peaks, by trainers and engines, are assumptions stated in docs/scaling.md
PEAK_FLOPS, UTILISATION = 989e12, 0.4
MEMORY_BANDWIDTH, ENGINE_UTILISATION = 3.35e12, 0.6
GPU_BYTES = 80e9
# Bytes per second and GPU that collectives achieve within a machine of 8, and between machines
NVLINK, NETWORK = 300e9, 40e9
GPUS_PER_MACHINE = 8

METHODS = (
    "trl", "trl_kl", "uniform", "gcpo", "gcpo_full", "dgpo", "forking", "random", "rlsd", "rlcsd", "teacher", "otb", "delta",
)  # fmt: skip
# Completions without an advantage stay in the loss
NEVER_SKIPPED = ("trl", "trl_kl", "forking", "teacher")


@dataclass(frozen=True)
class Model:
    """A decoder with gated MLPs, described by the sizes of its matrix products."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 128
    tied: bool = False

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.hidden * self.vocab

    @property
    def backbone(self) -> int:
        """Parameters of the layers' matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.backbone + self.head * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token in an engine's cache, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def backbone_flops(self, tokens: int, attention: float) -> float:
        """FLOPs of one sequence's forward. `attention` is the share of the (tokens, tokens) scores that is computed."""
        return 2 * self.backbone * tokens + 4 * attention * self.layers * self.heads * self.head_dim * tokens**2

    def head_flops(self, tokens: int) -> float:
        return 2 * self.head * tokens


MODELS = (
    Model("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936, tied=True),
    Model("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 152064),
    Model("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 152064),
    Model("Qwen2.5-72B", 80, 8192, 29568, 64, 8, 152064),
)


@dataclass(frozen=True)
class Update:
    """One optimizer step on one generation batch.

    Args:
        prompt: Tokens of a prompt.
        note: Tokens that the negative prompt adds.
        hint: Tokens that the reference answer adds to RLSD's prompt.
        sibling: Tokens that a sibling adds to RLCSD's prompt. By default a completion's and 64 around it.
        siblings: RLCSD's siblings, the right one included.
        completion: Tokens of a completion.
        completions: Completions over all processes.
        zero_advantage: Share of completions without an advantage.
        iterations: TRL's `num_iterations`.
        checkpointing: The backward recomputes the layers' forward.
        attention: Share of the attention scores that is computed: 0.5 for causal kernels, 1 if a mask is applied.
        old_logps: TRL computes the sampling policy's log-probs: with `num_iterations > 1`, with vLLM, or if a
            generation batch spans several optimizer steps.
        scored: Positions that TRL's fused head projects. By default the completion's (on a CPU, all).
    """

    prompt: int = 256
    note: int = 15
    hint: int = 256
    sibling: int | None = None
    siblings: int = 5
    completion: int = 2048
    completions: int = 512
    zero_advantage: float = 0.0
    iterations: int = 1
    checkpointing: bool = False
    attention: float = 0.5
    old_logps: bool = False
    scored: int | None = None


def update_flops(model: Model, update: Update, method: str, savings: bool = True) -> dict[str, float]:
    """FLOPs of an update's matrix products, for the loss and for credit (or TRL's KL penalty). Excludes generation.

    A forward costs 2 FLOPs per parameter and token, a backward twice that. TRL's fused head recomputes its logits in
    the backward, so it takes 4 products instead of 3. Checkpointing recomputes all of a layer but its last matrix.
    Credit is never computed for completions without an advantage, except by methods that give them one (a teacher);
    `savings` (`skip_zero_advantage`) leaves them out of the loss too. The teacher is as large as the policy.
    """
    length, rows = update.prompt + update.completion, update.completions
    live = rows * (1 - update.zero_advantage)
    scored = update.completion if update.scored is None else update.scored
    forward = model.backbone_flops(length, update.attention)
    again = forward - 2 * length * model.layers * model.hidden * model.intermediate if update.checkpointing else 0.0
    loss = 3 * forward + again + 4 * model.head_flops(scored)
    rows_in_loss = rows if method in NEVER_SKIPPED or not savings else live

    def second_prompt(added: int) -> float:
        """Of one completion, after a prompt that is longer."""
        return model.backbone_flops(length + added, update.attention) + model.head_flops(
            scored + (added if update.scored else 0)
        )

    once = forward + model.head_flops(update.completion)
    sibling = update.completion + 64 if update.sibling is None else update.sibling
    credit = {
        # once per generation batch, for all completions
        "trl_kl": rows * (forward + model.head_flops(scored)),
        "gcpo": update.iterations * live * second_prompt(update.note),
        "gcpo_full": update.iterations
        * live
        * (model.backbone_flops(length + update.note, update.attention) + 2 * model.head_flops(update.completion)),
        # iterations share the reference's hidden states
        "dgpo": live * (forward + update.iterations * 2 * model.head_flops(update.completion)),
        "rlsd": update.iterations * live * second_prompt(update.hint),
        "rlcsd": update.iterations * live * update.siblings * second_prompt(sibling),
        # iterations share the teacher's log-probs
        "teacher": rows * once,
        # once per generation batch
        "otb": live * once,
        "delta": live * once,
    }
    old = rows * (forward + model.head_flops(scored)) if update.old_logps or update.iterations > 1 else 0.0
    return {"loss": update.iterations * rows_in_loss * loss + old, "credit": credit.get(method, 0.0)}


def sharded_bytes(model: Model, method: str, micro_batches: int, gpus: int, forwards: int = 1) -> dict[str, float]:
    """Bytes that each GPU receives in an update under ZeRO-3 or FSDP2 (bf16), for the loss and for credit.

    The loss gathers the parameters in forward and backward and scatters gradients. Each further forward gathers once.
    """
    share = 2 * (gpus - 1) / gpus
    loss = 3 * share * model.parameters
    head = share * model.head
    credit = {
        "trl_kl": share * model.parameters,
        "gcpo": forwards * share * model.parameters,
        "gcpo_full": forwards * share * model.parameters + head,
        "dgpo": forwards * share * model.parameters + 2 * head,
    }
    return {"loss": micro_batches * loss, "credit": micro_batches * credit.get(method, 0.0)}


def held_bytes(model: Model, method: str, gpus: int) -> float:
    """Bytes that a GPU holds under ZeRO-3 or FSDP2: weights and gradients in bf16, master weights and Adam in fp32, and
    the reference's weights."""
    reference = 2 if method in ("trl_kl", "dgpo") else 0
    return (2 + 2 + 12 + reference) * model.parameters / gpus


def update_seconds(model: Model, update: Update, method: str, gpus: int, rows_per_gpu: int = 8, savings: bool = True):
    """Seconds of loss and credit. Each is the longer of computation and communication, since they overlap."""
    flops = update_flops(model, update, method, savings)
    micro_batches = max(update.completions // (gpus * rows_per_gpu), 1) * update.iterations
    traffic = sharded_bytes(model, method, micro_batches, gpus)
    bandwidth = NVLINK if gpus <= GPUS_PER_MACHINE else NETWORK
    return {
        part: max(flops[part] / (gpus * PEAK_FLOPS * UTILISATION), traffic[part] / bandwidth)
        for part in ("loss", "credit")
    }


def rollout_seconds(model: Model, update: Update, gpus: int, concurrent: int = 256) -> float:
    """Seconds of decoding on the same number of GPUs, bound by reading weights and cache. Each group of GPUs that holds
    one copy of the model decodes up to `concurrent` completions at a time."""
    per_engine = 1
    while 2 * model.parameters / per_engine > 0.6 * GPU_BYTES:
        per_engine *= 2
    engines = max(gpus // per_engine, 1)
    rows = update.completions / engines
    waves = max(rows / concurrent, 1)
    context = update.prompt + update.completion / 2
    read = 2 * model.parameters + min(rows, concurrent) * context * model.kv_bytes
    return waves * update.completion * read / (per_engine * MEMORY_BANDWIDTH * ENGINE_UTILISATION)


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
        ours, theirs = (sum(update_flops(model, update, name).values()) for name in (method, base))
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

    print(
        "\nWhat credit adds to an update's time under ZeRO-3 or FSDP2, all advantages non-zero; and rollout / update\n"
    )
    names = ["trl_kl", "gcpo", "gcpo_full", "dgpo"]
    rows = []
    for model in MODELS:
        for gpus in (1, 8, 64, 256):
            if held_bytes(model, "trl", gpus) > 0.7 * GPU_BYTES:
                rows.append([model.name, str(gpus), *["does not fit"] * len(names), ""])
                continue
            cells = []
            for name in names:
                seconds = update_seconds(model, update, name, gpus)
                fits = held_bytes(model, name, gpus) <= 0.7 * GPU_BYTES
                cells.append(f"{seconds['credit'] / seconds['loss']:.0%}" if fits else "does not fit")
            seconds = sum(update_seconds(model, update, "trl", gpus).values())
            rows.append([model.name, str(gpus), *cells, f"{rollout_seconds(model, update, gpus) / seconds:.1f}"])
    print(table(["model", "GPUs", *names, "rollout / update"], rows))

    print("\nBytes a GPU receives in one micro-batch under ZeRO-3 or FSDP2 on 64 GPUs, and holds\n")
    rows = []
    for model in MODELS:
        traffic = {name: sharded_bytes(model, name, 1, 64) for name in ("trl_kl", "gcpo", "gcpo_full", "dgpo")}
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
