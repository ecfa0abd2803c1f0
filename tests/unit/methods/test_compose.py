"""Labels for several methods."""

import pytest
from support.inspection import FULL

from trl_credit.methods import compose
from trl_credit.methods.compose import AllSignals, labelled


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def test_labels():
    assert list(labelled(["uniform", "dgpo"])) == ["uniform", "dgpo"]
    assert list(labelled([GCPO, FULL, "uniform"])) == ["gcpo divergence=sampled", "gcpo divergence=full", "uniform"]
    with pytest.raises(ValueError, match="'gcpo' is listed twice"):
        labelled(["gcpo", "gcpo"])


def test_methods_are_built_once(monkeypatch):
    built, signals = [], tuple(labelled([GCPO])["gcpo"].signals())
    build = compose.build_credit
    monkeypatch.setattr(compose, "build_credit", lambda method: built.append(method) or build(method))
    methods = AllSignals([GCPO, {"method": "otb"}])
    for _ in range(2):
        assert methods.signals() == signals
        assert methods.rollout_needs == ("logps", "sum_squared_probs")
        assert methods.has_rollout_stage
    assert built == [GCPO, {"method": "otb"}]
    assert methods.to_dict()["methods"] == [GCPO, {"method": "otb"}]
