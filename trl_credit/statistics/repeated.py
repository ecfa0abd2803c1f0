"""Statistics of graded samples: avg@n, pass@k, maj@k, their uncertainty, and the comparison of two runs.

Everywhere, `correct` holds the outcomes of the samples of P problems: a (P, n) array of bool (or of 0 and 1), or P
arrays of (n_i,) if the numbers of samples differ. All problems have equal weight. Results are float64.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from .paired import chunks, sign_flip_p


_EXACT_FLIPS = 12  # nonzero differences for which all 2^12 sign flips are tried
_HALVED = 896  # up to this many samples, if half are drawn, every count has a probability above 1e-270


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n, always ending with n: the values of k for pass@k and maj@k.

    Raises:
        ValueError: If n is below 1.
    """
    if n < 1:
        raise ValueError(f"there is no k with n={n} samples")
    return [*(2**i for i in range((n - 1).bit_length())), n]


def average(correct: Sequence[np.ndarray]) -> float:
    """avg@n: the share of a problem's samples that are correct, averaged over problems.

    Args:
        correct: (P, n) bool, or P arrays of (n_i,) bool.

    Raises:
        ValueError: If there are no problems, a problem has no samples, or values are not 0 or 1.
    """
    return float(_rates(correct).mean())


def clustered_standard_error(correct: Sequence[np.ndarray]) -> float | None:
    """Standard error of `average`, clustered by problem (Miller 2024, arXiv 2411.00640).

    It covers the uncertainty over both problems and samples, for the mean over the population that the P problems are
    drawn from. With equal weights it is sqrt(var(p_i) / P), where p_i is the share of problem i's samples that are
    correct and the variance has P - 1 in its denominator. (This is Miller's formula, which has P there, times sqrt(P /
    (P - 1)).) The sampling noise within a problem is included already, since it adds to the variance of p_i.

    Args:
        correct: (P, n) bool, or P arrays of (n_i,) bool.

    Returns:
        The standard error. `None` with fewer than two problems.

    Raises:
        ValueError: As in `average`.
    """
    rates = _rates(correct)
    return float(rates.std(ddof=1) / math.sqrt(len(rates))) if len(rates) > 1 else None


def sampling_standard_error(correct: Sequence[np.ndarray]) -> float | None:
    """Standard error of `average` on these specific problems: how much it would vary if they were sampled again.

    sqrt(sum of p_i (1 - p_i) / (n_i - 1)) / P, whose square is unbiased. It says nothing about other problems.

    Args:
        correct: (P, n) bool, or P arrays of (n_i,) bool.

    Returns:
        The standard error. `None` if a problem has only one sample.

    Raises:
        ValueError: As in `average`.
    """
    counts, sizes = _counts(correct)
    if sizes.min() < 2:
        return None
    rates = counts / sizes
    return float(np.sqrt((rates * (1 - rates) / (sizes - 1)).sum()) / len(rates))


def combined(averages: Sequence[float], standard_errors: Sequence[float | None]) -> tuple[float, float | None]:
    """Mean over K tasks, equally weighted whatever their numbers of problems, and its standard error.

    Args:
        averages: (K,) averages of the tasks.
        standard_errors: (K,) standard errors of the tasks, which must not share problems.

    Returns:
        The mean, and sqrt(sum of squared standard errors) / K, or `None` if a task has none.

    Raises:
        ValueError: If there are no tasks, or the numbers of averages and standard errors differ.
    """
    if not len(averages):
        raise ValueError("there are no tasks to combine")
    if len(averages) != len(standard_errors):
        raise ValueError(f"{len(averages)} averages and {len(standard_errors)} standard errors")
    known = [error for error in standard_errors if error is not None]
    error = math.hypot(*known) / len(averages) if len(known) == len(averages) else None
    return math.fsum(averages) / len(averages), error


