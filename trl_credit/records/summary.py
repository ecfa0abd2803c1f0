"""Measures how unevenly a method spreads weight over a completion's tokens: numbers, curves and a plain sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy

from ..methods.ops import UNIFORM_FRACTION
from .record import CompletionCredit


# Shares of tokens at which the cumulative mass is evaluated
GRID = np.linspace(0.0, 1.0, 51)
# Histogram edges in log2 of the weight. Bins are half an octave wide, and one is centred on the weight 1
LOG2_EDGES = np.arange(-5.25, 5.5, 0.5)


@dataclass(frozen=True)
class MethodSummary:
    """One method's weights and token advantages over a set of completions. Means are over completions; `None` if none is
    usable.

    Args:
        label: The method's label.
        completions: Usable completions: with a token on the mask, and finite weights >= 0 there that are not all 0.
        left_out: Completions that are not usable.
        weighted: Completions for which the method gave weights, usable or not.
        tokens: Tokens on the mask, over all usable completions.
        effective_fraction: exp(H(w / T)) / T. It is 1 for uniform weights, and 1 / T if one of T tokens has all weight.
        weight_std: Standard deviation over a completion's tokens on the mask.
        largest: Largest weight of all completions.
        half_share: Share of tokens that carry half of the weight, highest weights first. Counts fractions of a token.
        top_mass: Share of the weight on the 20 % of tokens with the highest weights. Counts fractions of a token.
        distance: Total-variation distance from uniform, 0.5 * mean |w - 1|, in [0, 1).
        correlations: By label of the other method, Spearman's rank correlation of the weights, averaged over
            completions in which both vary. `None` if there are none.
        advantaged: Completions with token advantages that are more than advantage times weight ([`own_advantages`]), all
            finite. The fields below are over these.
        size: Mean of abs(A_t) over a completion's tokens on the mask.
        change: Mean of abs(A_t - A), over completions whose advantage A is known.
        opposite: Share of the tokens whose advantage has the other sign than A, over the same completions.
        lowest: Lowest token advantage of all.
        highest: Highest token advantage of all.
    """

    label: str
    completions: int = 0
    left_out: int = 0
    weighted: int = 0
    tokens: int = 0
    effective_fraction: float | None = None
    weight_std: float | None = None
    largest: float | None = None
    half_share: float | None = None
    top_mass: float | None = None
    distance: float | None = None
    correlations: Mapping[str, float | None] = field(default_factory=dict)
    advantaged: int = 0
    size: float | None = None
    change: float | None = None
    opposite: float | None = None
    lowest: float | None = None
    highest: float | None = None


def labels(records: Iterable[CompletionCredit]) -> list[str]:
    """Labels of all methods in the records, including those without weights, in order of appearance."""
    return list(dict.fromkeys(name for r in records for kind in (r.weights, r.token_advantages) for name in kind))


def usable(weights: np.ndarray | None, mask: np.ndarray) -> np.ndarray | None:
    """The weights on the mask in float64. `None` if there are none, one is negative or not finite, or all are 0."""
    if weights is None:
        return None
    values = np.asarray(weights, np.float64)[np.asarray(mask, bool)]
    if not values.size or not np.isfinite(values).all() or values.min() < 0 or values.sum() == 0:
        return None
    return values


def own_advantages(record: CompletionCredit, label: str) -> np.ndarray | None:
    """A method's token advantages if they are more than the record's advantage times its weights, else `None`."""
    values, weights = record.token_advantages.get(label), record.weights.get(label)
    if values is None:
        return None
    if weights is not None and record.advantage is not None:
        mask = np.asarray(record.mask, bool)
        product = record.advantage * np.asarray(weights, np.float64)[mask]
        if np.allclose(np.asarray(values, np.float64)[mask], product, rtol=1e-3, atol=1e-9, equal_nan=True):
            return None
    return np.asarray(values)


def _advantages_summary(records: Sequence[CompletionCredit], label: str) -> dict[str, Any]:
    """The fields of a [`MethodSummary`] about token advantages."""
    sizes, changes, opposite, extremes = [], [], [], []
    for record in records:
        values = own_advantages(record, label)
        values = None if values is None else values.astype(np.float64)[np.asarray(record.mask, bool)]
        if values is None or not values.size or not np.isfinite(values).all():
            continue
        sizes.append(np.abs(values).mean())
        extremes += [values.min(), values.max()]
        if record.advantage is not None and np.isfinite(record.advantage):
            changes.append(np.abs(values - record.advantage).mean())
            opposite.append((values * record.advantage < 0).mean())
    if not sizes:
        return {}
    found = {"advantaged": len(sizes), "size": float(np.mean(sizes))}
    found |= {"lowest": float(min(extremes)), "highest": float(max(extremes))}
    return found | ({"change": float(np.mean(changes)), "opposite": float(np.mean(opposite))} if changes else {})


def effective_fraction(values: np.ndarray) -> float:
    """exp(H(p)) / T of T [`usable`] weights, where p is each weight's share of the sum."""
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))) / values.size)


def concentration(weights: np.ndarray | None, mask: np.ndarray) -> float | None:
    """One minus the effective token fraction: 0 for uniform weights. `None` without usable weights."""
    values = usable(weights, mask)
    return None if values is None else max(0.0, 1.0 - effective_fraction(values))


