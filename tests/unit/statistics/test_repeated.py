"""The estimators against enumeration and closed forms in fractions, which share no code with them, and by simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit.statistics import paired
from trl_credit.statistics import repeated as estimators
from trl_credit.statistics.repeated import (
    average,
    clustered_standard_error,
    combined,
    combined_difference,
    majority_at_k,
    moved_problems,
    paired_difference,
    pass_at_k,
    powers_of_two,
    problem_difference,
    sampling_standard_error,
)


NUMBER = settings(max_examples=60, deadline=None, derandomize=True)

PER_SAMPLES = [
    average,
    clustered_standard_error,
    sampling_standard_error,
    lambda correct: pass_at_k(correct, 1),
    lambda correct: majority_at_k([[0] * 2], correct, 1),
    lambda correct: paired_difference(correct, correct),
]

# Student's and the normal 97.5 % quantiles, from tables
T_29, Z = 2.0452, 1.9600


def close(value: float, exact: Fraction) -> bool:
    return math.isclose(value, exact, rel_tol=1e-12, abs_tol=1e-15)


def samples(seed: int, problems: int, n: int) -> np.ndarray:
    """(P, n) samples of problems from never to always solved."""
    rng = np.random.default_rng(seed)
    return rng.random((problems, n)) < rng.beta(0.5, 0.8, size=(problems, 1))


# -- avg@n


@pytest.mark.parametrize("n", range(1, 65))
def test_average_at_every_n(n):
    correct = samples(n, 30, n)
    exact = sum(Fraction(sum(map(int, row)), n) for row in correct.tolist()) / 30
    assert close(average(correct), exact)
    shuffled = np.random.default_rng(n).permuted(correct, axis=1)
    assert average(shuffled) == average(correct) == average(correct.tolist()) == average(correct.astype(int))
    assert average(np.ones((7, n), bool)) == 1
    assert average(np.zeros((7, n), bool)) == 0


@NUMBER
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=70), min_size=1, max_size=40))
def test_average_of_unequal_n(correct):
    exact = sum(Fraction(sum(row), len(row)) for row in correct) / len(correct)
    assert close(average(correct), exact)


# -- standard errors


def test_clustered_standard_error_is_the_sum_over_pairs_of_a_problem():
    """Miller's equation 4: over all pairs of samples of one problem, with the correction for few clusters."""
    correct = samples(0, 12, 5)
    scores = [[Fraction(int(x)) for x in row] for row in correct.tolist()]
    mean = sum(map(sum, scores)) / 60
    pairs = sum((x - mean) * (y - mean) for row in scores for x in row for y in row)
    assert close(clustered_standard_error(correct) ** 2, pairs / 60**2 * Fraction(12, 11))


def test_clustered_standard_error_of_unequal_n():
    correct = [[True, False], [True], [False, False, True, True, True]]
    rates = [Fraction(1, 2), Fraction(1), Fraction(3, 5)]
    mean = sum(rates) / 3
    assert close(clustered_standard_error(correct) ** 2, sum((rate - mean) ** 2 for rate in rates) / 6)
    assert clustered_standard_error([[True, False, True]]) is None
    assert clustered_standard_error([[True], [True]]) == 0


@pytest.mark.parametrize("n", [2, 3, 8])
def test_sampling_variance_is_unbiased(n):
    """Its expectation over all outcomes of two problems is the variance of their average."""
    expected = 0.0
    for first, second in itertools.product(range(n + 1), repeat=2):
        probability = math.comb(n, first) * 0.3**first * 0.7 ** (n - first)
        probability *= math.comb(n, second) * 0.9**second * 0.1 ** (n - second)
        correct = [np.arange(n) < first, np.arange(n) < second]
        expected += probability * sampling_standard_error(correct) ** 2
    assert expected == pytest.approx((0.3 * 0.7 + 0.9 * 0.1) / n / 4, rel=1e-12)


def test_sampling_standard_error_takes_two_samples():
    assert sampling_standard_error([[True], [False]]) is None
    assert sampling_standard_error([[True, False], [False]]) is None
    assert sampling_standard_error([[True, True], [False, False]]) == 0
    assert sampling_standard_error([[True, False]]) == pytest.approx(0.5)


