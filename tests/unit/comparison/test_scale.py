"""The size of the methods' gradients."""

import pytest

from trl_credit.comparison.scale import gradient_scale, scale_sentence


def runs(*norms):
    return [{"history": {"grad_norm": list(of_run)}} for of_run in norms]


def test_updates_without_a_gradient_do_not_count():
    assert gradient_scale(runs([0.5, None, 0.0], [2.0, 3.0]), 1.0) == {"median": 2.0, "cut": pytest.approx(2 / 3)}
    assert gradient_scale(runs([2.0]), 0) == {"median": 2.0, "cut": 0.0}
    assert gradient_scale([{"history": {}}], 1.0) is None


def test_the_sentence():
    methods = [
        {"label": "uniform", "gradient": {"median": 0.5, "cut": 0.1}},
        {"label": "gcpo", "gradient": {"median": 1.5, "cut": 0.83}},
        {"label": "none", "gradient": None},
    ]
    said = scale_sentence(methods, "uniform")
    assert "(median norm 0.5, 10 % of the updates cut at `max_grad_norm`): gcpo 3 times as long, 83 % cut." in said
    assert "none" not in said
    assert scale_sentence(methods[:1], "uniform") is None
    assert scale_sentence(methods, "none") is None
