"""vLLM: what it holds, and how many completions it decodes at a time."""

from dataclasses import dataclass

from .cards import Card
from .memory import packed_bytes
from .sizes import Model


# Of the memory, for an engine with GPUs of its own: vLLM's default
OWN_SHARE = 0.9
# Of an engine's memory, for weights and cache; the rest is for its activations
HELD_SHARE = 0.9
# Completions at a time, at most
MOST = 256


@dataclass(frozen=True)
class Engine:
    """The engines of a run.

    Args:
        gpus: GPUs of all engines.
        split: GPUs that share a copy of the weights.
        share: Of a GPU's memory.
        bits: 4 if the weights are quantized.
    """

    gpus: int
    split: int
    share: float = OWN_SHARE
    bits: int | None = None

    @property
    def engines(self) -> int:
        return max(self.gpus // self.split, 1)

    def cache(self, model: Model, card: Card) -> float:
        """Bytes that a copy has for keys and values."""
        return HELD_SHARE * self.share * self.split * card.memory - packed_bytes(model, 2, self.bits)

    def fits(self, model: Model, card: Card, context: int) -> bool:
        """Whether a copy has room for a sequence of so many tokens, without which vLLM does not start."""
        return self.split <= self.gpus and self.cache(model, card) >= model.kv_bytes * context

    def concurrent(self, model: Model, card: Card, length: int) -> int:
        """Completions of this length, with their prompts, that a copy decodes at a time."""
        return int(min(max(self.cache(model, card) // (model.kv_bytes * length), 1), MOST))


def own_engine(model: Model, card: Card, gpus: int, context: int) -> Engine:
    """Engines with these GPUs to themselves: each on the smallest power of two GPUs that leaves room for the cache."""
    split = 1
    while split < gpus and not (
        2 * model.parameters <= 0.6 * split * card.memory and Engine(gpus, split).fits(model, card, context)
    ):
        split *= 2
    return Engine(gpus, split)
