"""The forwards that methods add, from the registry, against the list by name of benchmarks/scaling.py."""

from dataclasses import replace

import pytest

from trl_credit import build_credit
from trl_credit.methods.base import CreditMethod, Paper
from trl_credit.methods.registry import METHODS, methods_for
from trl_credit.planning.passes import passes_of
from trl_credit.planning.sizes import Model
from trl_credit.planning.work import Pass, Update, pass_flops


POLICY = Model.dense("policy", 4, 64, 160, 4, 2, 1000, 16)
OTHER = Model.dense("other", 8, 128, 320, 8, 2, 1000, 16)
COMPLETION = 100


def found(credit, adapters=False, follows=False):
    models = {"policy": POLICY, "other": OTHER}
    return passes_of(build_credit(credit), "policy", adapters, COMPLETION, models.__getitem__, follows)


def untitled(passes):
    return [
        Pass("", each.added, each.repeated, each.compares, each.every_row, each.fused, each.model) for each in passes
    ]


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        *((name, []) for name in ("uniform", "random", "fipo", "forking", "turn", "gigpo", "vine")),
        ("gcpo", [Pass("", 15, repeated=True, fused=True)]),
        ({"method": "gcpo", "negative_prompt": "pad"}, [Pass("", repeated=True, fused=True)]),
        ({"method": "gcpo", "divergence": "full"}, [Pass("", 15, repeated=True, compares=True)]),
        ("dgpo", [Pass("", compares=True, model=POLICY)]),
        ({"method": "dgpo", "reference": "other"}, [Pass("", compares=True, model=OTHER)]),
        ("rlsd", [Pass("", 256, repeated=True, fused=True)]),
        ("rlcsd", [Pass("", COMPLETION + 64, repeated=True, fused=True)] * 5),
        ({"method": "teacher", "model": "other"}, [Pass("", every_row=True, model=OTHER)]),
        *((name, [Pass("")]) for name in ("otb", "certainty", "delta")),
        ({"method": "shuffled", "of": "dgpo"}, [Pass("", compares=True, model=POLICY)]),
        (["gcpo", "otb"], [Pass("", 15, repeated=True, fused=True), Pass("")]),
        (
            ["otb", "gcpo", "dgpo"],
            [Pass("", 15, repeated=True, fused=True), Pass("", compares=True, model=POLICY), Pass("")],
        ),
    ],
    ids=str,
)
def test_methods(credit, expected):
    assert untitled(found(credit)) == expected


def test_a_reference_is_the_policy_with_adapters_off():
    (one,) = found("dgpo", adapters=True)
    assert one.model is None
    assert not one.repeated
    (named,) = found({"method": "dgpo", "reference": "other"}, adapters=True)
    assert named.model is OTHER


def test_a_reference_that_follows_the_policy_is_computed_again():
    assert found("dgpo", follows=True)[0].repeated
    assert not found({"method": "teacher", "model": "other"}, follows=True)[0].repeated


REQUIRED = {"teacher": {"model": "other"}, "shuffled": {"of": "gcpo"}}


@pytest.mark.parametrize("name", methods_for("tokens"))
def test_every_method_with_a_forward_adds_a_pass(name):
    """One for each signal with a forward, and one for what a rollout's stage reads."""
    method = build_credit({"method": name, **REQUIRED.get(name, {})})
    forwards = sum(signal.source().has_forward for signal in method.signals())
    assert len(found({"method": name, **REQUIRED.get(name, {})})) == forwards + bool(method.rollout_needs)


def test_own_method():
    """It says by its signals what it adds, as a registered one does."""

    class Own(CreditMethod):
        name = "own"
        paper = Paper("", "", "")

        def signals(self):
            return [*METHODS["gcpo"]().signals(), *METHODS["dgpo"]().signals()]

    passes = passes_of(Own(), "policy", False, COMPLETION, {"policy": POLICY}.__getitem__)
    assert untitled(passes) == [Pass("", 15, repeated=True, fused=True), Pass("", compares=True, model=POLICY)]


def test_titles_of_models_beside_the_policy():
    assert found("dgpo")[0].title == "reference"
    assert found({"method": "dgpo", "reference": "other"})[0].title == "other"


def test_flops_of_iterations_and_rows():
    """By hand: a kept reference runs once, its products in each iteration; a repeated pass runs in each."""
    update = Update(prompt=50, completion=100, completions=8, zero_advantage=0.25, iterations=3)
    forward, head = POLICY.backbone_flops(150, 0.5), 2 * 64 * 1000 * 100
    assert pass_flops(POLICY, update, Pass("", compares=True, model=POLICY)) == 6 * (forward + 3 * 2 * head)
    assert pass_flops(POLICY, update, Pass("", repeated=True)) == 6 * 3 * (forward + head)
    assert pass_flops(POLICY, update, Pass("", every_row=True)) == 8 * (forward + head)
    half = replace(update, kept=0.5)  # what the cache does not hold is computed again
    assert pass_flops(POLICY, half, Pass("", compares=True, model=POLICY)) == 6 * (2 * forward + 3 * 2 * head)
