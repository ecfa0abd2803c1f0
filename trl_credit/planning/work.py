"""FLOPs, communication and seconds of an update, and the seconds of a rollout.

`tests/trainer/test_scaling.py` checks the FLOPs against those that torch counts in real updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .cards import DECODING_SHARE, TRAINING_SHARE, Card
from .engine import Engine
from .layouts import Layout
from .memory import packed_bytes
from .sizes import Model


@dataclass(frozen=True)
class Update:
    """The optimizer steps on one generation batch.

    Args:
        prompt: Tokens of a prompt.
        completion: Tokens of a completion.
        completions: Completions over all processes.
        zero_advantage: Share of completions without an advantage.
        iterations: TRL's `num_iterations`.
        steps: Optimizer steps of an iteration.
        kept: Share of the tokens whose signals are kept for later iterations, of those that can be.
        checkpointing: The backward recomputes the layers' forward.
        attention: Share of the attention scores that is computed: 0.5 for causal kernels, 1 if a mask is applied.
        old_logps: TRL computes the sampling policy's log-probs: with `num_iterations > 1`, with vLLM, or if a
            generation batch spans several optimizer steps.
        scored: Positions that TRL's fused head projects. By default the completion's (on a CPU, all).
        skipping: Completions without an advantage are left out of the loss.
        adapters: Only adapters are trained: the backward has no products for the gradients of the weights.
    """

    prompt: int = 256
    completion: int = 2048
    completions: int = 512
    zero_advantage: float = 0.0
    iterations: int = 1
    steps: float = 1.0
    kept: float = 1.0
    checkpointing: bool = False
    attention: float = 0.5
    old_logps: bool = False
    scored: int | None = None
    skipping: bool = False
    adapters: bool = False

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def recomputes_old_logps(self) -> bool:
        return self.old_logps or self.iterations > 1

    def times(self, extra: "Pass") -> float:
        """How often a pass runs over the generation batch."""
        if extra.repeated:
            return self.iterations
        return 1 + (self.iterations - 1) * (1 - self.kept) if extra.compares else 1


@dataclass(frozen=True)
class Pass:
    """A forward that credit or a KL penalty adds.

    Args:
        title: What it computes.
        added: Tokens that it reads besides prompt and completion.
        repeated: Each iteration runs it; else once per generation batch, if its result can be kept.
        compares: The next-token distributions of two sides are compared at each iteration: two products with the output
            head. Else one, with the forward.
        every_row: Completions without an advantage have it, too.
        fused: TRL's fused head computes the log-probs, of [`Update.scored`] positions.
        model: The frozen model that runs; the policy if `None`.
    """

    title: str
    added: int = 0
    repeated: bool = False
    compares: bool = False
    every_row: bool = False
    fused: bool = False
    model: Model | None = None


def pass_flops(policy: Model, update: Update, extra: Pass) -> float:
    """FLOPs of a pass over a generation batch."""
    model = extra.model or policy
    rows = update.completions * (1 if extra.every_row else 1 - update.zero_advantage)
    times = update.times(extra)
    forward = model.backbone_flops(update.length + extra.added, update.attention)
    if extra.compares:
        heads = policy.head_flops(update.completion) + model.head_flops(update.completion)
        return rows * (times * forward + update.iterations * heads)
    scored = update.completion
    if extra.fused and update.scored is not None:
        scored = update.scored + extra.added
    return rows * times * (forward + model.head_flops(scored))


def loss_flops(model: Model, update: Update) -> float:
    """FLOPs of TRL's loss over a generation batch, with the log-probs of the policy that generated.

    A forward costs 2 FLOPs per parameter and token, a backward twice that. TRL's fused head recomputes its logits in
    the backward, so it takes 4 products instead of 3. Checkpointing recomputes all of a layer but its last matrix.
    """
    rows = update.completions
    scored = update.completion if update.scored is None else update.scored
    forward = model.backbone_flops(update.length, update.attention)
    matrices = 2 * model.backbone * update.length  # of the forward; attention's products have two gradients in any case
    again = forward - 2 * update.length * model.last_matrices if update.checkpointing else 0.0
    products = 1 if update.adapters else 0  # that the backward leaves out
    loss = 3 * forward - products * matrices + again + (4 - products) * model.head_flops(scored)
    trained = rows * (1 - update.zero_advantage) if update.skipping else rows
    old = rows * (forward + model.head_flops(scored)) if update.recomputes_old_logps else 0.0
    return update.iterations * trained * loss + old


def update_flops(model: Model, update: Update, passes: Sequence[Pass]) -> dict[str, float]:
    """FLOPs of an update's matrix products, for the loss and for what is added to it. Excludes generation."""
    return {
        "loss": loss_flops(model, update),
        "credit": float(sum(pass_flops(model, update, extra) for extra in passes)),
    }


