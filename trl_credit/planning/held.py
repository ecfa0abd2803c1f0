"""What each GPU holds of a run, at its peak."""

from dataclasses import dataclass

from .cards import Card
from .layouts import Layout
from .memory import (
    CONTEXT,
    FRAGMENTS,
    activation_bytes,
    buffer_bytes,
    compared_bytes,
    frozen_bytes,
    generation_bytes,
    head_bytes,
    state_bytes,
    step_bytes,
)
from .run import Run


# Of the memory: nearer to the limit, an estimate cannot tell
CLOSE = 0.05


@dataclass(frozen=True)
class Held:
    """What a GPU holds at its peak.

    Args:
        parts: Bytes by part.
        memory: Bytes of the GPU.
        peak: When the peak is: `loss`, `step` or `rollout`.
        engine_fits: Whether vLLM's share holds the weights and the cache of one completion.
    """

    parts: dict[str, float]
    memory: float
    peak: str
    engine_fits: bool

    @property
    def left(self) -> float:
        return self.memory - sum(self.parts.values())

    @property
    def close(self) -> bool:
        """Whether what is left or lacks is less than an estimate can tell."""
        return self.engine_fits and abs(self.left) < CLOSE * self.memory

    @property
    def fits(self) -> bool:
        return self.left >= 0 and self.engine_fits


def held(run: Run, layout: Layout, gpus: int, card: Card) -> Held:
    """What each GPU holds, at its peak."""
    model, trained, batch = run.model, run.trained_in(layout), run.batch
    compute = trained.compute_bytes
    frozen_width = (
        compute if layout.master else run.trained.weight_bytes if layout.splits_weights else trained.weight_bytes
    )
    parts = state_bytes(model, trained, layout, gpus)
    for title, other in run.frozen().items():
        parts[f"model beside the policy: {title}"] = frozen_bytes(other, frozen_width, layout, gpus)
    parts["communication and casts"] = buffer_bytes(model, trained, layout, gpus)
    engine = run.engine_share * card.memory if run.engine == "colocate" else 0.0
    compares = any(extra.compares for extra in run.passes)
    loss = {
        "activations": activation_bytes(model, trained, batch, not layout.casts),
        "logits and the head's gradient": head_bytes(model, trained, batch),
        "credit's hidden states": compared_bytes(model, compute, batch) if compares else 0.0,
    }
    kept = 0.0
    if run.update.iterations > 1 and any(extra.compares and not extra.repeated for extra in run.passes):
        kept = min(run.cache, compute * model.hidden * run.rows * batch.completion)
    gathers = layout.splits_weights and gpus > 1 and (run.trained.adapters if run.engine else run.gathers)
    rollout = compute * model.parameters if gathers else 0.0
    if run.engine is None:
        rollout += generation_bytes(model, compute, run.rows, batch.length)
    states = compute * model.hidden * run.rows * batch.completion if run.rollout_states else 0.0
    asleep = 0.0 if run.sleeps else engine
    phases = {
        "loss": sum(loss.values()) + asleep,
        "step": step_bytes(trained, layout, gpus) + asleep,
        "rollout": max(rollout + engine, states + asleep),
    }
    peak = max(phases, key=phases.get)
    parts |= {
        **loss,
        "signals kept for later iterations": kept,
        "vLLM": asleep,
        f"more at the peak, in the {peak}": phases[peak] - phases["loss"],
        "CUDA and fragments": CONTEXT + FRAGMENTS * card.memory,
    }
    one = 2 * model.parameters / run.engine_split + model.kv_bytes * batch.length / run.engine_split
    engine_fits = run.engine != "colocate" or one <= 0.9 * engine
    return Held({name: size for name, size in parts.items() if size}, card.memory, peak, engine_fits)
