"""A recipe in numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .cards import Card
from .engine import Engine, own_engine
from .layouts import Layout
from .memory import Batch, Trained
from .sizes import Model
from .work import Pass, Update


@dataclass(frozen=True)
class Run:
    """A recipe in numbers.

    Args:
        method: Name of the credit method.
        model: The policy.
        trained: What is trained, at the precision of the recipe.
        precision: accelerate's `mixed_precision`.
        batch: A micro-batch, of the greatest lengths.
        accumulation: Micro-batches of an optimizer step.
        steps: Micro-batches of a generation batch.
        update: The updates on a generation batch, of mean lengths.
        passes: What credit adds.
        penalty: The forward of TRL's KL penalty, if there is one.
        continued: Tokens that credit generates for each token of the rollout.
        rollout_states: Whether credit reads the hidden states of a whole generation batch at once.
        cache: Bytes of a GPU at most for signals that iterations share.
        engine: `colocate`, `server`, or `None` if transformers generates.
        engine_share: vLLM's share of the GPU's memory, beside training.
        engine_split: GPUs that share a copy of the engine's weights, beside training.
        engine_gpus: GPUs of a server.
        context: Tokens of the longest sequence that vLLM promises to hold.
        sleeps: Whether vLLM frees its memory in the updates.
        gathers: Whether transformers generates with gathered weights under ZeRO-3.
        uncounted: What the numbers leave out, in words.
    """

    method: str
    model: Model
    trained: Trained
    precision: str
    batch: Batch
    accumulation: int
    steps: int
    update: Update
    passes: tuple[Pass, ...]
    penalty: Pass | None
    continued: float
    rollout_states: bool
    cache: float
    engine: str | None
    engine_share: float
    engine_split: int
    engine_gpus: int
    context: int
    sleeps: bool
    gathers: bool
    uncounted: tuple[str, ...]

    @property
    def updates(self) -> float:
        """Optimizer steps on a generation batch."""
        return self.update.iterations * self.steps / self.accumulation

    @property
    def rows(self) -> int:
        """Completions of a generation batch, for each GPU."""
        return self.batch.rows * self.steps

    def engine_on(self, card: Card, gpus: int) -> Engine:
        """The engines. Where transformers generates, those that could."""
        if self.engine == "colocate":
            return Engine(gpus, self.engine_split, self.engine_share, self.trained.bits)
        return own_engine(self.model, card, self.engine_gpus if self.engine else gpus, self.context)

    def trained_in(self, layout: Layout) -> Trained:
        """What is trained, at the precision in which a layout needs the weights: in float32 where they are their own
        master."""
        if self.trained.adapters or layout.master:
            return self.trained
        return replace(self.trained, weight_bytes=4, compute_bytes=4 if self.precision == "no" else 2)

    def frozen(self) -> dict[str, Model]:
        """The models beside the policy, by what they are for. A reference that the KL penalty and a method share is one."""
        found = {} if self.penalty is None or self.penalty.model is None else {self.penalty.title: self.penalty.model}
        for extra in self.passes:
            if extra.model is not None and extra.model not in found.values():
                found[extra.title] = extra.model
        return found


def kept_signals(passes: Iterable[Pass], model: Model, compute_bytes: int, tokens: float) -> float:
    """Bytes of the hidden states that iterations share."""
    kept = (extra.model or model for extra in passes if extra.compares and not extra.repeated)
    return sum(compute_bytes * each.hidden * tokens for each in kept)
