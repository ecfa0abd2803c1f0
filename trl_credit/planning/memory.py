"""Bytes that a GPU holds, by part."""

from dataclasses import dataclass

from .layouts import Layout
from .sizes import Model


# Assumed: CUDA's context and libraries, and the share of the memory that fragments take
CONTEXT, FRAGMENTS = 1.5e9, 0.05
# DeepSpeed's defaults, in parameters: the bucket in which gradients are reduced; those that ZeRO-3 keeps gathered
BUCKET, GATHERED = int(5e8), int(1e9)
# TRL's fused head: logits of so many tokens and columns at once. It takes all columns, also for a smaller vocabulary
_TILE_TOKENS, TILE_COLUMNS = 4096, 32768
# Two tiles of float32 logits, to compare distributions
_COMPARED_TILES = 2 * 2048 * 4096 * 4
_PACKED = {4: 0.5 + 4 / 64, 8: 1.0}  # bytes of a parameter in 4 bits, with a float32 scale for 64 of them, or in 8


@dataclass(frozen=True)
class Trained:
    """What is trained, and in which precision.

    Args:
        parameters: Those with gradients.
        weight_bytes: Bytes of a parameter as the model is loaded.
        compute_bytes: Bytes of a number in forward and backward.
        adapters: Whether only adapters are trained.
        bits: 4 or 8 if the frozen matrices are quantized.
        accumulates: Whether an optimizer step has several micro-batches and only the last one's gradients travel, where the
            layout can wait.
    """

    parameters: int
    weight_bytes: int
    compute_bytes: int
    adapters: bool = False
    bits: int | None = None
    accumulates: bool = False

    @property
    def own_bytes(self) -> int:
        """Bytes of a trained parameter without DeepSpeed. PEFT keeps adapters in float32; TRL those of quantized models in
        bfloat16."""
        return (2 if self.bits else 4) if self.adapters else self.weight_bytes


@dataclass(frozen=True)
class Batch:
    """What a process has at once.

    Args:
        rows: Completions of a micro-batch.
        prompt: Tokens of the longest prompt.
        completion: Tokens of the longest completion.
        checkpointing: Gradient checkpointing.
        attention: `flash`; `sdpa`, whose kernels take a mask; or `eager`, which keeps all scores.
    """

    rows: int
    prompt: int
    completion: int
    checkpointing: bool = False
    attention: str = "sdpa"

    @property
    def length(self) -> int:
        return self.prompt + self.completion


def packed_bytes(model: Model, width: int, bits: int | None) -> float:
    """Bytes of a model's weights, of which bitsandbytes packs the layers' matrices if there are `bits`."""
    packed = model.linear if bits else 0
    return width * (model.parameters - packed) + (_PACKED[bits] * packed if bits else 0)


