"""Sweeps over a method's parameters."""

from trl_credit.bench.baselines import baselines
from trl_credit.bench.sweeps import sweep_methods, with_reference
from trl_credit.methods import DGPO, GCPO


def test_sweeps_change_one_parameter():
    found = sweep_methods({"g": GCPO(negative_prompt="!{prompt}"), "d": DGPO(reference="x"), "other": DGPO()})
    assert {key[0] for key in found} == {"g", "d"}
    for (label, parameter, value), method in found.items():
        assert getattr(method, parameter) == value
        assert method.reference == "x" if label == "d" else method.negative_prompt == "!{prompt}"
    # Fractions above the mass are not allowed
    narrow = sweep_methods({"g": GCPO(top_fraction=0.3, top_mass=0.3)})
    assert [value for _, name, value in narrow if name == "top_fraction"] == [0.05, 0.1, 0.2]
    assert sweep_methods(baselines()) == {}


def test_references():
    assert with_reference(DGPO(), "x").reference == "x"
    assert with_reference(DGPO(reference="y"), "x").reference == "y"
    assert with_reference(GCPO(), "x") == GCPO()
    assert with_reference(DGPO(), None) == DGPO()
