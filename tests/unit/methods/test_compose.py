"""Labels for several methods."""

import pytest
from support.inspection import FULL

from trl_credit.methods.compose import labelled


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def test_labels():
    assert list(labelled(["uniform", "dgpo"])) == ["uniform", "dgpo"]
    assert list(labelled([GCPO, FULL, "uniform"])) == ["gcpo divergence=sampled", "gcpo divergence=full", "uniform"]
    with pytest.raises(ValueError, match="'gcpo' is listed twice"):
        labelled(["gcpo", "gcpo"])
