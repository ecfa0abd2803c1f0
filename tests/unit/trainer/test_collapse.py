"""Detects weights that collapsed to uniform."""

import logging
import math

import pytest
import torch
from accelerate import PartialState

from trl_credit import CreditInputs, build_credit
from trl_credit.trainer.collapse import CollapseWatch


@pytest.fixture(autouse=True)
def accelerate_state():
    PartialState()  # its logger wants one, as every trainer makes


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


# Collapse


def inputs(dtype=torch.float32, distance=1e-4):
    method = build_credit("dgpo")
    generator = torch.Generator().manual_seed(0)
    return CreditInputs(
        mask=torch.ones(2, 50, dtype=torch.bool),
        policy_logps=-torch.rand(2, 50, generator=generator),
        policy_entropy=torch.rand(2, 50, generator=generator),
        vocab_size=100,
        signals={method.signals()[0]: torch.rand(2, 50, generator=generator) * distance},
        compute_dtype=dtype,
    )


def watch(method, fractions, caplog, patience=3, **metrics):
    """Warnings after each update of so many micro-batches' effective fractions."""
    watcher, said = CollapseWatch(build_credit(method), patience), []
    for update, micro_batches in enumerate(fractions):
        for fraction in micro_batches:
            watcher.see(update, {"credit/effective_fraction": fraction} | metrics, inputs())
        said.append(len(caplog.records))
    return said


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ([[0.9999]] * 6, [0, 0, 0, 1, 1, 1]),  # once
        ([[0.9999], [0.5], [0.9999], [0.9999], [0.9999], [0.5]], [0, 0, 0, 0, 0, 1]),  # in a row
        ([[0.9999], [math.nan], [0.9999], [0.9999], [0.5]], [0, 0, 0, 0, 1]),  # updates without credit do not count
        ([[0.9999, 0.9999]] * 4, [0, 0, 0, 1]),  # micro-batches are not updates
        ([[0.9999, 0.5]] * 2 + [[0.9999]] * 4, [0, 0, 0, 0, 0, 1]),
        ([[0.9999, 0.9999]] * 2 + [[0.9999, 0.5]] * 2, [0, 0, 0, 0]),  # the last micro-batch counts too
        ([[0.5, 0.9999]] * 5, [0, 0, 0, 0, 0]),
        ([[0.9989]] * 5, [0, 0, 0, 0, 0]),
    ],
)
def test_collapse_is_said_once(fractions, expected, caplog):
    with caplog.at_level(logging.WARNING):
        assert watch("dgpo", fractions, caplog) == expected


def test_uniform_may_be_uniform(caplog):
    with caplog.at_level(logging.WARNING):
        assert watch("uniform", [[1.0]] * 5, caplog) == [0] * 5


def test_collapse_goes_on_after_a_resume(caplog):
    method, uniform = build_credit("dgpo"), {"credit/effective_fraction": 1.0}
    before, after = CollapseWatch(method, 3), CollapseWatch(method, 3)
    with caplog.at_level(logging.WARNING):
        for update in range(2):
            before.see(update, uniform, inputs())
        after.load_state_dict(before.state_dict())
        for update in range(2, 4):
            assert not caplog.records
            after.see(update, uniform, inputs())
        assert len(caplog.records) == 1
        again = CollapseWatch(method, 3)
        again.load_state_dict(after.state_dict())
        for update in range(4, 10):
            again.see(update, uniform, inputs())
    assert len(caplog.records) == 1


def test_collapse_of_rank_weights():
    """Their spread is constant by construction; a contrast on no token is what shows."""
    gcpo = {"credit/effective_fraction": 0.63, "credit/contrast_fraction": 0.0005}
    assert build_credit("gcpo").is_uniform(gcpo)
    assert build_credit("gcpo").is_uniform(gcpo | {"credit/contrast_fraction": 0.05}) is False
    assert build_credit("gcpo").is_uniform({"credit/effective_fraction": math.nan}) is None
    assert build_credit("gcpo").is_uniform({"credit/effective_fraction": 1.0, "credit/contrast_fraction": math.nan})


def test_remedies():
    seen = inputs()
    dgpo = build_credit("dgpo")
    text = dgpo.remedy(seen)
    temperature = float(text.split("about ")[1].split(",")[0])
    sharper = build_credit({"method": "dgpo", "temperature": temperature})
    weights = sharper.weights(seen)
    fraction = torch.exp(torch.special.entr(weights / 50).sum(-1)) / 50
    assert ((fraction > 0.4) & (fraction < 0.85)).all()
    assert "`temperature: adaptive`" in text
    # No distance that is more than rounding: no temperature helps
    for nothing in (inputs(distance=0.0), inputs(torch.bfloat16, 1e-6)):
        assert "`reference`" in dgpo.remedy(nothing)
    gcpo = build_credit(GCPO)
    assert "'wrong! {prompt}'" in gcpo.remedy(seen)
    assert "`divergence: full`" in gcpo.remedy(seen)
    assert "trl-credit methods" in build_credit("uniform").remedy(seen)


@pytest.mark.parametrize(
    ("part", "end"),
    [
        (False, "this run is GRPO without the division by the standard deviation."),
        (True, "this method of the list has no effect."),
    ],
)
def test_a_method_says_what_a_run_without_its_effect_is(part, end, caplog):
    watcher = CollapseWatch(build_credit("certainty"), 2, part_of_list=part)
    for update in range(4):
        watcher.see(update, {"credit/advantage_change": 0.4, "credit/baseline_change": 0.0}, inputs())
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        "Credit method 'certainty': every token's baseline was the mean of its group for 2 updates (mean change of the "
        f"baseline's share 0.0000): {end} What to change: theta comes from other groups"
    ) in message


def test_a_measure_need_not_be_known(caplog):
    """A method of one's own may judge by a metric of its own."""

    class Own(type(build_credit("certainty"))):
        def is_uniform(self, metrics):
            return metrics["credit/mine"] < 1

    watcher = CollapseWatch(Own(), 1)
    for update in range(3):
        watcher.see(update, {"credit/mine": 0.0}, inputs())
    (message,) = [record.getMessage() for record in caplog.records]
    assert "(by its own metrics)" in message