def state_bytes(model: Model, trained: Trained, layout: Layout, gpus: int) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer (Adam's two moments and master weights)."""
    weights_over = gpus if layout.splits_weights else 1
    state_over = gpus if layout.splits_state else 1
    adapters = trained.parameters if trained.adapters else 0
    half = layout.master and trained.compute_bytes == 2
    weight = trained.compute_bytes if half else trained.weight_bytes
    own = trained.compute_bytes if half else trained.own_bytes  # DeepSpeed casts adapters, too
    weights = (packed_bytes(model, weight, trained.bits) + own * adapters) / weights_over
    optimizer = (8 if layout.master or own == 4 else 2 * own) + (4 if layout.master else 0)
    return {
        "weights": weights,
        "gradients": own * trained.parameters / state_over,
        "optimizer": optimizer * trained.parameters / state_over,
    }


def buffer_bytes(model: Model, trained: Trained, layout: Layout, gpus: int) -> float:
    """Bytes of what a layout holds while it communicates or casts."""
    compute = trained.compute_bytes
    found = 0.0
    if layout.casts and trained.weight_bytes > compute:
        found += compute * (model.parameters - (model.linear if trained.bits else 0))  # autocast's copies
    if layout.name == "ddp":
        found += trained.own_bytes * trained.parameters  # buckets
    if layout.master:
        found += compute * min(BUCKET, trained.parameters)
    if layout.splits_weights and gpus > 1:
        layer = (model.parameters - 2 * model.head) / max(model.layers, 1)
        at_once = min(GATHERED, model.parameters) if layout.master else 2 * max(layer, 0) + model.head
        found += compute * at_once
    return found


def waiting_bytes(trained: Trained, layout: Layout, gpus: int) -> float:
    """Bytes of gradients that wait for the last micro-batch: FSDP2 then keeps them whole on each GPU."""
    waits = layout.splits_state and layout.defers and trained.accumulates and gpus > 1
    return trained.compute_bytes * trained.parameters if waits else 0.0


def step_bytes(trained: Trained, layout: Layout, gpus: int) -> float:
    """Bytes that the optimizer's step needs besides: DeepSpeed's float32 copy of the process's gradients."""
    return 4 * trained.parameters / gpus if layout.master and trained.compute_bytes == 2 else 0.0


def frozen_bytes(model: Model, weight_bytes: int, layout: Layout, gpus: int, bits: int | None = None) -> float:
    """Bytes of a model that is not trained, such as a reference or teacher: quantized as the policy is."""
    return packed_bytes(model, weight_bytes, bits) / (gpus if layout.splits_weights else 1)


def layer_bytes(model: Model, trained: Trained, batch: Batch, residual: int) -> float:
    """Bytes that a layer keeps for its backward.

    Of each token: both norms' input in float32 and what their weights multiply, the input of the matrices, queries, keys,
    values and what attention makes of them, and the MLP's gate, its activation, the other branch and their product.

    Args:
        model: The model.
        trained: Precisions.
        batch: Sizes.
        residual: Bytes of a number in the residual stream.
    """
    c = trained.compute_bytes
    # Autocast casts the norms' output once for each of the five matrices that read it
    inputs = (5 if residual > c else 2) * c
    norms = model.hidden * (2 * (4 + residual) + inputs)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # With a mask, keys and values are repeated for all heads
    attention = c * (2 * (queries + keys) if batch.attention == "flash" else 4 * queries) + 4 * model.heads
    mlp = 4 * c * model.intermediate
    tokens = batch.rows * batch.length
    scores = {"flash": 0, "sdpa": c, "eager": model.heads * (c + 4)}[batch.attention]  # the mask as the kernel takes it
    return tokens * (norms + attention + mlp) + scores * batch.rows * batch.length**2


def kept_bytes(model: Model, trained: Trained, batch: Batch, half: bool = False) -> float:
    """Bytes of what the forward keeps for the backward, without the output head's.

    Args:
        model: The model.
        trained: Precisions.
        batch: Sizes.
        half: Whether the layout casts the weights to the precision of the computation, and with them the residual stream.
    """
    residual = trained.compute_bytes if half else trained.weight_bytes
    tokens = batch.rows * batch.length
    last = tokens * model.hidden * (4 + residual)  # the norm at the end
    layers = model.layers * (
        tokens * model.hidden * residual if batch.checkpointing else layer_bytes(model, trained, batch, residual)
    )
    return layers + last


def activation_bytes(model: Model, trained: Trained, batch: Batch, half: bool = False) -> float:
    """Bytes of a micro-batch's activations at their most: [`kept_bytes`], with checkpointing those of one layer, which is
    computed again, what a layer's backward makes before it lets go (gradients of the MLP's branches and of the stream), and
    the mask of booleans."""
    residual = trained.compute_bytes if half else trained.weight_bytes
    again = layer_bytes(model, trained, batch, residual) if batch.checkpointing else 0.0
    tokens = batch.rows * batch.length
    gradients = tokens * (3 * model.intermediate + 2 * model.hidden) * trained.compute_bytes
    mask = 0 if batch.attention == "flash" else batch.rows * batch.length**2
    return kept_bytes(model, trained, batch, half) + again + gradients + mask


def head_bytes(model: Model, trained: Trained, batch: Batch) -> float:
    """Bytes of TRL's fused output head in the backward: a tile of logits, the float32 gradients of the hidden states and, if
    it is trained, of the head."""
    tokens = batch.rows * batch.completion
    tile = min(tokens, _TILE_TOKENS) * TILE_COLUMNS * trained.compute_bytes
    return tile + tokens * model.hidden * (4 + trained.compute_bytes) + (0 if trained.adapters else 4 * model.head)


def compared_bytes(model: Model, compute_bytes: int, batch: Batch) -> float:
    """Bytes to compare next-token distributions: the hidden states of both sides, and two tiles of logits."""
    return 2 * batch.rows * batch.completion * model.hidden * compute_bytes + _COMPARED_TILES


def generation_bytes(model: Model, compute_bytes: int, rows: int, length: int) -> float:
    """Bytes of the cache of keys and values when transformers generates."""
    return model.kv_bytes / 2 * compute_bytes * rows * length
