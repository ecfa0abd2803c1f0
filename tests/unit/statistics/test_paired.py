"""Statistics of paired runs."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trl_credit.statistics import paired as statistics


# Statistics


def test_smoothing_is_the_mean_of_the_last_updates():
    values = np.array([1.0, math.nan, 4.0, 2.0, math.nan, math.nan])
    expected = [np.nan] + [
        np.nanmean(values[i - 1 : i + 1]) if not np.isnan(values[i - 1 : i + 1]).all() else np.nan for i in range(1, 6)
    ]
    np.testing.assert_allclose(statistics.smoothed(values, 2), expected)
    np.testing.assert_allclose(statistics.smoothed(values, 1), values)
    assert np.isnan(statistics.smoothed([1.0], 2)).all()
    assert statistics.area(values) == pytest.approx(7 / 3)


def test_the_band_is_students_interval():
    values = np.random.default_rng(0).normal(size=(7, 5))
    values[2:, 3] = np.nan
    values[1:, 4] = np.nan
    mean, low, high = statistics.band(values, 0.9)
    for u in range(4):
        known = values[~np.isnan(values[:, u]), u]
        expected = stats.ttest_1samp(known, 0).confidence_interval(0.9)
        assert (mean[u], low[u], high[u]) == pytest.approx((known.mean(), expected.low, expected.high))
    assert mean[4] == values[0, 4]
    assert np.isnan(low[4])
    assert statistics.interval([3.0]) == (3.0, None, None)


def test_the_interval_covers_what_it_says():
    draw = np.random.default_rng(5)
    found = [statistics.interval(draw.normal(0.3, 2.0, 6)) for _ in range(2000)]
    covered = np.mean([low <= 0.3 <= high for _, low, high in found])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("count", [2, 3, 6, 10])
@pytest.mark.parametrize("ties", [False, True])
def test_permutation_is_of_all_sign_flips(count, ties):
    draw = np.random.default_rng(count)
    differences = draw.integers(-3, 5, count) / 8 if ties else draw.normal(0.3, 1, count)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=count)]
    expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    assert statistics.sign_flip_p(differences) == pytest.approx(expected)


def test_many_seeds_draw_flips():
    differences = np.random.default_rng(1).normal(0.4, 1, 24)
    p = statistics.sign_flip_p(differences)
    assert p == statistics.sign_flip_p(differences)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert statistics.sign_flip_p(np.full(24, 1.0)) == pytest.approx(1 / (statistics.MOST_FLIPS + 1))
    assert statistics.sign_flip_p([0.0, 0.0]) == statistics.sign_flip_p([1.0]) == 1.0


def test_p_is_uniform_where_nothing_differs():
    draw = np.random.default_rng(3)
    p = [statistics.sign_flip_p(draw.normal(size=8)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e8, 1e150])
def test_p_does_not_depend_on_the_unit(scale):
    for seed in range(20):
        draw = np.random.default_rng(seed)
        for differences in (draw.normal(0.4, 1, 10), draw.integers(-3, 5, 10) / 8):
            p = statistics.sign_flip_p(differences * scale)
            assert p == statistics.sign_flip_p(differences)
            assert p >= 2**-9


@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_a_lead_is_what_the_t_test_allows(seed):
    """Ratios inside the interval are those for which part - ratio * whole may have the mean 0."""
    generator = np.random.default_rng(seed)
    whole = generator.normal(0.03, 0.01, size=10)
    part = 0.4 * whole + generator.normal(0, 0.01, size=10)
    share, low, high = statistics.share_of(part, whole, 0.9)
    assert share == pytest.approx(part.mean() / whole.mean())
    assert low < share < high
    for ratio in (low, high):
        assert stats.ttest_1samp(part - ratio * whole, 0).pvalue == pytest.approx(0.1, rel=1e-6)
    assert stats.ttest_1samp(part - (low - 0.05) * whole, 0).pvalue < 0.1
    assert statistics.share_of(whole, whole) == pytest.approx((1.0, 1.0, 1.0))


def test_no_share_of_a_lead_that_may_be_none():
    noise = np.array([0.03, -0.02, 0.01, -0.015])
    assert statistics.share_of([0.01] * 4, noise) is None
    assert statistics.share_of([0.01] * 4, [-0.1, -0.11, -0.1, -0.12]) is None
    assert statistics.share_of([0.01], [0.1]) is None
    with pytest.raises(ValueError, match="2 and 3 values"):
        statistics.share_of([0.1, 0.2], [0.1, 0.2, 0.3])
