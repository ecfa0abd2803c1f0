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
    waiting_bytes,
)
from .run import Run, kept_signals


# Of the memory: nearer to the limit, an estimate cannot tell
CLOSE = 0.05


@dataclass(frozen=True)
class Held:
    """What a GPU holds at its peak.

    Args:
        parts: Bytes by part.
        memory: Bytes of the GPU.
        peak: When the peak is: `loss`, `step`, `rollout` or `rollout's credit`.
        engine_fits: Whether vLLM has room for the weights and the cache of one completion.
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

    @property
    def roomy(self) -> bool:
        return self.fits and not self.close


def held(run: Run, layout: Layout, gpus: int, card: Card) -> Held:
    """What each GPU holds, at its peak."""
    model, trained = run.model, run.trained_in(layout)
    always = state_bytes(model, trained, layout, gpus)
    width = trained.compute_bytes if layout.master else run.trained.weight_bytes
    if not layout.splits_weights and not layout.master:
        width = trained.weight_bytes
    for title, other in run.frozen().items():
        always[f"model beside the policy: {title}"] = frozen_bytes(other, width, layout, gpus, trained.bits)
    always["communication and casts"] = buffer_bytes(model, trained, layout, gpus)
    if run.update.iterations > 1:
        wanted = kept_signals(run.passes, model, trained.compute_bytes, run.rows * run.batch.completion)
        always["signals kept for later iterations"] = min(run.cache, wanted)
    phases = _phases(run, layout, gpus, card)
    peak = max(phases, key=lambda phase: sum(phases[phase].values()))
    parts = always | phases[peak] | {"CUDA and fragments": CONTEXT + FRAGMENTS * card.memory}
    engine_fits = run.engine is None or run.engine_on(card, gpus).fits(model, card, run.context)
    return Held({name: size for name, size in parts.items() if size}, card.memory, peak, engine_fits)


def _phases(run: Run, layout: Layout, gpus: int, card: Card) -> dict[str, dict[str, float]]:
    """Bytes that a GPU holds in one phase only, by phase."""
    model, trained, batch = run.model, run.trained_in(layout), run.batch
    compute = trained.compute_bytes
    engine = run.engine_share * card.memory if run.engine == "colocate" else 0.0
    awake = {"vLLM": engine if not run.sleeps else 0.0}
    compares = any(extra.compares for extra in run.passes)
    # DeepSpeed gathers the whole model to merge adapters for vLLM, and for transformers to generate
    whole = layout.master and layout.splits_weights and (trained.adapters if run.engine else run.gathers)
    states = compute * model.hidden * run.rows * batch.completion if run.rollout_states else 0.0
    return {
        "loss": {
            "activations": activation_bytes(model, trained, batch, not layout.casts),
            "logits and the head's gradient": head_bytes(model, trained, batch),
            "credit's hidden states": compared_bytes(model, compute, batch) if compares else 0.0,
            "gradients that wait for the last micro-batch": waiting_bytes(trained, layout, gpus),
            **awake,
        },
        "step": {"float32 copy of the gradients": step_bytes(trained, layout, gpus), **awake},
        "rollout": {
            "gathered weights": compute * model.parameters if whole else 0.0,
            "keys and values": 0.0 if run.engine else generation_bytes(model, compute, run.rows, batch.length),
            "vLLM": engine,
        },
        "rollout's credit": {"hidden states of the generation batch": states, **awake},
    }
