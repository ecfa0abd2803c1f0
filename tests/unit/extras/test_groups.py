"""Groups with and without a training signal."""

import numpy as np
import pytest

from trl_credit.extras.dynamic_sampling import TOO_EASY, TOO_HARD, UNSCORED
from trl_credit.extras.groups import KEPT, classify_groups


NAN = float("nan")


# Which groups


@pytest.mark.parametrize(
    ("group", "expected", "settings_"),
    [
        ([[0], [1], [0], [1]], KEPT, {}),
        ([[0.7], [0.7], [0.7], [0.7]], TOO_EASY, {}),
        ([[0], [0], [0], [0]], TOO_HARD, {}),
        ([[-1], [-1], [-1], [-1]], TOO_HARD, {}),
        ([[NAN], [1], [1], [NAN]], TOO_EASY, {}),
        ([[NAN], [NAN], [NAN], [NAN]], UNSCORED, {}),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], TOO_EASY, {}),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], KEPT, {"every_function": True}),
        ([[0, 1], [0, 2], [0, 1], [0, 2]], TOO_HARD, {"column": 0}),
        ([[1, 1], [1, 2], [1, 1], [1, 2]], TOO_EASY, {"column": 0}),
        ([[1, 1], [0, 1], [1, 1], [1, 1]], KEPT, {"column": 0}),
        ([[1, 1], [0, 1], [1, 1], [1, 1]], TOO_EASY, {"column": 0, "bounds": (0.2, 0.75)}),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], KEPT, {"column": 0, "bounds": (0.2, 0.75)}),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], TOO_HARD, {"column": 0, "bounds": (0.25, 0.75)}),
        ([[NAN, 1], [NAN, 2], [NAN, 1], [NAN, 2]], UNSCORED, {"column": 0}),
        ([[NAN, 1], [1, 2], [0, 1], [NAN, 2]], KEPT, {"column": 0}),
    ],
)
def test_judging_one_group(group, expected, settings_):
    other = [[0.5] * len(group[0])] * 4  # what the neighbours do is nothing to it
    weights = np.ones(len(group[0]))
    assert classify_groups(np.array(other + group + other), weights, 4, **settings_)[1] == expected


def test_a_function_without_weight_does_not_decide():
    rewards = np.array([[1.0, 0.0], [1.0, 1.0]])
    for every_function in (False, True):
        assert classify_groups(rewards, np.array([1.0, 0.0]), 2, every_function=every_function) == [TOO_EASY]
