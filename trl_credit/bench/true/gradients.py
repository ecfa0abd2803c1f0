"""Compares the policy gradients that methods make with the one that the true advantages make.

For a prompt's group of N completions, with the method's token advantages m_it or the true ones A*_it,

    g = -grad (1/N) sum_i sum_t m_it log pi(y_it)        G = -grad (1/N) sum_i sum_t A*_it log pi(y_it)

E[G | prompt] is the gradient of the prompt's expected reward, whatever N is. Each prompt j has two groups, a and b, whose
errors are independent. With x . y for the product of means over a batch of B prompts, which is

    (1/B) mean_j x_j . y_j + (1 - 1/B) mean_{j != k} x_j . y_k

the sums that scores are made of are

    along    g . target       (g_ja . G_jb + g_jb . G_ja) / 2       never a gradient with the noise of its own completions
    length   |target|^2       G_ja . G_jb
    square   |g|^2            (g_ja . g_ja + g_jb . g_jb) / 2
    signal   |E[g]|^2         g_ja . g_jb

where x_j . y_k of two prompts takes the means of their groups. Scores:

    cosine    along / sqrt(square length): between the gradient of a batch and the true gradient of the same prompts, which
              is what so many completions tell of where the reward rises
    limit     along / sqrt(signal length): the same with any number of completions. Below 1, the method's expected gradient
              points elsewhere
    share     1 / n, if uniform credit needs n times as many completions of each prompt for the method's cosine. Its square
              is then signal + (square - signal) / n, so

                  share = (square (along_uniform / along)^2 - signal_uniform) / (square_uniform - signal_uniform)

              0 or less if uniform does not get there with any number. The length of the target is not in it

Ratios of expectations. Groups a and b of the same prompts are on both sides of a ratio, so that errors of the target cancel
to the first order: with one group for the methods and the other for the target, the cosine of a method without noise of
its own would scatter by half of the relative error of |target|^2.

What differs between prompts, which no credit can change, is not counted as error. All products are of estimates from
different halves of the continuations where both have some, so errors of the values count neither as length nor as variance.
Gradients are sketched to a fixed length (count sketch, Charikar, Chen and Farach-Colton 2002): each parameter is added, with
a random sign, to a random place. Products keep their expectation; their error is about 1/sqrt(length) of the product of the
two lengths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..gradients import _logps, group_gradients
from ..groups import Group


TRUE = "true"
# The true gradients from either half of the continuations
HALVES = ("true, half 0", "true, half 1")
NAMES = ("cosine", "limit", "share")
# Share of a method whose gradient does not point along the true one
HOPELESS = 1e6
_CHUNK = 2**22


@dataclass(frozen=True)
class Credited:
    """A group with token advantages.

    Args:
        group: Completions of a prompt.
        credit: By label, (T,) token advantages of each completion, 0 outside the loss. Among the labels are [`HALVES`].
    """

    group: Group
    credit: Mapping[str, Sequence[np.ndarray]]


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
        logps = _logps(model, prompts, completions, pad).cpu().double().numpy()
        for row, i, prompt, completion in zip(logps, part, prompts, completions, strict=True):
            found[i] = row[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
    return [found[i] for i in range(len(pairs))]


def group_sketches(
    model: torch.nn.Module,
    pairs: Sequence[tuple[Credited, Credited]],
    pad: int,
    length: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, np.ndarray]:
    """By label, (2, P, length) sketched gradients of either group of P prompts.

    Args:
        model: The policy.
        pairs: Two groups of each prompt.
        pad: Padding token id.
        length: Of the sketch.
        progress: Called with what is made, how many are done, and of how many.
    """
    sketch = Sketch(length)
    size = min(length, sum(p.numel() for p in model.parameters() if p.requires_grad))
    found = {label: np.zeros((2, len(pairs), size), np.float32) for label in pairs[0][0].credit}
    for number, pair in enumerate(pairs):
        progress("gradients", number, len(pairs))
        for side, own in enumerate(pair):
            for label, gradient in group_gradients(model, own.group, own.credit, pad):
                if gradient is not None:
                    found[label][side, number] = sketch(gradient).numpy()
    progress("gradients", len(pairs), len(pairs))
    return found


@dataclass(frozen=True)
class _Products:
    """Products of two kinds of gradients of P prompts.

    Args:
        alike: (P,) of the same prompt's.
        apart: (P, P) of different prompts', the same for (j, k) and (k, j).
    """

    alike: np.ndarray
    apart: np.ndarray

    def expected(self, counts: np.ndarray, batch: int) -> np.ndarray:
        """Expected product of the means over a batch of different prompts, from (..., P) counts of prompts. A prompt that
        counts twice is two prompts, whose product with each other is left out. NaN if there are no different prompts."""
        total = counts.sum(-1)
        alike = counts @ self.alike / total
        pairs = total**2 - (counts**2).sum(-1)
        sums = ((counts @ self.apart) * counts).sum(-1) - counts**2 @ np.diag(self.apart)
        apart = np.divide(sums, pairs, out=np.full(np.shape(sums), np.nan), where=pairs > 0)
        return alike if batch == 1 else alike / batch + (1 - 1 / batch) * apart


def _products(*pairs: tuple[np.ndarray, np.ndarray], means: tuple[np.ndarray, np.ndarray]) -> _Products:
    """Of pairs of (P, length) gradients, over which products of the same prompt are averaged, and of the prompts' means."""
    alike = np.mean([np.einsum("pl,pl->p", a, b, dtype=np.float64) for a, b in pairs], axis=0)
    apart = (means[0] @ means[1].T).astype(np.float64)
    return _Products(alike, (apart + apart.T) / 2)


