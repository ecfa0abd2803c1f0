"""Which methods the benchmark scores."""

import dataclasses

import pytest

from trl_credit import CreditMethod, Paper, build_credit
from trl_credit.bench.baselines import is_control
from trl_credit.bench.served import COLUMNS, reason_left_out, served_methods
from trl_credit.methods.registry import METHODS
from trl_credit.signals.hint import HintLogps


@pytest.mark.parametrize("later", [None, "somewhere"])
def test_every_method_is_served_or_has_a_reason(later):
    served, left_out = served_methods(later)
    controls = {name for name, cls in METHODS.items() if is_control(cls)}
    assert sorted([*served, *left_out, *controls]) == sorted(METHODS)
    for given in served.values():
        assert reason_left_out(build_credit(given)) is None
    assert all(len(reason.split()) > 3 for reason in left_out.values())
    # What they need cannot be had here, whichever methods there are
    for name in set(METHODS) - controls:
        cls = METHODS[name]
        if cls.needs_turns or cls.needs_old_policy or "tokens" not in cls.policies:
            assert name in left_out
    assert ("teacher" in served) == (later is not None)


@dataclasses.dataclass(frozen=True)
class _Reads(CreditMethod):
    column: str

    name = "reads"
    paper = Paper(title="", id="", citation="")

    def signals(self):
        return (HintLogps("{prompt}{answer}", self.column),)


def test_columns():
    assert all(reason_left_out(_Reads(column)) is None for column in COLUMNS)
    assert reason_left_out(_Reads("difficulty")) == (
        "reads the column 'difficulty', and these problems have only answer and solution"
    )


def test_parts_of_a_list_count():
    assert "turns" in reason_left_out(build_credit(["turn", "gcpo"]))
    assert reason_left_out(build_credit(["fipo", "gcpo"])) is None