def test_coverage_of_the_standard_errors():
    """The clustered one covers the population's mean, that of sampling alone only the mean of these very problems."""
    rng = np.random.default_rng(1)
    runs, problems, n = 4000, 30, 8
    student = normal = alone = fixed = 0
    for _ in range(runs):
        rates = rng.beta(0.8, 1.2, size=(problems, 1))
        correct = rng.random((problems, n)) < rates
        mean, error, sampling = average(correct), clustered_standard_error(correct), sampling_standard_error(correct)
        student += abs(mean - 0.4) < T_29 * error
        normal += abs(mean - 0.4) < Z * error
        alone += abs(mean - 0.4) < Z * sampling
        fixed += abs(mean - rates.mean()) < Z * sampling
    # Three standard deviations of a binomial of 4000 at 95 % are 0.010
    assert 0.94 < student / runs < 0.96
    assert 0.93 < normal / runs < 0.95  # the normal quantile is short with 30 problems: 94.0 % if the rates were normal
    assert alone / runs < 0.75
    assert 0.94 < fixed / runs < 0.96


def test_combined():
    mean, error = combined([0.5, 0.2], [0.03, 0.04])
    assert mean == pytest.approx(0.35)
    assert error == pytest.approx(0.025)
    assert combined([0.5, 0.2], [0.03, None]) == (0.35, None)
    assert combined([0.5], [0.03]) == (0.5, 0.03)
    with pytest.raises(ValueError, match="no tasks"):
        combined([], [])
    with pytest.raises(ValueError, match="2 averages and 1 standard errors"):
        combined([0.5, 0.2], [0.1])


# -- pass@k


def test_powers_of_two():
    assert powers_of_two(1) == [1]
    assert powers_of_two(24) == [1, 2, 4, 8, 16, 24]
    for n in range(1, 200):
        ks = powers_of_two(n)
        assert ks[-1] == n
        assert ks == sorted({*(2**i for i in range(8) if 2**i <= n), n})
    with pytest.raises(ValueError, match="n=0"):
        powers_of_two(0)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n):
    correct = samples(n, 5, n)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        hits = sum(any(row[i] for i in subset) for row in correct.tolist() for subset in subsets)
        assert close(pass_at_k(correct, k), Fraction(hits, 5 * len(subsets)))


@pytest.mark.parametrize("n", [64, 1024, 4096])
def test_pass_at_k_closed_form(n):
    for c in (0, 1, 2, n // 3, n - 2, n - 1, n):
        correct = [[True] * c + [False] * (n - c)]
        for k in powers_of_two(n):
            # All k are wrong: one after another, without replacement
            wrong = math.prod((Fraction(max(n - c - i, 0), n - i) for i in range(k)), start=Fraction(1))
            assert close(pass_at_k(correct, k), 1 - wrong)
        assert pass_at_k(correct, 1) == c / n
        assert pass_at_k(correct, n) == (c > 0)


def test_pass_at_k_of_unequal_n():
    correct = [[True, False, False], [True, False]]
    assert close(pass_at_k(correct, 1), (Fraction(1, 3) + Fraction(1, 2)) / 2)
    assert close(pass_at_k(correct, 2), (Fraction(2, 3) + 1) / 2)


@pytest.mark.parametrize("k", [-1, 0, 3, 65])
def test_k_out_of_range(k):
    correct = [[True, False, False], [True, False]]
    with pytest.raises(ValueError, match=f"k={k} must be from 1 to n=2"):
        pass_at_k(correct, k)
    with pytest.raises(ValueError, match=f"k={k} must be from 1 to n=2"):
        majority_at_k([[7, 1, 2], [7, 1]], correct, k)


# -- maj@k


def enumerated_majority(votes, right: object, k: int) -> Fraction:
    """Plain votes of all subsets of k."""
    total = Fraction(0)
    for subset in itertools.combinations(votes, k):
        cast = [vote for vote in subset if vote is not None]
        best = max((cast.count(vote) for vote in cast), default=0)
        first = {vote for vote in cast if cast.count(vote) == best}
        total += Fraction(right in first, max(len(first), 1))
    return total / math.comb(len(votes), k)


@NUMBER
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([None, "a", "b", "c", "d", 5]), min_size=n, max_size=n), min_size=1, max_size=3
        )
    )
)
def test_majority_is_the_mean_over_subsets(votes):
    correct = [[vote == "a" for vote in problem] for problem in votes]
    for k in range(1, len(votes[0]) + 1):
        exact = sum(enumerated_majority(problem, "a", k) for problem in votes) / len(votes)
        assert close(majority_at_k(votes, correct, k), exact)


