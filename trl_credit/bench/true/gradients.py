"""Compares the policy gradients that methods make with the one that the true advantages make.

For a prompt's group of N completions, with the method's token advantages m_it or the true ones A*_it,

    g = -grad (1/N) sum_i sum_t m_it log pi(y_it)        G = -grad (1/N) sum_i sum_t A*_it log pi(y_it)

E[G | prompt] is the gradient of the prompt's expected reward, whatever N is. It is estimated from N other completions of
the same prompt (F), so that the errors of g and F are independent, and scores need only products:

    <g, target> = mean_j g_j . F_j / b + (1 - 1/b) mean_{j != k} g_j . F_k        batches of b prompts, j and k
    |target|^2  = mean_j G_j . F_j / b + (1 - 1/b) mean_{j != k} G_j . F_k
    |g|^2       = mean_j g_j . g_j / b + (1 - 1/b) mean_{j != k} g_j . g_k

    cosine              <g, target> / (|g| |target|): between the gradient of a batch and the true gradient of the same
                        prompts, which is what so many completions tell of where the reward rises. Ratios of expectations
    relative variance   1 / cosine^2 - 1 of one group: what is off the true direction over what is along it, squared

What differs between prompts, which no credit can change, is not counted as error. All products are of estimates from
different halves of the continuations where both have some, so errors of the values count neither as length nor as variance.
Gradients are sketched to a fixed length (count sketch, Charikar, Chen and Farach-Colton 2002): each parameter is added, with
a random sign, to a random place. Products keep their expectation; their error is about 1/sqrt(length) of the product of the
two lengths.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..gradients import _logps, group_gradients
from ..groups import Group


TRUE = "true"
# The true gradients from either half of the continuations: of the completions that the methods see, and of others
_HALVES = ("true, half 0", "true, half 1")
_OTHERS = ("others, half 0", "others, half 1")
NAMES = ("cosine", "captured", "group_cosine", "relative_variance")
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


class Tempered(torch.nn.Module):
    """The model with its logits divided by the temperature of the rollouts, as the trainer's log-probs have them."""

    def __init__(self, model: torch.nn.Module, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, **inputs):
        output = self.model(**inputs)
        output.logits = output.logits / self.temperature
        return output


@torch.no_grad()
def token_logps(
    model: torch.nn.Module, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, rows: int = 32
) -> list[np.ndarray]:
    """Log-probs of the tokens of each completion, given as (prompt, completion) token ids."""
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        prompts, completions = ([list(pairs[i][side]) for i in part] for side in (0, 1))
        logps = _logps(model, prompts, completions, pad).double().cpu().numpy()
        for row, i, prompt, completion in zip(logps, part, prompts, completions, strict=True):
            found[i] = row[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
    return [found[i] for i in range(len(pairs))]


def group_sketches(
    model: torch.nn.Module,
    groups: Sequence[Group],
    credit: Mapping[str, Sequence[Sequence[np.ndarray]]],
    truths: Sequence[Sequence[np.ndarray]],
    others: Sequence[Group],
    other_truths: Sequence[Sequence[np.ndarray]],
    pad: int,
    length: int,
    progress=lambda what, done, total: None,
) -> dict[str, np.ndarray]:
    """By label, (P, length) sketched gradients of the groups, under each method's token advantages and the true ones.

    Args:
        model: The policy.
        groups: Completions of P prompts.
        credit: By label and group, (T,) token advantages of each completion, 0 outside the loss.
        truths: By group, (T, 2) true advantages of each completion, from either half of the continuations.
        others: Other completions of the same prompts.
        other_truths: Their true advantages.
        pad: Padding token id.
        length: Of the sketch.
        progress: Called with what is made, how many are done, and of how many.
    """
    sketch = Sketch(length)
    size = min(length, sum(p.numel() for p in model.parameters() if p.requires_grad))
    found = {label: np.zeros((len(groups), size), np.float32) for label in (*credit, *_HALVES, *_OTHERS)}
    for number, (group, other) in enumerate(zip(groups, others, strict=True)):
        progress("gradients", number, len(groups))
        seen = {label: credit[label][number] for label in credit}
        seen |= {label: [own[:, half] for own in truths[number]] for half, label in enumerate(_HALVES)}
        unseen = {label: [own[:, half] for own in other_truths[number]] for half, label in enumerate(_OTHERS)}
        for completions, rows in ((group, seen), (other, unseen)):
            for label, gradient in group_gradients(model, completions, rows, pad):
                if gradient is not None:
                    found[label][number] = sketch(gradient).numpy()
    progress("gradients", len(groups), len(groups))
    return found


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, P) products between prompts, the same for (j, k) and (k, j)."""
    found = (a @ b.T).astype(np.float64)
    return (found + found.T) / 2


def _expected(products: np.ndarray, counts: np.ndarray, batch: int) -> np.ndarray:
    """Expected product of the means over a batch of different prompts, from (..., P) counts of prompts."""
    alike = counts @ np.diag(products) / counts.sum(-1)
    pairs = counts.sum(-1) ** 2 - (counts**2).sum(-1)
    total = ((counts @ products) * counts).sum(-1) - counts**2 @ np.diag(products)
    apart = np.divide(total, pairs, out=np.zeros(np.shape(total)), where=pairs > 0)
    return alike / batch + (1 - 1 / batch) * apart


def statistics_of(
    sketches: Mapping[str, np.ndarray], batch: int, baseline: str = "uniform"
) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """By label, and `true` for the true advantages themselves, a function of prompts' counts as
    [`~trl_credit.bench.true.scores.compare`] takes it.

    `captured` is the share of the way from the baseline's cosine to the true advantages' own.
    """
    seen, unseen = [sketches[label] for label in _HALVES], [sketches[label] for label in _OTHERS]
    other = (unseen[0] + unseen[1]) / 2
    # Either half with the other one of the other completions, as prefixes that both have share their continuations
    target = (_products(seen[0], unseen[1]) + _products(seen[1], unseen[0])) / 2
    squares = {label: _products(own, own) for label, own in sketches.items() if label not in (*_HALVES, *_OTHERS)}
    along = {label: _products(sketches[label], other) for label in squares}
    squares[TRUE], along[TRUE] = _products(*seen), target

    def cosine(label: str, counts: np.ndarray, batch: int) -> np.ndarray:
        square, length = (_expected(products, counts, batch) for products in (squares[label], target))
        below = np.sqrt(np.where((square > 0) & (length > 0), square * length, np.nan))
        return _expected(along[label], counts, batch) / below

    def of(label: str):
        def function(counts: np.ndarray) -> dict[str, np.ndarray]:
            counts = np.asarray(counts, np.float64)
            own, low, high = (cosine(name, counts, batch) for name in (label, baseline, TRUE))
            group = cosine(label, counts, 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return {
                    "cosine": own,
                    "captured": (own - low) / np.where(high > low, high - low, np.nan),
                    "group_cosine": group,
                    "relative_variance": 1 / np.where(group > 0, group, np.nan) ** 2 - 1,
                }

        return function

    return {label: of(label) for label in squares}
