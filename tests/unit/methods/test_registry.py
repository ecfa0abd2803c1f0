"""Methods by name and by path."""

import pytest

from trl_credit import build_credit


def test_a_credit_method_from_a_file(own_code):
    (own_code / "own_method.py").write_text(
        "from dataclasses import dataclass\nfrom trl_credit.methods import GCPO\n\n\n@dataclass(frozen=True)\n"
        'class Mine(GCPO):\n    name = "mine"\n'
    )
    method = build_credit({"method": "./own_method.py:Mine", "top_fraction": 0.3})
    assert method.to_dict()["method"] == "./own_method.py:Mine"
    assert build_credit(method.to_dict()) == method
    with pytest.raises(ValueError, match="has no 'Mien'"):
        build_credit("./own_method.py:Mien")
