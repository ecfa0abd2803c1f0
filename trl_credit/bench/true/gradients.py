"""Compares the policy gradients that methods make with the one that the true advantages make.

For a prompt's group of N completions, with the method's token advantages m_it or the true ones A*_it,

    g = -grad (1/N) sum_i sum_t m_it log pi(y_it)        G = -grad (1/N) sum_i sum_t A*_it log pi(y_it)

E[G] is the gradient of the expected reward, whatever the group's size. All that is needed are products of gradients of
different prompts, whose errors are independent, and of a prompt with itself:

    <E g, E G> = mean of g_j . G_k over j != k
    |E g|^2    = mean of g_j . g_k over j != k
    var g      = mean of |g_j|^2 - |E g|^2

    bias cosine           <E g, E G> / (|E g| |E G|): between the mean of ever more batches and the true gradient
    relative variance     var g / |E g|^2, of one group
    cosine                <E g, E G> / (|E G| sqrt(|E g|^2 + var g / b)): between the gradient of a batch of b groups and the
                          true gradient, what one update can gain from so many completions

Products of the true gradient with itself are of its two halves, from either half of the continuations, so that errors of the
values count neither as length nor as variance. Gradients are sketched to a fixed length (count sketch, Charikar, Chen and
Farach-Colton 2002): each parameter is added, with a random sign, to a random place. Products keep their expectation; their
error is at most about 1/sqrt(length) of the product of the two lengths.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..gradients import group_gradients
from ..groups import Group
from .scores import Truth


TRUE = "true"
_HALVES = ("true, half 0", "true, half 1")
NAMES = ("cosine", "bias_cosine", "relative_variance", "captured")
_CHUNK = 2**22


class Sketch:
    """Sketches vectors of any length to `length` numbers, a power of two. The same places for all vectors."""

    def __init__(self, length: int, seed: int = 0):
        self.length = length
        generator = torch.Generator().manual_seed(seed)
        self._odd, self._shift, self._sign_odd, self._sign_shift = (
            int(number) * 2 + 1 for number in torch.randint(2**61, (4,), generator=generator)
        )
        self._bits = length.bit_length() - 1
        if length < 2 or 1 << self._bits != length:
            raise ValueError(f"`sketch` must be a power of two from 2, got {length}.")

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        if len(vector) <= self.length:
            return vector.float().cpu()
        result = torch.zeros(self.length, device=vector.device)
        for start in range(0, len(vector), _CHUNK):
            part = vector[start : start + _CHUNK].float()
            place = torch.arange(start, start + len(part), device=vector.device)
            # Multiply and shift, in the 64 bits of an int64 that overflows
            where = (self._mixed(place * self._odd + self._shift) >> (62 - self._bits)) & (self.length - 1)
            sign = ((self._mixed(place * self._sign_odd + self._sign_shift) >> 40) & 1) * 2 - 1
            result.index_add_(0, where, part * sign)
        return result.cpu()

    @staticmethod
    def _mixed(state: torch.Tensor) -> torch.Tensor:
        state = (state ^ ((state >> 30) & (2**34 - 1))) * -4658895280553007687  # of SplitMix64
        return state ^ ((state >> 27) & (2**37 - 1))


def group_sketches(
    model: torch.nn.Module,
    groups: Sequence[Group],
    credit: Mapping[str, Sequence[Sequence[np.ndarray]]],
    truths: Sequence[Sequence[Truth]],
    pad: int,
    length: int,
    progress=lambda what, done, total: None,
) -> dict[str, np.ndarray]:
    """By label, (P, length) sketched gradients of the groups, under each method's token advantages and the true ones.

    Args:
        model: The policy.
        groups: P groups of completions.
        credit: By label and group, (T,) token advantages of each completion, 0 outside the loss.
        truths: By group, the completions' true advantages, with T tokens too.
        pad: Padding token id.
        length: Of the sketch.
        progress: Called with what is made, how many are done, and of how many.
    """
    sketch = Sketch(length)
    size = min(length, sum(p.numel() for p in model.parameters() if p.requires_grad))
    labels = [*credit, *_HALVES]
    found = {label: np.zeros((len(groups), size), np.float32) for label in labels}
    for number, group in enumerate(groups):
        progress("gradients", number, len(groups))
        rows = {label: credit[label][number] for label in credit}
        rows |= {label: [truth.halves[:, half] for truth in truths[number]] for half, label in enumerate(_HALVES)}
        for label, gradient in group_gradients(model, group, rows, pad):
            if gradient is not None:
                found[label][number] = sketch(gradient).numpy()
    progress("gradients", len(groups), len(groups))
    return found


class Products:
    """Products between the groups' gradients of one method, and with the true ones.

    Args:
        own: (P, L) sketches of the method, or of half 0 of the true gradients.
        other: The same; half 1 for the true gradients.
        first: (P, L) sketches of the true gradients' half 0.
        second: Of half 1.
    """

    def __init__(self, own: np.ndarray, other: np.ndarray, first: np.ndarray, second: np.ndarray):
        true = (first + second) / 2
        mean = own if other is own else (own + other) / 2
        self.self_products = (own @ other.T).astype(np.float64)
        self.self_products = (self.self_products + self.self_products.T) / 2
        self.cross = (mean @ true.T).astype(np.float64)
        self.truth = (first @ second.T).astype(np.float64)

    def statistics(self, weights: np.ndarray, batch: int) -> dict[str, np.ndarray]:
        """Scores from (..., P) numbers of times that each prompt counts."""
        w = np.asarray(weights, np.float64)

        def between(products: np.ndarray) -> np.ndarray:
            """Mean over pairs of different prompts."""
            pairs = w.sum(-1) ** 2 - (w**2).sum(-1)
            total = ((w @ products) * w).sum(-1) - w**2 @ np.diag(products)
            return np.divide(total, pairs, out=np.full(np.shape(total), np.nan), where=pairs > 0)

        own, cross, truth = between(self.self_products), between(self.cross), between(self.truth)
        second_moment = w @ np.diag(self.self_products) / w.sum(-1)
        variance = second_moment - own

        def root(value: np.ndarray) -> np.ndarray:
            return np.sqrt(np.where(value > 0, value, np.nan))

        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "cosine": cross / (root(truth) * root(own + variance / batch)),
                "bias_cosine": cross / (root(truth) * root(own)),
                "relative_variance": variance / np.where(own > 0, own, np.nan),
            }


def statistics_of(sketches: Mapping[str, np.ndarray], batch: int, baseline: str = "uniform") -> dict:
    """By label, and `true` for the true gradient itself, a function of prompts' counts as [`compare`] takes it.

    `captured` is the share of the way from the baseline's cosine to the true advantages' own.
    """
    first, second = (sketches[label] for label in _HALVES)
    products = {label: Products(own, own, first, second) for label, own in sketches.items() if label not in _HALVES}
    products[TRUE] = Products(first, second, first, second)

    def of(label: str):
        def function(weights: np.ndarray) -> dict[str, np.ndarray]:
            own = products[label].statistics(weights, batch)
            low, high = (products[other].statistics(weights, batch)["cosine"] for other in (baseline, TRUE))
            with np.errstate(divide="ignore", invalid="ignore"):
                return own | {"captured": (own["cosine"] - low) / np.where(high > low, high - low, np.nan)}

        return function

    return {label: of(label) for label in products}