def pass_at_k(correct: Sequence[np.ndarray], k: int) -> float:
    """pass@k: probability that any of k samples is correct, mean over problems (Chen et al. 2021, arXiv 2107.03374).

    Uses the unbiased estimator 1 - C(n - c, k) / C(n, k) for a problem with c of n samples correct, in exact integers
    until the final division.

    Args:
        correct: (P, n) bool, or P arrays of (n_i,) bool.
        k: At least 1, at most the smallest n.

    Raises:
        ValueError: If k is out of range; also as in `average`.
    """
    counts, sizes = _counts(correct)
    _check_k(k, sizes)
    total = 0.0
    for c, n in zip(counts.tolist(), sizes.tolist(), strict=True):
        total += (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)
    return total / len(sizes)


def majority_at_k(votes: Sequence[Sequence[Hashable | None]], correct: Sequence[np.ndarray], k: int) -> float:
    """maj@k: the probability that the most frequent answer of k samples is correct, averaged over problems.

    This is the exact expectation over all subsets of k of a problem's samples. Ties are broken at random. Samples
    without an answer abstain; if all do, the result is not correct. With 64 samples per problem it takes milliseconds;
    with 4096, for all powers of two, seconds, and in the worst case half a minute (2048 answers of two samples each).

    Args:
        votes: (n_i,) answers for each of P problems. Equal answers are one vote; `None` abstains.
        correct: (P, n) bool, or P arrays of (n_i,) bool: True if the sample is correct.
        k: At least 1, at most the smallest n.

    Raises:
        ValueError: If lengths differ, a problem's correct samples are not exactly those of one vote, or k is out of
            range; also as in `average`.
    """
    counts, sizes = _counts(correct)
    if [len(answers) for answers in votes] != sizes.tolist():
        raise ValueError("votes and correct differ in their problems or numbers of samples")
    _check_k(k, sizes)
    total = 0.0
    for problem, (answers, marks, right) in enumerate(zip(votes, correct, counts.tolist(), strict=True)):
        tally = Counter(answers)
        winners = {answer for answer, mark in zip(answers, marks, strict=True) if mark}
        abstaining = tally.pop(None, 0)
        if len(winners) > 1 or sum(tally.pop(winner, 0) for winner in winners) != right:
            raise ValueError(f"the correct samples of problem {problem} (from 0) are not those of one vote: {winners}")
        n = len(answers)
        share = (1, 2) if n <= _HALVED else (k, n + 1)
        total += _majority(right, tuple(sorted(tally.values())), abstaining, *share)[k]
    return float(total / len(sizes))


@lru_cache(maxsize=2**14)
def _majority(right: int, others: tuple[int, ...], abstaining: int, part: int, whole: int) -> np.ndarray:
    """(n + 1,) probability by k that the majority of k of n samples is correct. Valid for all k if half of the samples
    are drawn and n is at most `_HALVED`, else only for k near n * part / whole.

    Each sample is drawn independently with probability part / whole. Then the counts of the answers are independent
    binomials, and given k, all subsets of k samples are equally likely. If j correct samples are drawn, the majority is
    correct only if every other answer has at most j. `ways[t, d]` is the probability that t of the others also have j
    and the rest have d in total: a product of polynomials in d and t, one per answer. Nothing is subtracted, so no
    digits are lost. Negligible terms are dropped.

    Args:
        right: Number of correct samples.
        others: Number of samples of each wrong answer.
        abstaining: Number of samples without an answer.
        part: Numerator of the probability of drawing a sample.
        whole: Its denominator.
    """
    n = right + sum(others) + abstaining
    total = _taken(n, part, whole)
    result = np.zeros(n + 1)
    for j in (np.flatnonzero(_taken(right, part, whole)[1:]) + 1).tolist():
        rivals = [size for size in others if size >= j]
        free = n - right - sum(rivals)  # samples that can neither outvote nor tie with j
        ways = _taken(free, part, whole)[None]
        for size in rivals:
            ways = _with_rival(ways, _taken(size, part, whole), j, _negligible(part, whole))
        for t, row in enumerate(ways):
            start = j * (t + 1)
            row = row[: n + 1 - start]  # the rest is empty
            result[start : start + len(row)] += _taken(right, part, whole)[j] / (t + 1) * row
    result = np.minimum(np.divide(result, total, out=np.zeros(n + 1), where=total > 0), 1)
    result.flags.writeable = False
    return result