def test_majority_of_every_vote_of_six():
    for votes in itertools.combinations_with_replacement([None, 0, 1, 2], 6):
        correct = [[vote == 0 for vote in votes]]
        for k in range(1, 7):
            assert close(majority_at_k([votes], correct, k), enumerated_majority(votes, 0, k))


@pytest.mark.slow
def test_majority_of_two_answers_is_a_hypergeometric_tail():
    """More than half of k, or half of it and a coin."""
    for n, right in [(64, 20), (128, 70), (896, 450), (897, 450), (1000, 480), (1030, 520), (4096, 2000)]:
        votes, correct = [[1] * right + [0] * (n - right)], [[True] * right + [False] * (n - right)]
        for k in powers_of_two(n):
            ways = [math.comb(right, j) * math.comb(n - right, k - j) for j in range(k + 1)]
            draws = 0 if k % 2 else Fraction(ways[k // 2], 2)
            exact = (sum(ways[k // 2 + 1 :]) + draws) / Fraction(math.comb(n, k))
            assert close(majority_at_k(votes, correct, k), exact)


def test_majority_of_128_answers_is_a_draw():
    votes, correct = [list(range(128))], [[True] + [False] * 127]
    for k in range(1, 129):
        assert close(majority_at_k(votes, correct, k), Fraction(1, 128))


@pytest.mark.parametrize(("answers", "abstaining"), [(4, 0), (4, 1000), (33, 5), (3000, 0)])
@pytest.mark.slow
def test_majority_of_many_samples_is_a_draw(answers, abstaining):
    """Each answer has as many samples: a draw between all, unless all abstain."""
    each = (4096 - abstaining) // answers
    votes = [[answer for answer in range(answers) for _ in range(each)] + [None] * abstaining]
    correct = [[vote == 1 for vote in votes[0]]]
    n = len(votes[0])
    for k in powers_of_two(n):
        silent = Fraction(math.comb(abstaining, k), math.comb(n, k))
        assert close(majority_at_k(votes, correct, k), (1 - silent) / answers)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_majority_is_the_same_by_halves_and_by_shares(seed, monkeypatch):
    """Two ways to thin the samples, with answers of all sizes."""
    votes = np.random.default_rng(seed).zipf(1.5, size=(3, 200)).tolist()
    votes = [[None if vote > 50 else vote for vote in problem] for problem in votes]
    for right in (1, 2, 9):
        correct = [[vote == right for vote in problem] for problem in votes]
        halves = [majority_at_k(votes, correct, k) for k in range(1, 201)]
        with monkeypatch.context() as patch:
            patch.setattr(estimators, "_HALVED", 0)
            shares = [majority_at_k(votes, correct, k) for k in range(1, 201)]
        assert shares == pytest.approx(halves, rel=1e-12, abs=1e-15)


def test_majority_at_the_ends():
    rng = np.random.default_rng(0)
    votes = rng.geometric(0.2, size=(30, 64)).tolist()
    correct = [[vote == 1 for vote in problem] for problem in votes]
    assert majority_at_k(votes, correct, 1) == pytest.approx(average(correct), rel=1e-12)
    plain = 0
    for problem in votes:
        counts = sorted((problem.count(vote) for vote in set(problem)), reverse=True)
        plain += (problem.count(1) == counts[0]) / counts.count(counts[0])
    assert majority_at_k(votes, correct, 64) == pytest.approx(plain / 30, rel=1e-12)


def test_majority_where_all_abstain_or_none_is_correct():
    assert majority_at_k([[None, None]], [[False, False]], 2) == 0
    assert majority_at_k([[None, None], [3, 3]], [[False, False], [True, True]], 2) == 0.5
    assert majority_at_k([[1, 2, 3]], [[False] * 3], 2) == 0
    assert majority_at_k([[1, None, None]], [[True, False, False]], 3) == 1  # one voice decides
    assert majority_at_k([[1]], [[True]], 1) == 1


@pytest.mark.parametrize(
    ("votes", "correct"),
    [
        ([[1, 2]], [[True, True]]),  # two correct answers
        ([[1, 1]], [[True, False]]),  # one answer, graded twice
        ([[None, 1]], [[True, False]]),  # correct without an answer
        ([[None, 1]], [[True, True]]),
    ],
)
def test_one_answer_is_correct(votes, correct):
    with pytest.raises(ValueError, match=r"problem 0 .* not those of one vote"):
        majority_at_k(votes, correct, 1)


def test_votes_are_those_of_the_samples():
    for votes in ([[1]], [[1, 2], [1, 2]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="votes and correct differ"):
            majority_at_k(votes, [[True, False]], 1)


# -- two runs


def test_paired_difference():
    a, b = samples(0, 30, 8), samples(1, 30, 16)
    result = paired_difference(a, b)
    rates = [Fraction(sum(y), 16) - Fraction(sum(x), 8) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert close(result.difference, sum(rates) / 30)
    assert result.low < result.difference < result.high
    assert result.problems == 30
    assert paired_difference(a, b) == result
    assert paired_difference(a, b, seed=1) != result
    reverse = paired_difference(b, a)
    assert reverse.difference == -result.difference
    assert reverse.p_value == result.p_value
    # Nearly Student's interval, as the differences are many and not skewed
    deviation = T_29 * np.std(np.array(rates, float), ddof=1) / math.sqrt(30)
    assert result.high - result.difference == pytest.approx(deviation, rel=0.1)
    assert result.difference - result.low == pytest.approx(deviation, rel=0.1)
    narrow = paired_difference(a, b, level=0.5)
    assert result.low < narrow.low < narrow.high < result.high


@pytest.mark.parametrize(("problems", "quantile"), [(6, 2.5706), (11, 2.2281), (30, 2.0452), (61, 2.0003)])
def test_expanded_percentiles(problems, quantile):
    """Student's quantile from tables, for a spread that the bootstrap has too small by sqrt((P - 1) / P)."""
    tail = math.erfc(quantile * math.sqrt(problems / (problems - 1) / 2)) / 2
    assert estimators._expanded_tail(0.95, problems) == pytest.approx(tail, rel=0.01)


@pytest.mark.parametrize("chunk", [1, 1001, 5000])
def test_in_pieces(chunk, monkeypatch):
    a, b = samples(0, 41, 4), samples(1, 41, 4)
    whole = paired_difference(a, b, resamples=1000)
    monkeypatch.setattr(paired, "_CHUNK", chunk)
    pieces = paired_difference(a, b, resamples=1000)
    assert (pieces.low, pieces.high) == (whole.low, whole.high)
    assert pieces.p_value == pytest.approx(whole.p_value, abs=0.05)


@pytest.mark.parametrize("problems", [1, 2, 5, 12])
def test_exact_permutation_test(problems):
    a, b = samples(2, problems, 3), samples(3, problems, 3)
    differences = [sum(y) - sum(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips(problems)]
    assert paired_difference(a, b).p_value == sum(s >= abs(sum(differences)) for s in sums) / 2**problems


def flips(problems: int):
    return itertools.product([-1, 1], repeat=problems)


def test_sampled_permutation_test():
    """Many problems, of which each differs by one sample: the sum of signs is a binomial's."""
    a, b = np.zeros((40, 2), bool), np.zeros((40, 2), bool)
    b[:27, 0] = a[27:, 0] = True
    exact = 2 * sum(math.comb(40, j) for j in range(27, 41)) / 2**40
    result = paired_difference(a, b, resamples=20_000)
    assert result.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert paired_difference(np.zeros((40, 2)), np.ones((40, 2)), resamples=99).p_value == 0.01  # never zero


@pytest.mark.slow
def test_coverage_of_the_bootstrap():
    """30 problems, 8 samples of each in both runs; run B is better at some."""
    rng = np.random.default_rng(2)
    runs, covered = 2000, 0
    for seed in range(runs):
        rates = rng.beta(0.8, 1.2, size=(30, 1))
        better = rates + (1 - rates) * (rng.random((30, 1)) < 0.3) / 2  # by 0.6 * 0.3 / 2 in the population
        a, b = rng.random((30, 8)) < rates, rng.random((30, 8)) < better
        interval = paired_difference(a, b, resamples=1000, seed=seed)
        covered += interval.low <= 0.09 <= interval.high
    # Three standard deviations of a binomial of 2000 at 95 % are 0.015
    assert 0.935 < covered / runs < 0.965


@pytest.mark.parametrize("problems", [12, 30])
@pytest.mark.slow
def test_p_values_of_runs_alike_are_uniform(problems):
    rng = np.random.default_rng(4)
    runs, p_values = 2000, []
    for seed in range(runs):
        # Numbers of samples that leave hardly two sums the same
        rates = rng.beta(0.8, 1.2, size=problems)
        a, b = ([rng.random(n) < rate for n, rate in enumerate(rates, 20)] for _ in range(2))
        p_values.append(paired_difference(a, b, resamples=399, seed=seed).p_value)
    for level in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        share = np.mean(np.array(p_values) <= level + 1e-12)
        assert share == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / runs))


def test_paired_difference_without_enough():
    single = paired_difference([[True, False]], [[True, True]])
    assert (single.difference, single.low, single.high, single.p_value, single.problems) == (0.5, None, None, 1, 1)
    same = paired_difference(samples(0, 30, 4), samples(0, 30, 4))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    two = paired_difference([[False], [False]], [[False], [True]])
    assert (two.low, two.high) == (0, 1)
    with pytest.raises(ValueError, match="2 problems in the first run and 1 in the second"):
        paired_difference([[True], [True]], [[True]])
    with pytest.raises(ValueError, match="resamples=0"):
        paired_difference([[True]], [[True]], resamples=0)
    with pytest.raises(ValueError, match="level=95"):
        paired_difference([[True]], [[True]], level=95)


def test_combined_difference():
    """Of one task it is the paired difference's interval up to the draws, and of two the mean."""
    first, second = (samples(0, 30, 8), samples(1, 30, 16)), (samples(2, 12, 4), samples(3, 12, 4))
    parts = [paired_difference(a, b) for a, b in (first, second)]
    difference, low, high = combined_difference([first])
    assert difference == parts[0].difference
    assert (low, high) == pytest.approx((parts[0].low, parts[0].high), abs=0.01)
    difference, low, high = combined_difference([first, second])
    assert difference == pytest.approx((parts[0].difference + parts[1].difference) / 2)
    assert low < difference < high
    assert combined_difference([first, second]) == (difference, low, high)
    assert combined_difference([first, second], seed=1) != (difference, low, high)
    single = ([[True, False]], [[True, True]])
    assert combined_difference([first, single]) == (pytest.approx((parts[0].difference + 0.5) / 2), None, None)


def test_combined_difference_refuses():
    task = ([[True], [False]], [[True], [True]])
    with pytest.raises(ValueError, match="no tasks"):
        combined_difference([])
    with pytest.raises(ValueError, match="2 problems in the first run and 1 in the second"):
        combined_difference([task, ([[True], [True]], [[True]])])
    with pytest.raises(ValueError, match="level=95"):
        combined_difference([task], level=95)
    with pytest.raises(ValueError, match="resamples=0"):
        combined_difference([task], resamples=0)


# Newcombe 1998, table II, method 10: x of m, y of n and the interval of x / m - y / n
NEWCOMBE = [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (6, 7, 2, 7, 0.0582, 0.8062),
    (5, 56, 0, 29, -0.0381, 0.1926),
    (0, 10, 0, 20, -0.1611, 0.2775),
    (0, 10, 0, 10, -0.2775, 0.2775),
    (10, 10, 0, 20, 0.6791, 1.0000),
    (10, 10, 0, 10, 0.6075, 1.0000),
]


@pytest.mark.parametrize(("x", "m", "y", "n", "low", "high"), NEWCOMBE)
def test_published_intervals(x, m, y, n, low, high):
    assert problem_difference(y, n, x, m) == pytest.approx((low, high), abs=5.1e-5)
    assert problem_difference(x, m, y, n) == pytest.approx((-high, -low), abs=5.1e-5)


def test_problem_difference_is_within_bounds():
    for a, b in itertools.product(range(5), range(8)):
        low, high = problem_difference(a, 4, b, 7, level=0.99)
        assert -1 <= low < b / 7 - a / 4 + 1e-15
        assert b / 7 - a / 4 - 1e-15 < high <= 1
    for n in range(1, 300):
        assert problem_difference(0, n, n, n)[1] == 1
        assert problem_difference(n, n, 0, n)[0] == -1
    with pytest.raises(ValueError, match="5 correct of 4 samples"):
        problem_difference(5, 4, 0, 4)
    with pytest.raises(ValueError, match="0 correct of 0 samples"):
        problem_difference(0, 0, 0, 4)
    with pytest.raises(ValueError, match="level=1"):
        problem_difference(0, 4, 0, 4, level=1)


def enumerated_fisher(a: int, m: int, b: int, n: int) -> Fraction:
    """All ways to call a + b of the m + n samples correct, by how many fall to the first run."""
    falls = [sum(i < m for i in chosen) for chosen in itertools.combinations(range(m + n), a + b)]
    probabilities = {x: Fraction(falls.count(x), len(falls)) for x in set(falls)}
    return sum(p for p in probabilities.values() if p <= probabilities[a])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (4, 6), (7, 5)])
def test_fisher(m, n):
    for a, b in itertools.product(range(m + 1), range(n + 1)):
        (p_value,) = moved_problems([a], [m], [b], [n])[1]
        assert close(p_value, enumerated_fisher(a, m, b, n))


def test_fisher_published():
    """Fisher's tea: 3 and 1 of 4; and many samples."""
    assert moved_problems([3], [4], [1], [4])[1] == [pytest.approx(34 / 70)]
    assert moved_problems([0], [512], [512], [512])[1] == [pytest.approx(2 / math.comb(1024, 512))]


def test_moved_problems():
    a, b = [0, 8, 4, 0, 4], [8, 0, 4, 4, 6]
    directions, p_values = moved_problems(a, [8] * 5, b, [8] * 5)
    assert directions == ["up", "down", "same", "same", "same"]
    assert p_values[0] == p_values[1] == pytest.approx(2 / math.comb(16, 8))
    assert p_values[3] == pytest.approx(0.0769, abs=1e-4)
    assert moved_problems(a, [8] * 5, b, [8] * 5, level=0.8)[0] == ["up", "down", "same", "up", "same"]
    # Rates and not counts: 3 of 3 is more than 16 of 64
    assert moved_problems([16], [64], [3], [3]) == (["up"], [pytest.approx(math.comb(19, 3) / math.comb(67, 3))])


def test_benjamini_and_hochberg():
    """A p-value of 2 / 70 passes where all move (0.05) and not where half do (0.025): it is stepped up, from the largest."""
    assert moved_problems([0] * 4, [4] * 4, [4] * 4, [4] * 4)[0] == ["up"] * 4
    assert moved_problems([0, 0, 2, 2], [4] * 4, [4, 4, 2, 2], [4] * 4)[0] == ["same"] * 4
    # The third (0.026 <= 0.0375) takes the first two with it, of which the second (0.026 > 0.025) would not pass alone
    directions, p_values = moved_problems([0, 0, 0, 4], [8] * 4, [8, 5, 5, 4], [8] * 4)
    assert p_values[1] == p_values[2] == pytest.approx(0.0256, abs=1e-4)
    assert directions == ["up", "up", "up", "same"]


def test_false_discoveries():
    """Where nothing has moved, at most 5 % of tasks have a problem that is said to have."""
    rng = np.random.default_rng(3)
    sizes, wrong = [32] * 30, 0
    for _ in range(400):
        rates = rng.beta(0.8, 1.2, size=30)
        a, b = rng.binomial(32, rates).tolist(), rng.binomial(32, rates).tolist()
        wrong += set(moved_problems(a, sizes, b, sizes)[0]) != {"same"}
    assert wrong / 400 <= 0.05


def test_moved_problems_refuses():
    with pytest.raises(ValueError, match="lengths differ: 1, 1, 1 and 2"):
        moved_problems([1], [2], [1], [2, 2])
    with pytest.raises(ValueError, match="no problems"):
        moved_problems([], [], [], [])
    with pytest.raises(ValueError, match="3 correct of 2 samples"):
        moved_problems([1], [2], [3], [2])


# -- what is no evaluation


@pytest.mark.parametrize("function", PER_SAMPLES)
@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ([], "there are no problems"),
        (np.zeros((0, 4), bool), "there are no problems"),
        ([[True, False], []], r"problem 1 \(from 0\) has no samples"),
        (np.zeros((3, 0), bool), r"problem 0 \(from 0\) has no samples"),
        ([True, False], r"problem 0 \(from 0\) is of shape \(\)"),
        (np.zeros((2, 3, 4), bool), r"problem 0 \(from 0\) is of shape \(3, 4\)"),
        ([[0.0, 0.5]], "values other than 0 and 1"),
        ([[1.0, math.nan]], "values other than 0 and 1"),
        ([[True, None]], "values other than 0 and 1"),
    ],
)
def test_refused(function, correct, message):
    with pytest.raises(ValueError, match=message):
        function(correct)