def received_bytes(
    model: Model, update: Update, passes: Sequence[Pass], layout: Layout, gpus: int, micro_batches: float,
    trained: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Bytes that each GPU receives on one generation batch, for the loss and for the passes.

    ZeRO-3 and FSDP2 gather the parameters (bf16) in forward and backward, once for each pass, and the output heads once more
    to compare distributions. Gradients are scattered in each micro-batch, or once per optimizer step where the layout defers
    it. DDP adds float32 gradients up on all GPUs, and ZeRO-2 gathers what its step made.

    Args:
        model: The policy.
        update: Iterations and optimizer steps.
        passes: The passes.
        layout: The layout.
        gpus: All GPUs.
        micro_batches: Of one iteration.
        trained: Parameters with gradients; by default all.
    """
    share = 2 * (gpus - 1) / gpus
    gathered = share if layout.splits_weights else 0.0
    gradients = model.parameters if trained is None else trained
    steps = update.iterations * update.steps
    loss = update.iterations * micro_batches * 2 * gathered * model.parameters
    if update.recomputes_old_logps:
        loss += micro_batches * gathered * model.parameters
    reductions = steps if layout.defers else update.iterations * micro_batches
    loss += reductions * share * (1 if layout.splits_state else 4) * gradients
    if layout.splits_state and not layout.splits_weights:
        loss += steps * share * gradients
    credit = 0.0
    for extra in passes:
        other = model if extra.model is None else extra.model
        heads = model.head + (0 if extra.model is None else extra.model.head)
        credit += update.times(extra) * other.parameters + (update.iterations * heads if extra.compares else 0)
    return {"loss": loss, "credit": micro_batches * gathered * credit}


def update_seconds(
    model: Model, update: Update, passes: Sequence[Pass], card: Card, layout: Layout, gpus: int, rows_per_gpu: int = 8,
    per_machine: int = 8, trained: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Seconds of loss and passes. Each is the longer of computation and communication, since they overlap.

    Args:
        model: The policy.
        update: Lengths and settings.
        passes: What is added to the loss.
        card: The GPU.
        layout: The layout.
        gpus: All GPUs.
        rows_per_gpu: Completions of a micro-batch.
        per_machine: GPUs of a machine.
        trained: Parameters with gradients; by default all.
    """
    flops = update_flops(model, update, passes)
    micro_batches = max(update.completions // (gpus * rows_per_gpu), 1)
    traffic = received_bytes(model, update, passes, layout, gpus, micro_batches, trained)
    bandwidth = card.collective(gpus, per_machine)
    return {
        part: max(flops[part] / (gpus * card.flops * TRAINING_SHARE), traffic[part] / bandwidth)
        for part in ("loss", "credit")
    }


def rollout_seconds(model: Model, update: Update, card: Card, engine: Engine) -> float:
    """Seconds of decoding a generation batch, bound by reading weights and cache. Each copy of the model decodes as many
    completions at a time as its cache holds."""
    concurrent = engine.concurrent(model, card, update.length)
    rows = update.completions / engine.engines
    waves = max(rows / concurrent, 1)
    context = update.prompt + update.completion / 2
    read = packed_bytes(model, 2, engine.bits) + min(rows, concurrent) * context * model.kv_bytes
    return waves * update.completion * read / (engine.split * card.bandwidth * DECODING_SHARE)


def continued_tokens(count: int, segments: float, generations: int) -> float:
    """Tokens that continuations generate for each token of the completions: `count` from the start of each of the
    `segments` of equal length; the beginnings of the `generations` completions of a prompt are one."""
    return count * ((segments - 1) / 2 + 1 / generations)
