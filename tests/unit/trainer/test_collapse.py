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


def test_advantages_that_are_one_for_all_tokens_are_told_without_weights(caplog):
    """Their distance from the sequence's advantage is the division by its standard deviation, and says nothing."""
    watcher = CollapseWatch(build_credit("certainty"), 2)
    for update in range(4):
        seen = {"credit/advantage_change": 0.4, "credit/baseline_change": 0.0}
        watcher.see(update, seen, inputs())
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        "'certainty': all tokens of a completion had one advantage for 2 updates: this run is plain GRPO without"
        in message
    )
    assert "without the division by the standard deviation. What to change: theta comes from other groups" in message
