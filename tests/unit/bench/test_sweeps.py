"""Sweeps over a method's parameters."""

import torch

from trl_credit import build_credit
from trl_credit.bench.baselines import baselines
from trl_credit.bench.sweeps import sweep_methods, with_model, with_reference
from trl_credit.methods import DGPO, GCPO
from trl_credit.methods.gcpo import rank_weights
from trl_credit.methods.ops import UNIFORM_FRACTION, effective_token_fraction


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


def test_no_value_of_a_sweep_is_uniform():
    """On contrasts that differ, with the methods' defaults."""
    contrasts = torch.linspace(0, 1, 50).unsqueeze(0)
    mask = torch.ones(1, 50, dtype=torch.bool)
    for (_, parameter, value), method in sweep_methods({"gcpo": GCPO()}).items():
        weights = rank_weights(contrasts, mask, method.top_fraction, method.top_mass)
        assert effective_token_fraction(weights, mask) < UNIFORM_FRACTION, (parameter, value)


def test_references():
    assert with_reference(DGPO(), "x").reference == "x"
    assert with_reference(DGPO(reference="y"), "x").reference == "y"
    assert with_reference(GCPO(), "x") == GCPO()
    assert with_reference(DGPO(), None) == DGPO()
    shuffled = build_credit({"method": "shuffled", "of": {"method": "dgpo"}, "seed": 2})
    assert with_reference(shuffled, "x").of["reference"] == "x"
    assert with_reference(shuffled, "x").seed == 2
    assert with_reference(shuffled, None) == shuffled


def test_other_models():
    teacher = build_credit({"method": "teacher", "model": "the policy after 3 updates"})
    assert with_model(teacher, "the policy after 3 updates", "x").model == "x"
    assert with_model(teacher, "the policy after 9 updates", "x") == teacher
    assert with_model(GCPO(), "the policy after 3 updates", "x") == GCPO()
