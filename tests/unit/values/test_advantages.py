"""Token advantages from values."""

import numpy as np
import pytest

from trl_credit.values.advantages import segment_advantages


def test_each_token_has_its_segments_difference():
    values, ends = [0.5, 0.75, 0.25, 1.0], [2, 3, 7]
    expected = []
    start = 0
    for before, after, end in zip(values, values[1:], ends, strict=False):
        expected += [after - before] * (end - start)
        start = end
    assert segment_advantages(values, ends).tolist() == expected
    assert segment_advantages([0.25], []).tolist() == []


def test_a_missing_value_makes_its_segments_missing():
    found = segment_advantages([0.5, np.nan, 0.25, 1.0], [1, 2, 3])
    assert np.isnan(found).tolist() == [True, True, False]


@pytest.mark.parametrize(("values", "ends"), [([1, 2], [1, 2]), ([1, 2, 3], [2, 2]), ([1, 2, 3], [0, 2])])
def test_what_does_not_fit(values, ends):
    with pytest.raises(ValueError, match="segments"):
        segment_advantages(values, ends)
