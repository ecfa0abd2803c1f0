"""Statistics of a training comparison: learning curves with bands, and differences paired by seed.

Runs with the same seed start alike and see the same problems, so methods are compared within seeds: by the mean
difference with Student's interval, and by the exact permutation test that flips the signs of the seeds' differences.
With several methods, p-values are Holm-corrected. Few seeds cannot give a small p: the least of S seeds is 2^(1 - S).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy


ALPHA = 0.05
# Random sign flips, where there are too many to try them all
MOST_FLIPS = 2**16
_CHUNK = 2**20  # numbers held at once while resampling


def smoothed(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """(U,) means over each update and the `window` - 1 before it, ignoring NaN. NaN for the first ones."""
    values = np.asarray(values, float)
    result = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    ends = np.arange(window, len(values) + 1)
    some = counts[ends] > counts[ends - window]
    ends = ends[some]
    result[ends - 1] = (sums[ends] - sums[ends - window]) / (counts[ends] - counts[ends - window])
    return result


def area(values: Sequence[float] | np.ndarray) -> float:
    """Mean over updates, ignoring NaN: the area under the curve divided by its width. NaN if there are no values."""
    values = np.asarray(values, float)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else math.nan


def band(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds of (S, U) values, and the ends of Student's interval, at each update. Ignores NaNs. The ends are
    NaN with fewer than two seeds."""
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    counts = known.sum(0)
    mean = np.divide(np.where(known, values, 0.0).sum(0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(0)
    half = np.full(len(counts), np.nan)
    some = counts > 1
    n = counts[some]
    half[some] = scipy.stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(squares[some] / (n - 1) / n)
    return mean, mean - half, mean + half


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean and ends of Student's interval. The ends are `None` for a single value."""
    mean, low, high = (float(part[0]) for part in band(np.asarray(values, float)[:, None], level))
    return (mean, None, None) if math.isnan(low) else (mean, low, high)


def first_reached(curve: np.ndarray, target: float) -> float:
    """The first update, counted from 1, at which the curve is at or above the target. Infinite if there is none."""
    places = np.flatnonzero(np.asarray(curve) >= target)
    return float(places[0] + 1) if len(places) else math.inf


def sign_flip_p(
    differences: Sequence[float],
    exact: int = 16,
    resamples: int = MOST_FLIPS,
    generator: np.random.Generator | None = None,
) -> float:
    """Two-sided p of differences being symmetric about 0: the share of sign flips whose sum is as far from 0.

    Args:
        differences: (S,) differences. Those that are 0 change nothing.
        exact: Number of nonzero differences up to which all their flips are tried.
        resamples: Number of random flips for more of them. The observed differences count as one more, so that p is
            never 0.
        generator: Generator of the random flips; by default seeded with 0.
    """
    differences = np.asarray(differences, float)
    nonzero = differences[differences != 0]
    count = len(nonzero)
    rounding = 1e-12 * np.abs(nonzero).sum()

    def as_extreme(signs: np.ndarray) -> int:
        return int((np.abs(signs @ nonzero) >= abs(nonzero.sum()) - rounding).sum())

    if count <= exact:
        flips = np.arange(2**count)
        return as_extreme(2 * (flips[:, None] >> np.arange(count) & 1) - 1) / len(flips)
    generator = np.random.default_rng(0) if generator is None else generator
    extreme = 1
    for rows in chunks(resamples, count):
        extreme += as_extreme(2 * generator.integers(2, size=(rows, count), dtype=np.int8) - 1)
    return extreme / (resamples + 1)


def chunks(rows: int, columns: int) -> list[int]:
    """Numbers of rows that split a (rows, columns) array into chunks of at most `_CHUNK` numbers each."""
    size = max(1, _CHUNK // columns)
    return [min(size, rows - start) for start in range(0, rows, size)]


def signed_ranks(before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    """(S,) signed ranks of the absolute differences. Infinite values exceed all others, and two of them are equal."""
    before, after = np.asarray(before, float), np.asarray(after, float)
    both = np.isinf(before) & np.isinf(after)
    with np.errstate(invalid="ignore"):
        differences = np.where(both, 0.0, after - before)
    return np.sign(differences) * scipy.stats.rankdata(np.abs(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values of several tests, in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, float)[order] * factors), 1.0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


@dataclass(frozen=True)
class Difference:
    """A method compared with the baseline, paired by seed.

    Attributes:
        seeds: S, seeds that both have.
        mean: Method minus baseline. `None` if a run did not reach the target.
        low: Lower end of its interval. `None` with a single seed.
        high: Upper end.
        half_width: Half the interval's width: about the smallest difference that so many seeds could show.
        p_value: P-value for the hypothesis that the two are alike within seeds.
        lower: Seeds in which the method's value is lower.
        higher: Seeds in which it is higher.
        rank_sum: Sum of the signed ranks of the differences.
    """

    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    half_width: float | None
    p_value: float
    lower: int
    higher: int
    rank_sum: float


def paired(before: Sequence[float], after: Sequence[float], level: float = 0.95, ranks: bool = False) -> Difference:
    """Compares two methods with the same seeds in the same order.

    Args:
        before: (S,) values of the baseline. Infinite if the target was not reached.
        after: (S,) values of the method.
        level: Level of the interval.
        ranks: Test signed ranks, for values that may be infinite.

    Raises:
        ValueError: No values or unequal numbers of them, or infinite values without `ranks`.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    if before.shape != after.shape or not len(before):
        raise ValueError(f"{len(before)} and {len(after)} values: nothing to pair")
    finite = bool(np.isfinite(before).all() and np.isfinite(after).all())
    if not finite and not ranks:
        raise ValueError("infinite values can only be compared by ranks")
    signs = signed_ranks(before, after)
    mean = low = high = None
    if finite:
        mean, low, high = interval(after - before, level)
    return Difference(
        seeds=len(before),
        mean=mean,
        low=low,
        high=high,
        half_width=None if low is None else (high - low) / 2,
        p_value=sign_flip_p(signs if ranks else after - before),
        lower=int((signs < 0).sum()),
        higher=int((signs > 0).sum()),
        rank_sum=float(signs.sum()),
    )


def share_of(part: Sequence[float], whole: Sequence[float], level: float = 0.95) -> tuple[float, float, float] | None:
    """The ratio of two means of differences, paired by seed, and its interval (Fieller 1954).

    The interval is of the ratios r for which the mean of part - r whole does not differ from 0.

    Args:
        part: (S,) differences of a method from the baseline.
        whole: (S,) differences of another method from the baseline.
        level: Level of the interval.

    Returns:
        `None` if the mean of `whole` is not above 0 by as much as its own interval, so that no interval is finite.

    Raises:
        ValueError: Unequal numbers of values.
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    if part.shape != whole.shape:
        raise ValueError(f"{len(part)} and {len(whole)} values: nothing to pair")
    count = len(part)
    if count < 2:
        return None
    factor = scipy.stats.t.ppf((1 + level) / 2, count - 1) ** 2 / count
    covariance = np.cov(part, whole)
    # a r^2 - 2 b r + c <= 0
    a = whole.mean() ** 2 - factor * covariance[1, 1]
    b = part.mean() * whole.mean() - factor * covariance[0, 1]
    c = part.mean() ** 2 - factor * covariance[0, 0]
    if whole.mean() <= 0 or a <= 0:
        return None
    half = math.sqrt(max(b * b - a * c, 0.0))
    return float(part.mean() / whole.mean()), float((b - half) / a), float((b + half) / a)


def enough_seeds(seeds: int, methods: int) -> bool:
    """True if a p-value could fall below `ALPHA` after Holm's correction for this many methods."""
    return methods * 2.0 ** (1 - seeds) < ALPHA


def verdict(difference: Difference, p_holm: float, methods: int, larger_is_better: bool | None) -> str:
    """`"better"`, `"worse"`, `"noise"`, or `"too few seeds"` if no difference could have been shown.

    `"higher"` or `"lower"` where neither direction is known to be better (`None`).
    """
    if not enough_seeds(difference.seeds, methods):
        return "too few seeds"
    apart = difference.low is None or difference.low > 0 or difference.high < 0
    if p_holm >= ALPHA or not apart:
        return "noise"
    higher = (difference.rank_sum if difference.mean is None else difference.mean) > 0
    if larger_is_better is None:
        return "higher" if higher else "lower"
    return "better" if higher == larger_is_better else "worse"
