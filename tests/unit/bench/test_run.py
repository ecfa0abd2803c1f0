"""Settings of the benchmark."""

import pytest
from support.bench import FAVOURITE

from trl_credit.bench.baselines import baselines
from trl_credit.bench.run import BenchSettings, build_methods
from trl_credit.methods import GCPO


def test_methods_by_label():
    methods = build_methods(
        ["gcpo", '{"method": "dgpo", "temperature": 0.01}', "surprisal", FAVOURITE, "examples.custom_method.Surprisal"]
    )
    assert list(methods)[:3] == ["gcpo", "dgpo", "favourite"]
    assert methods["gcpo"] == GCPO()
    assert methods["dgpo"].temperature == 0.01
    assert list(methods)[4:] == list(baselines(methods))  # those given are not listed twice
    assert methods["shuffled gcpo"].of == methods["gcpo"].to_dict()
    assert "examples.custom_method.surprisal" in methods
    with pytest.raises(ValueError, match="Did you mean 'surprisal'"):
        build_methods(["surprisl"])
    with pytest.raises(ValueError, match="Did you mean 'temperature'"):
        build_methods(['{"method": "dgpo", "temperatur": 1}'])


def test_a_method_that_needs_another_model():
    assert build_methods(["teacher"], later="somewhere")["teacher"].model == "somewhere"
    given = build_methods(['{"method": "teacher", "model": "mine"}'], later="somewhere")
    assert given["teacher"].model == "mine"
    with pytest.raises(ValueError, match="needs a value for `model`"):
        build_methods(["teacher"])


@pytest.mark.parametrize("name", ["fipo", "turn", "gigpo", "vppo"])
def test_methods_that_cannot_be_scored(name):
    with pytest.raises(ValueError, match=f"credit method '{name}' .*Leave it out"):
        build_methods([name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("styl",)}, "Did you mean 'style'"),
        ({"rendering": "compct"}, "Did you mean 'compact'"),
        ({"num_items": 1}, "`num_items` must be at least 2"),
        ({"groups": -1}, "`groups` must be at least 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        BenchSettings(**changes)