def cumulative_mass(weights: np.ndarray, mask: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray | None:
    """Share of the weight on the top `grid` shares of the tokens, highest weights first. Linear within a token."""
    values = usable(weights, mask)
    return None if values is None else np.interp(grid, *_curve(values))


def mass_curves(records: Sequence[CompletionCredit], grid: np.ndarray = GRID) -> dict[str, np.ndarray]:
    """Cumulative mass by label, averaged over usable completions. Omits methods without any."""
    result = {}
    for label in labels(records):
        curves = [cumulative_mass(r.weights[label], r.mask, grid) for r in records if label in r.weights]
        curves = [curve for curve in curves if curve is not None]
        if curves:
            result[label] = np.mean(curves, axis=0)
    return result


def histograms(records: Sequence[CompletionCredit], edges: np.ndarray = LOG2_EDGES) -> dict[str, np.ndarray]:
    """Shares of all masked tokens by log2 of their weight, by label: below the edges (with 0), between, above."""
    result = {}
    for label in labels(records):
        counts = np.zeros(len(edges) + 1)
        for record in records:
            values = usable(record.weights.get(label), record.mask)
            if values is not None:
                with np.errstate(divide="ignore"):
                    places = np.searchsorted(edges, np.log2(values), side="right")
                counts += np.bincount(places, minlength=len(counts))
        if counts.any():
            result[label] = counts / counts.sum()
    return result


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation. `None` if either input is constant."""
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(scipy.stats.spearmanr(first, second).statistic)


def summarise(records: Iterable[CompletionCredit]) -> dict[str, MethodSummary]:
    """Summarizes every method, by label. A method without usable weights gets an empty summary."""
    records = list(records)
    names = labels(records)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    pairs: dict[tuple[str, str], list[float]] = {}
    for record in records:
        found = {name: usable(record.weights.get(name), record.mask) for name in names}
        found = {name: values for name, values in found.items() if values is not None}
        for name, values in found.items():
            shares, mass = _curve(values)
            rows[name].append(
                (
                    values.size,
                    effective_fraction(values),
                    values.std(),
                    values.max(),
                    np.interp(0.5, mass, shares),
                    np.interp(0.2, shares, mass),
                    0.5 * np.abs(values - 1).mean(),
                )
            )
        for i, first in enumerate(found):
            for second in list(found)[i + 1 :]:
                value = spearman(found[first], found[second])
                if value is not None:
                    pairs.setdefault((first, second), []).append(value)
    result = {}
    for name in names:
        correlations = {
            other: float(np.mean(values)) if (values := pairs.get((name, other)) or pairs.get((other, name))) else None
            for other in names
            if other != name
        }
        columns = np.array(rows[name]).T
        known = {}
        if rows[name]:
            fraction, std, largest, half, top, distance = columns[1:]
            known = {
                "tokens": int(columns[0].sum()),
                "effective_fraction": float(fraction.mean()),
                "weight_std": float(std.mean()),
                "largest": float(largest.max()),
                "half_share": float(half.mean()),
                "top_mass": float(top.mean()),
                "distance": float(distance.mean()),
            }
        result[name] = MethodSummary(
            label=name,
            completions=len(rows[name]),
            left_out=len(records) - len(rows[name]),
            weighted=sum(name in record.weights for record in records),
            correlations=correlations,
            **known,
            **_advantages_summary(records, name),
        )
    return result


def sentence(summary: MethodSummary, advice: str | None = None) -> str:
    """Describes a method in one sentence, or in two if it does more than weight.

    Args:
        summary: The method's summary.
        advice: What to do if the method itself reports that it was uniform in effect: lower case, without a full stop.
    """
    if not summary.weighted and not summary.advantaged:
        return f"{summary.label} has no weights here, only token advantages, and no completion with usable ones."
    said = [_about_weights(summary, advice)] if summary.weighted else []
    return " ".join([*said, _about_advantages(summary)] if summary.advantaged else said)


def _about_weights(summary: MethodSummary, advice: str | None) -> str:
    name = summary.label
    if summary.effective_fraction is None:
        return f"{name} has no completion with usable weights."
    if name == "uniform":
        return "uniform gives every token the same weight."
    rest = f"; {advice.strip().rstrip('.')}" if advice and advice.strip() else ""
    if rest or summary.effective_fraction > UNIFORM_FRACTION:
        return f"{name} is uniform here: effective fraction {summary.effective_fraction:.4f}{rest}."
    half = 100 * summary.half_share
    return (
        f"{name} puts half of the weight on {half:.{0 if half >= 9.5 else 1}f} % of the tokens "
        f"(effective fraction {summary.effective_fraction:.2f})."
    )


def _about_advantages(summary: MethodSummary) -> str:
    start = "Its" if summary.weighted else f"{summary.label} has no weights here; its"
    if summary.change == 0:
        return f"{start} token advantages are those of the completions."
    said = f"{start} token advantages are {summary.lowest:+.3g} to {summary.highest:+.3g}"
    if summary.change is None:
        return f"{said}, without the completions' own, which are unknown."
    return (
        f"{said}, {summary.change:.3g} on average from their completion's, and {100 * summary.opposite:.0f} % of the tokens "
        "have the other sign."
    )


def _curve(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (T + 1,) shares of the tokens, highest weights first, and (T + 1,) cumulative shares of the weight."""
    mass = np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])])
    return np.linspace(0.0, 1.0, values.size + 1), mass / mass[-1]