def _with_rival(ways: np.ndarray, taken: np.ndarray, j: int, negligible: float) -> np.ndarray:
    """`ways` of `_majority` with one more answer, which has fewer than j samples or ties with j."""
    rows, columns = ways.shape
    result = np.zeros((rows + 1, columns + j - 1))
    result[1:, :columns] = taken[j] * ways
    first, end = _nonzero(ways.any(0))
    low, high = _nonzero(taken[:j])
    inner = ways[:, first:end]
    if rows < high - low and first < end:
        for t in range(rows):
            result[t, first + low : end + high - 1] += np.convolve(inner[t], taken[low:high])
    else:
        for c in range(low, high):
            result[:-1, first + c : end + c] += taken[c] * inner
    band = result[:, first : max(end + high - 1, end)]
    band[band < negligible] = 0
    return result[: max(1, _nonzero(result.any(1))[1])]


def _nonzero(values: np.ndarray) -> tuple[int, int]:
    """Start and end of the range with nonzero values."""
    indices = np.flatnonzero(values)
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, 0)


@lru_cache(maxsize=2**10)
def _taken(n: int, part: int, whole: int) -> np.ndarray:
    """(n + 1,) probability by k that k of n samples are drawn. Negligible values are 0."""
    result, ways, all_ways = np.zeros(n + 1), (whole - part) ** n, whole**n
    for k in range(n + 1):
        result[k] = ways / all_ways  # exact integers up to here
        ways = ways * ((n - k) * part) // ((k + 1) * (whole - part))
    result[result < _negligible(part, whole)] = 0
    result.flags.writeable = False
    return result


def _negligible(part: int, whole: int) -> float:
    """Threshold below any probability that matters, either for all n + 1 values of k or for the likeliest one."""
    return 1e-300 if (part, whole) == (1, 2) else 1e-40


@dataclass(frozen=True)
class PairedDifference:
    """Run B compared with run A on the same problems.

    Attributes:
        difference: avg@n of B minus avg@n of A.
        low: Lower end of its interval. `None` with a single problem.
        high: Upper end.
        p_value: P-value for the hypothesis that the runs are alike.
        problems: P, the number of problems.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    problems: int


def paired_difference(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two runs in avg@n, paired by problem, with a bootstrap interval and a permutation test.

    The bootstrap is over problems, so the interval is for the population from which they are drawn. Samples within a
    problem are not resampled too: a problem's rate already includes their noise, which would then count twice. The ends
    are percentiles, expanded for few problems (Hesterberg 2014, arXiv 1411.5279), because plain ones give intervals
    that are too short. If all problems have the same difference, the interval is a point: too little data.

    The test flips the signs of the problems' differences: all combinations if at most 12 are nonzero, else `resamples`
    random ones plus the observed one, so that p is never zero. It is exact if the two runs are exchangeable within a
    problem, which holds only approximately for unequal numbers of samples.

    Args:
        a: (P, n) bool, or P arrays of (n_i,) bool: the first run.
        b: The second run, on the same problems in the same order. Its numbers of samples may differ.
        level: Level of the interval.
        resamples: Number of resamples for the bootstrap, and for the test.
        seed: Seed of both. The same input and seed give the same result.

    Raises:
        ValueError: If the numbers of problems differ, or `level` or `resamples` is out of range; also as in `average`.
    """
    differences = _differences(a, b)
    _check_level(level)
    _check_resamples(resamples)
    count = len(differences)
    bootstrap, permutation = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))

    low = high = None
    if count > 1:
        tail = _expanded_tail(level, count)
        low, high = np.quantile(_resampled_means(differences, resamples, bootstrap), [tail, 1 - tail]).tolist()

    p_value = sign_flip_p(differences, _EXACT_FLIPS, resamples, permutation)
    return PairedDifference(float(differences.mean()), low, high, p_value, count)


