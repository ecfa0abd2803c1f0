"""Compares methods' token advantages with the true ones.

For token t of a completion, m_t is the method's token advantage and a_t the estimate of the true one, from K continuations
of each prefix; a'_t and a''_t are estimates from either half of the continuations, whose errors are independent. So

    E[m_t a_t] = m_t A*_t        E[a'_t a''_t] = A*_t^2        E[sign(a'_t) a''_t] = |A*_t| or less

and errors of the estimates do not bias sums of the first two, however few continuations there are:

    correlation     sum m a / sqrt(sum m^2 sum a' a''), over all tokens, and after the mean of each completion is taken off
                    (`within`). Uncorrected, it would be smaller by the root of the `reliability`, sum a' a'' / sum a^2.
    top mass        share of sum |A*| on the 20 % of each completion's tokens with the largest |m|; equal ones share. 0.2 for
                    credit that is the same everywhere. `best`, for the truth: a ranking by a' measured by a'', and the
                    other way round, so that it does not count its own errors.
    wrong sign      share of sum |A*| on tokens where m has the other sign; `no credit`, where m is 0.

|A*_t| is (sign(a'_t) a''_t + sign(a''_t) a'_t) / 2: tokens whose halves disagree about the sign count for nothing on
average, instead of for the size of their errors. Its sum is a bit too small where errors are large.

All are smooth functions of sums over prompts. Their errors are those of the jackknife, which leaves out one prompt at a
time, and intervals are of Student's t with that error. Where few prompts make most of a sum, these hold better than
quantiles of the bootstrap, which are too narrow then, and a difference is beyond noise exactly if its interval is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from ...statistics.paired import holm


TOP = 0.2
SCORES = ("correlation", "within", "top_mass", "wrong_sign", "no_credit")
# Sums of one completion
_SUMS = ("n", "m", "a", "mm", "aa", "ma", "hh", "wmm", "waa", "wma", "whh", "mass", "top", "wrong", "none", "best")


@dataclass(frozen=True)
class Truth:
    """True advantages of a completion's T tokens in the loss.

    Args:
        prompt: Number of its prompt.
        whole: (T,) estimates from all continuations.
        halves: (T, 2) estimates from either half.
    """

    prompt: int
    whole: np.ndarray
    halves: np.ndarray

    @property
    def mass(self) -> np.ndarray:
        """(T,) estimates of the absolute true advantages."""
        first, second = self.halves.T
        return (np.sign(first) * second + np.sign(second) * first) / 2


def top_shares(size: np.ndarray, share: float = TOP) -> np.ndarray:
    """(T,) for each token, how much of it is among the `share` of tokens with the largest sizes: 1, 0, or for equal ones at
    the border what is left for each. Sums to `share` * T."""
    wanted = share * len(size)
    order = np.sort(size)[::-1]
    border = order[min(int(wanted), len(order) - 1)] if len(order) else 0.0
    above, equal = size > border, size == border
    left = (wanted - above.sum()) / max(1, equal.sum())
    return above + equal * left


def _sums(credit: np.ndarray, truth: Truth) -> np.ndarray:
    m, a, mass = np.asarray(credit, np.float64), truth.whole, truth.mass
    both = truth.halves.prod(-1)
    centred, own = m - m.mean(), a - a.mean()
    halves = truth.halves - truth.halves.mean(0)
    sign = np.sign(m)
    first, second = truth.halves.T
    best = (
        top_shares(np.abs(first)) @ (np.sign(first) * second) + top_shares(np.abs(second)) @ (np.sign(second) * first)
    ) / 2
    wrong = (mass * np.abs(sign) - sign * a) / 2
    return np.array(
        [
            *(len(m), m.sum(), a.sum(), m @ m, a @ a, m @ a, both.sum()),
            *(centred @ centred, own @ own, centred @ own, halves.prod(-1).sum()),
            *(mass.sum(), mass @ top_shares(np.abs(m)), wrong.sum(), mass @ (m == 0), best),
        ]
    )


def prompt_sums(credit: Sequence[np.ndarray], truths: Sequence[Truth], prompts: int) -> np.ndarray:
    """(P, sums) sums over each prompt's completions."""
    sums = np.zeros((prompts, len(_SUMS)))
    for own, truth in zip(credit, truths, strict=True):
        if len(own):
            sums[truth.prompt] += _sums(own, truth)
    return sums


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def scores_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """All scores from (..., sums) sums. Correlations are 0 for credit that is the same everywhere, NaN where the true
    advantages are lost in their errors."""
    s = dict(zip(_SUMS, np.moveaxis(np.asarray(sums, np.float64), -1, 0), strict=True))
    n = np.maximum(s["n"], 1)
    covariance = s["ma"] - s["m"] * s["a"] / n
    variance = np.maximum(s["mm"] - s["m"] ** 2 / n, 0.0)
    # The mean is from so many tokens that its own error is nothing
    true_variance, seen_variance = s["hh"] - s["a"] ** 2 / n, s["aa"] - s["a"] ** 2 / n

    def correlation(covariance: np.ndarray, variance: np.ndarray, true_variance: np.ndarray, size: np.ndarray):
        constant = variance <= 1e-9 * np.maximum(size, 1e-30)
        value = _ratio(covariance, np.sqrt(np.maximum(variance * true_variance, 0.0)))
        return np.where(constant, np.where(true_variance > 0, 0.0, np.nan), value)

    return {
        "correlation": correlation(covariance, variance, true_variance, s["mm"]),
        "within": correlation(s["wma"], s["wmm"], s["whh"], s["mm"]),
        "top_mass": _ratio(s["top"], s["mass"]),
        "wrong_sign": _ratio(s["wrong"], s["mass"]),
        "no_credit": _ratio(s["none"], s["mass"]),
        "best": _ratio(s["best"], s["mass"]),
        "reliability": _ratio(true_variance, seen_variance),
        "within_reliability": _ratio(s["whh"], s["waa"]),
    }


