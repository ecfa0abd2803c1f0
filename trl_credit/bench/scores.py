"""Scores a completion's credit against its deciding tokens, and summarizes scores of many completions."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..statistics.paired import interval


METRICS = ("auroc", "ap", "mass", "ratio", "rank")
CONFIDENCE = 0.95
_BINS = 10


def item_scores(weights: Sequence[float], labels: Sequence[bool], mask: Sequence[bool] | None = None) -> dict:
    """Scores of one completion.

    Args:
        weights: (T,) weights, or how much each token is blamed ([`~trl_credit.bench.groups.blame`]), which may be negative.
        labels: (T,) True for deciding tokens.
        mask: (T,) True for tokens that enter the loss. By default, all.

    Returns:
        `auroc` and `ap`, with the weights as scores for `labels`; `mass`, the share of the weight on deciding tokens;
        `ratio`, `mass` relative to uniform weights; `rank`, the share of other tokens with less weight than the first
        deciding one (1 = highest; ties count half). NaN if undefined, because no token or all tokens are deciding
        (`mass` and `ratio` need only one deciding token), or for `mass` and `ratio`, because something is negative.
    """
    weights, labels = np.asarray(weights, np.float64), np.asarray(labels, bool)
    if weights.shape != labels.shape:
        raise ValueError(f"{weights.shape} weights for {labels.shape} labels.")
    if mask is not None:
        weights, labels = weights[np.asarray(mask, bool)], labels[np.asarray(mask, bool)]
    scores = dict.fromkeys(METRICS, math.nan)
    if not labels.any():
        return scores
    total = weights.sum()
    scores["mass"] = weights[labels].sum() / total if total and (weights >= 0).all() else math.nan
    scores["ratio"] = scores["mass"] / labels.mean()
    if not labels.all():
        scores["auroc"], scores["ap"] = ranking_scores(weights, labels)
        first = weights[labels.argmax()]
        below, equal = (weights < first).sum(), (weights == first).sum() - 1
        scores["rank"] = (below + equal / 2) / (len(weights) - 1)
    return {name: float(value) for name, value in scores.items()}


def ranking_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of (T,) scores for (T,) labels, which must contain both True and False.

    Same as in `sklearn.metrics`, which takes a hundred times as long for so few tokens.
    """
    _, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    deciding = np.bincount(level, labels.astype(float))
    others = counts - deciding
    below = np.cumsum(others) - others
    auroc = (deciding * (below + others / 2)).sum() / (deciding.sum() * others.sum())
    deciding, counts = deciding[::-1], counts[::-1]
    precision = np.cumsum(deciding) / np.cumsum(counts)
    return auroc, (deciding * precision).sum() / deciding.sum()


def summary(values: Iterable[float]) -> dict[str, float]:
    """Mean, standard error over completions, and median of the finite values, and their number."""
    values = np.array(list(values), np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": math.nan, "stderr": math.nan, "median": math.nan, "n": 0}
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": float(values.mean()),
        "stderr": float(error),
        "median": float(np.median(values)),
        "n": len(values),
    }


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over the same items, with Student's t interval at 95 %. Items that are not finite are left out."""
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    differences = differences[np.isfinite(differences)]
    mean, low, high = interval(differences, CONFIDENCE) if len(differences) else (math.nan, None, None)
    low, high = (-math.inf, math.inf) if low is None else (low, high)
    return {"difference": mean, "low": low, "high": high, "n": len(differences)}


def compare_with_baselines(
    scores: Mapping[str, Mapping[str, Sequence[float]]], method: str, baselines: Sequence[str], metric: str = "auroc"
) -> dict:
    """Compares a method with the best trivial baseline on the same items.

    Args:
        scores: By label and metric, one value per item.
        method: Label of the method.
        baselines: Labels of the baselines. The best is chosen on these same items, which slightly favours it.
        metric: Metric to compare by.

    Returns:
        The baseline, the paired difference with its interval, and `beats`, which is True if the interval is above 0.
    """
    best = max(baselines, key=lambda label: np.nan_to_num(summary(scores[label][metric])["mean"], nan=-math.inf))
    difference = paired_difference(scores[method][metric], scores[best][metric])
    return {"baseline": best, **difference, "beats": bool(difference["low"] > 0)}


def verdict_sentence(method: str, verdicts: Mapping[str, Mapping], when: str = "") -> str:
    """Describes a method's comparisons in a sentence.

    Args:
        method: Label of the method.
        verdicts: Results of [`compare_with_baselines`] by task. Those with fewer than two items are left out.
        when: Prefix that names the policy.
    """

    def listed(beats: bool) -> str:
        return ", ".join(
            f"{task} ({v['difference']:+.3f} from {v['baseline']}, {v['low']:+.3f} to {v['high']:+.3f})"
            for task, v in verdicts.items()
            if v["beats"] == beats and v["n"] > 1
        )

    start = f"{when + ', ' if when else ''}{method}"
    won, lost = listed(True), listed(False)
    if not won and not lost:
        return f"{start}: too few items to tell."
    if not won:
        return f"{start} does not beat the best trivial baseline on any task, in AUROC: {lost}."
    if not lost:
        return f"{start} beats the best trivial baseline on every task, in AUROC: {won}."
    return f"{start} beats the best trivial baseline, in AUROC, on {won}; it does not on {lost}."


def together(said: Iterable[tuple[str, str]]) -> list[str]:
    """The sentences, given with the label that each is about. Those that say the same, `LABEL: TEXT`, become one."""
    labels: dict[tuple[str, str], list[str]] = {}
    for label, sentence in said:
        start, found, text = sentence.partition(f"{label}: ")
        labels.setdefault((start, text) if found else (sentence, ""), []).append(label)
    return [f"{start}{', '.join(names)}: {text}" if text else start for (start, text), names in labels.items()]


def position_profile(labels: Sequence[Sequence[bool]]) -> list[float]:
    """For each completion, the AUROC of a rule that knows the task and uses position only.

    The rule's score is the share of deciding tokens in each tenth of the other completions (leave-one-out). No credit
    method can use it, so it is no baseline but a bound on what position alone gives away.
    """
    if not len(labels):
        return []
    bins = [np.arange(len(row)) * _BINS // len(row) for row in labels]
    deciding = np.array([np.bincount(b, np.asarray(row, float), _BINS) for b, row in zip(bins, labels, strict=True)])
    tokens = np.array([np.bincount(b, minlength=_BINS) for b in bins])
    profiles = (deciding.sum(0) - deciding) / np.maximum(tokens.sum(0) - tokens, 1)
    return [item_scores(p[b], row)["auroc"] for p, b, row in zip(profiles, bins, labels, strict=True)]