def combined_difference(
    tasks: Sequence[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """Unweighted mean of `paired_difference` over several tasks, with a bootstrap interval.

    Problems are resampled within each task. The percentiles are expanded as for the smallest task.

    Args:
        tasks: K pairs of runs, each as the arguments `a` and `b` of `paired_difference`.
        level: Level of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The difference, and the lower and upper end of its interval (`None` if a task has a single problem).

    Raises:
        ValueError: If there are no tasks; also as in `paired_difference`.
    """
    if not tasks:
        raise ValueError("there are no tasks")
    _check_level(level)
    _check_resamples(resamples)
    differences = [_differences(a, b) for a, b in tasks]
    difference = float(np.mean([of_task.mean() for of_task in differences]))
    smallest = min(map(len, differences))
    if smallest == 1:
        return difference, None, None
    generators = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(tasks))]
    means = [
        _resampled_means(of_task, resamples, generator)
        for of_task, generator in zip(differences, generators, strict=True)
    ]
    tail = _expanded_tail(level, smallest)
    low, high = np.quantile(np.mean(means, axis=0), [tail, 1 - tail]).tolist()
    return difference, low, high


def problem_difference(a_correct: int, a_n: int, b_correct: int, b_n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for the difference of one problem's rates, B minus A: Newcombe's hybrid score interval.

    This is method 10 of Newcombe 1998, Statistics in Medicine 17:873-890, based on the Wilson intervals of both rates.

    Args:
        a_correct: Correct samples in the first run.
        a_n: Samples in the first run.
        b_correct: Correct samples in the second run.
        b_n: Samples in the second run.
        level: Level of the interval.

    Returns:
        Lower and upper end, within [-1, 1].

    Raises:
        ValueError: If there are no samples, more correct ones than samples, or `level` is out of range.
    """
    _check_counts([a_correct, b_correct], [a_n, b_n])
    _check_level(level)
    a, b = a_correct / a_n, b_correct / b_n
    (a_low, a_high), (b_low, b_high) = _wilson(a_correct, a_n, level), _wilson(b_correct, b_n, level)
    return b - a - math.hypot(b - b_low, a_high - a), b - a + math.hypot(b_high - b, a - a_low)


def moved_problems(
    a_counts: Sequence[int], a_ns: Sequence[int], b_counts: Sequence[int], b_ns: Sequence[int], level: float = 0.95
) -> tuple[list[str], list[float]]:
    """Finds the problems whose rate changed from run A to run B.

    Each problem is tested with Fisher's exact test, and all problems of a task are corrected as in Benjamini and
    Hochberg 1995: among those reported as moved, the expected share that did not move is at most 1 - level. Without
    correction, 95 % intervals of 30 problems would show one or two that moved. Few samples show little: with 3 in each
    run p is at least 0.1, so no problem can be seen to move, and a single problem of 30 needs at least 7.

    Args:
        a_counts: (P,) correct samples in the first run.
        a_ns: (P,) samples in the first run.
        b_counts: (P,) correct samples in the second run.
        b_ns: (P,) samples in the second run.
        level: One minus the false discovery rate.

    Returns:
        For each problem `"up"`, `"down"` or `"same"`, and its uncorrected two-sided p-value.

    Raises:
        ValueError: If lengths differ, there are no problems, one has no samples or more correct ones than samples, or
            `level` is out of range.
    """
    if not len(a_counts) == len(a_ns) == len(b_counts) == len(b_ns):
        raise ValueError(f"lengths differ: {len(a_counts)}, {len(a_ns)}, {len(b_counts)} and {len(b_ns)}")
    _check_counts([*a_counts, *b_counts], [*a_ns, *b_ns])
    _check_level(level)
    problems = [tuple(map(int, problem)) for problem in zip(a_counts, a_ns, b_counts, b_ns, strict=True)]
    p_values = [_fisher(*problem) for problem in problems]
    passing = [p for rank, p in enumerate(sorted(p_values), 1) if p <= (1 - level) * rank / len(p_values)]
    threshold = max(passing, default=-1.0)
    directions = []
    for (a_correct, a_n, b_correct, b_n), p in zip(problems, p_values, strict=True):
        direction = "up" if b_correct * a_n > a_correct * b_n else "down"
        directions.append(direction if p <= threshold else "same")
    return directions, p_values


def _fisher(a_correct: int, a_n: int, b_correct: int, b_n: int) -> float:
    """Fisher's two-sided p-value: the share of tables with these margins that are at most as probable as this one."""
    total = a_correct + b_correct
    tables = [math.comb(a_n, x) * math.comb(b_n, total - x) for x in range(max(0, total - b_n), min(a_n, total) + 1)]
    observed = math.comb(a_n, a_correct) * math.comb(b_n, b_correct)
    return sum(table for table in tables if table <= observed) / sum(tables)


def _wilson(count: int, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval for a rate."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, half = count + z * z / 2, z * math.sqrt(count * (n - count) / n + z * z / 4)
    low, high = (centre - half) / (n + z * z), (centre + half) / (n + z * z)
    # At the ends the formula gives 0 and 1 up to rounding
    return low if count > 0 else 0.0, high if count < n else 1.0


def _resampled_means(differences: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples,) means of bootstrap samples of the (P,) differences."""
    count = len(differences)
    return np.concatenate(
        [differences[generator.integers(count, size=(r, count))].mean(1) for r in chunks(resamples, count)]
    )


def _expanded_tail(level: float, count: int) -> float:
    """Share of bootstrap means to cut off at each end.

    This is Phi(-sqrt(P / (P - 1)) t) instead of Phi(-z), where t is Student's quantile with P - 1 degrees of freedom
    (to four terms, Abramowitz and Stegun 26.7.5).
    """
    normal, freedom = NormalDist(), count - 1
    z = normal.inv_cdf((1 + level) / 2)
    t = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return normal.cdf(-t * math.sqrt(count / freedom))


def _differences(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """(P,) rates of the second run minus those of the first."""
    before, after = _rates(a), _rates(b)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems in the first run and {len(after)} in the second: nothing to pair")
    return after - before


def _rates(correct: Sequence[np.ndarray]) -> np.ndarray:
    """(P,) share of each problem's samples that are correct."""
    counts, sizes = _counts(correct)
    return counts / sizes


def _counts(correct: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) numbers of correct samples and (P,) numbers of samples."""
    problems = [np.asarray(samples) for samples in correct]
    if not problems:
        raise ValueError("there are no problems")
    for index, samples in enumerate(problems):
        if samples.ndim != 1:
            raise ValueError(f"problem {index} (from 0) is of shape {samples.shape}, not one bool for each sample")
        if not samples.size:
            raise ValueError(f"problem {index} (from 0) has no samples")
        if samples.dtype != bool and not np.isin(samples, (0, 1)).all():
            raise ValueError(f"problem {index} (from 0) has values other than 0 and 1")
    return np.array([np.count_nonzero(samples) for samples in problems]), np.array([len(s) for s in problems])


def _check_k(k: int, sizes: np.ndarray) -> None:
    if not 1 <= k <= sizes.min():
        raise ValueError(f"k={k} must be from 1 to n={sizes.min()}, the smallest number of samples of a problem")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level} must be between 0 and 1")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be positive")


def _check_counts(counts: Sequence[int], sizes: Sequence[int]) -> None:
    if not len(counts):
        raise ValueError("there are no problems")
    for count, n in zip(counts, sizes, strict=True):
        if n < 1 or not 0 <= count <= n:
            raise ValueError(f"{count} correct of {n} samples")