def _target(sketches: Mapping[str, np.ndarray]) -> _Products:
    """`length`, see the module docstring."""
    first, second = (sketches[label] for label in HALVES)
    mean = ((first + second) / 2).mean(0)
    # Either half with the other one, as prefixes that both groups have share their continuations
    return _products((first[0], second[1]), (first[1], second[0]), means=(mean, mean))


def effective_prompts(sketches: Mapping[str, np.ndarray]) -> float:
    """Of how many prompts the true gradient effectively is: (sum_j s_j)^2 / sum_j s_j^2, where s_j is the squared length of
    prompt j's. As many as there are if all are equally long, 1 if one of them is all. NaN if none has any."""
    sizes = np.maximum(_target(sketches).alike, 0.0)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else float("nan")


@dataclass(frozen=True)
class _Method:
    """What scores need of one method's gradients."""

    along: _Products
    square: _Products
    signal: _Products


def statistics_of(
    sketches: Mapping[str, np.ndarray], batch: int, baseline: str = "uniform"
) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """By label, and `true` for the true advantages themselves, a function of prompts' counts as
    [`~trl_credit.bench.true.scores.compare`] takes it.

    Args:
        sketches: Of [`group_sketches`].
        batch: Prompts in a batch.
        baseline: The label whose completions `share` counts.
    """
    halves = [sketches[label] for label in HALVES]
    target = (halves[0] + halves[1]) / 2
    mean, length = target.mean(0), _target(sketches)

    def method(own: np.ndarray) -> _Method:
        means = (own.mean(0), own.mean(0))
        return _Method(
            along=_products((own[0], target[1]), (own[1], target[0]), means=(means[0], mean)),
            square=_products((own[0], own[0]), (own[1], own[1]), means=means),
            signal=_products((own[0], own[1]), means=means),
        )

    methods = {label: method(own) for label, own in sketches.items() if label not in HALVES}
    square = _products(*((halves[0][side], halves[1][side]) for side in (0, 1)), means=(mean, mean))
    methods[TRUE] = _Method(along=length, square=square, signal=length)

    def of(own: _Method):
        def function(counts: np.ndarray) -> dict[str, np.ndarray]:
            counts = np.asarray(counts, np.float64)

            def sums(method: _Method) -> list[np.ndarray]:
                return [part.expected(counts, batch) for part in (method.along, method.square, method.signal)]

            target = length.expected(counts, batch)
            along, square, signal = sums(own)
            base_along, base_square, base_signal = sums(methods[baseline])
            return {
                "cosine": along / _root(square * target, (square > 0) & (target > 0)),
                "limit": along / _root(signal * target, (signal > 0) & (target > 0)),
                "share": _share(along, square, base_along, base_square, base_signal),
            }

        return function

    return {label: of(own) for label, own in methods.items()}


def _root(value: np.ndarray, usable: np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(usable, value, np.nan))


def _share(along, square, base_along, base_square, base_signal) -> np.ndarray:
    """`share`, see the module docstring. NaN where the baseline's gradient does not point along the true one, or has no
    noise."""
    noise = base_square - base_signal
    usable = (base_along > 0) & (noise > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (square * (base_along / along) ** 2 - base_signal) / noise
    return np.where(usable, np.where(along > 0, np.minimum(share, HOPELESS), HOPELESS), np.nan)
