"""GPUs by name, with the values of their data sheets and the memory that torch reports."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .._util.text import nearest
from .._util.yaml import load_mapping


# Shares of the data-sheet values that trainers, engines and collectives achieve. Assumed, not measured.
TRAINING_SHARE, DECODING_SHARE, LINK_SHARE = 0.4, 0.6, 1 / 3
# Bytes per second and GPU that collectives achieve between machines, with 400 Gb/s per GPU
NETWORK = 40e9


@dataclass(frozen=True)
class Card:
    """A GPU.

    Args:
        name: Its name.
        memory: Bytes of memory.
        flops: Dense bf16 FLOP/s, accumulated in float32.
        bandwidth: Bytes per second from its memory.
        link: Bytes per second to the other GPUs of the machine, both directions together.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float

    def collective(self, gpus: int, per_machine: int) -> float:
        """Bytes per second and GPU that collectives achieve among so many GPUs."""
        within = self.link * LINK_SHARE
        return within if gpus <= per_machine else min(within, NETWORK)


GIB = 2**30
# Memory as torch reports it, which is less than a card is sold with. Without NVLink, the link is PCIe's.
CARDS = {
    card.name: card
    for card in (
        Card("a10", 22.0 * GIB, 125e12, 600e9, 64e9),
        Card("a100-40gb", 39.4 * GIB, 312e12, 1.555e12, 600e9),
        Card("a100-80gb", 79.1 * GIB, 312e12, 2.039e12, 600e9),
        Card("a10g", 22.0 * GIB, 70e12, 600e9, 64e9),
        Card("a40", 44.3 * GIB, 149.7e12, 696e9, 64e9),
        Card("b200", 178.3 * GIB, 2250e12, 7.7e12, 1800e9),
        Card("h100", 79.1 * GIB, 989e12, 3.35e12, 900e9),
        Card("h100-pcie", 79.1 * GIB, 756e12, 2e12, 128e9),
        Card("h200", 139.8 * GIB, 989e12, 4.8e12, 900e9),
        Card("l4", 22.0 * GIB, 121e12, 300e9, 64e9),
        Card("l40s", 44.3 * GIB, 362e12, 864e9, 64e9),
        Card("mi300x", 191.9 * GIB, 1307e12, 5.3e12, 896e9),
        Card("rtx-3090", 23.6 * GIB, 71e12, 936e9, 64e9),
        Card("rtx-4090", 23.6 * GIB, 165.2e12, 1008e9, 64e9),
        Card("rtx-5090", 31.3 * GIB, 209.5e12, 1792e9, 128e9),
        Card("rtx-a6000", 47.5 * GIB, 154.8e12, 768e9, 64e9),
    )
}
# Words of a name that tell nothing more: makers, sockets and kinds of memory
_COMMON_WORDS = re.compile(r"nvidia|amd|instinct|geforce|sxm\d?|hbm\d?e?")
_NUMBERS = tuple(field.name for field in fields(Card) if field.name != "name")


def card_of(spec: str | Mapping[str, Any]) -> Card:
    """The card of a name, or of a mapping of its numbers: `{memory: 80e9, flops: 989e12, bandwidth: 3.35e12, link: 900e9}`.

    A name may be as torch gives it.

    Raises:
        ValueError: An unknown name (the message names the nearest), or a number that is missing, unknown or not positive.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = load_mapping(spec)
        except ValueError as error:
            raise ValueError(f"`gpu`: {error}.") from None
    if isinstance(spec, Mapping):
        return _of_numbers(spec)
    words = re.split(r"[\s_-]+", spec.strip().lower())
    named = [card for card in CARDS.values() if _names(words, card)]
    if not named:
        plain = "-".join(word for word in words if not _COMMON_WORDS.fullmatch(word))
        alike = [known for known in CARDS if plain and known[0] == plain[0]]
        closest = min((known for known in alike if known.startswith(plain)), key=len, default=plain)
        hint = nearest(closest, alike).split("Known: ")[0]
        raise ValueError(
            f"`gpu`: there is no card {spec!r}. {hint}Known: {', '.join(CARDS)}. For another one give its numbers: "
            "{memory: 80e9, flops: 989e12, bandwidth: 3.35e12, link: 900e9}."
        )
    return max(named, key=lambda card: len(card.name))


def _names(words: list[str], card: Card) -> bool:
    """Whether words, such as those of torch's `NVIDIA H100 80GB HBM3`, name a card: all of its own, and no other that tells
    of another card."""
    rest = [word for word in words if word not in card.name.split("-") and not _COMMON_WORDS.fullmatch(word)]
    sold = re.compile(r"(\d+)gb")
    return set(card.name.split("-")) <= set(words) and all(
        (size := sold.fullmatch(word)) and abs(int(size[1]) * 1e9 - card.memory) < 0.1 * card.memory for word in rest
    )


def _of_numbers(spec: Mapping[str, Any]) -> Card:
    for key in spec:
        if key not in (*_NUMBERS, "name"):
            raise ValueError(f"`gpu`: there is no number {key!r}. {nearest(str(key), _NUMBERS)}")
    found = {}
    for key in _NUMBERS:
        if key not in spec:
            raise ValueError(f"`gpu`: `{key}` is missing. A card has the numbers {', '.join(_NUMBERS)}.")
        try:
            found[key] = float(spec[key])
        except (TypeError, ValueError):
            found[key] = float("nan")
        if isinstance(spec[key], bool) or not 0 < found[key] < float("inf"):
            raise ValueError(f"`gpu`: `{key}` must be a positive number, got {spec[key]!r}.")
    if found["memory"] < 1e9:
        raise ValueError(f"`gpu`: `memory` is in bytes (80e9 for 80 GB), got {spec['memory']!r}.")
    return Card(str(spec.get("name", "your card")), **found)