def left_out(prompts: int) -> np.ndarray:
    """(P, P) how often each prompt counts when one of them is left out."""
    return 1.0 - np.eye(prompts)


def interval_of(value: float, without: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """The value, its jackknife error, and the ends of its interval.

    Args:
        value: From all P prompts.
        without: (P,) values without each of them. The error is unknown if one of them is.
        level: Of the interval.
    """
    count = len(without)
    if count < 2 or not math.isfinite(value) or not np.isfinite(without).all():
        return {"mean": value, "stderr": math.nan, "low": math.nan, "high": math.nan}
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
    reach = error * float(scipy.stats.t.ppf((1 + level) / 2, count - 1))
    return {"mean": value, "stderr": error, "low": value - reach, "high": value + reach}


def compare(
    statistics: Mapping[str, Callable[[np.ndarray], Mapping[str, np.ndarray]]],
    names: Sequence[str],
    prompts: int,
    baseline: str = "uniform",
    untested: Sequence[str] = (),
) -> dict[str, dict[str, dict]]:
    """Scores of each method with intervals, and their differences from the baseline.

    Args:
        statistics: By label, a function from (..., P) numbers of times that each prompt counts to the scores by name.
        names: Names of the scores.
        prompts: P.
        baseline: Label to compare with.
        untested: Labels that are compared, but not tested.

    Returns:
        By label and score: `mean`, `stderr`, `low`, `high`; except for the baseline, `difference` with the same; and, of
        labels that are tested, `p` (Student's t of the difference over its error, P - 1 degrees of freedom) and
        `p_holm`, corrected over those labels.
    """
    once = {label: function(np.ones(prompts)) for label, function in statistics.items()}
    without = {label: function(left_out(prompts)) for label, function in statistics.items()}
    result: dict[str, dict[str, dict]] = {label: {} for label in statistics}
    for name in names:
        tested = []
        for label in statistics:
            entry = interval_of(float(once[label][name]), np.asarray(without[label][name]))
            if label != baseline:
                value = float(once[label][name] - once[baseline][name])
                difference = interval_of(value, np.asarray(without[label][name] - without[baseline][name]))
                entry["difference"] = difference
                if label not in untested:
                    entry["p"] = _p_value(value, difference["stderr"], prompts)
                    tested.append(label)
            result[label][name] = entry
        known = [label for label in tested if math.isfinite(result[label][name]["p"])]
        corrected = holm([result[label][name]["p"] for label in known]) if known else []
        for label in tested:
            result[label][name]["p_holm"] = math.nan
        for label, p in zip(known, corrected, strict=True):
            result[label][name]["p_holm"] = p
    return result


def _p_value(difference: float, error: float, prompts: int) -> float:
    if not math.isfinite(difference) or not math.isfinite(error) or prompts < 2:
        return math.nan
    if error <= 1e-12 * max(1.0, abs(difference)):
        return 1.0 if abs(difference) <= 1e-12 else math.nan
    return float(2 * scipy.stats.t.sf(abs(difference) / error, prompts - 1))
