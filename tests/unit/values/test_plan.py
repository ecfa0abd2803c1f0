"""Where the values of prefixes come from."""

import math

import numpy as np

from trl_credit.values.estimate import summarized
from trl_credit.values.plan import value_sources, values_of
from trl_credit.values.store import CERTAIN, MISTAKE, REWARD, SAMPLED


TOKENS = [0, 1, 2, 3, 4]


def test_sources():
    logps = [math.log(p) for p in (0.5, 0.999, 0.5, 0.999)]
    assert value_sources(TOKENS, logps) == [(SAMPLED, 0), (SAMPLED, 1), (SAMPLED, 2), (SAMPLED, 3), (REWARD, 4)]
    # The last token is almost certain, so V before it is the reward; the second is, so V after it is as before
    assert value_sources(TOKENS, logps, 0.99) == [
        *[(SAMPLED, 0), (SAMPLED, 1), (CERTAIN, 1), (CERTAIN, 4), (REWARD, 4)],
    ]
    assert value_sources(TOKENS, logps, 1.0, mistake=1) == [
        *[(SAMPLED, 0), (SAMPLED, 1), (MISTAKE, 2), (MISTAKE, 3), (REWARD, 4)],
    ]


def test_certainty_adds_up():
    """Many tokens that are each almost certain are not certain together."""
    logps = [math.log(0.9)] + [math.log(0.996)] * 5 + [math.log(0.5)]
    sources = [source for source, _ in value_sources(range(8), logps, 0.99)]
    assert sources == [SAMPLED, SAMPLED, CERTAIN, CERTAIN, SAMPLED, CERTAIN, CERTAIN, REWARD]
    assert [source for source, _ in value_sources(TOKENS, [float("nan")] * 4, 0.99)][:4] == [SAMPLED] * 4


def test_values():
    estimates = summarized([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0]])
    sources = [(SAMPLED, 0), (CERTAIN, 0), (SAMPLED, 2), (MISTAKE, 3), (REWARD, 4)]
    values = values_of(TOKENS, sources, 0.25, [1, -1, 0, -1, -1], estimates)
    assert values.mean.tolist() == [0.5, 0.5, 0.75, 0.0, 0.25]
    assert values.count.tolist() == [2, 2, 4, 0, 0]
    assert values.halves.tolist() == [[1, 0], [1, 0], [0.5, 1], [0, 0], [0.25, 0.25]]
    assert values.advantages().tolist() == [0.0, 0.25, -0.75, 0.25]
    assert values.half_advantages()[:, 1].tolist() == [0.0, 1.0, -1.0, 0.25]
    assert np.all(values.stderr[3:] == 0)
    assert np.all(values.stderr[:3] > 0)
