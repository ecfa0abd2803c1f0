"""The teacher's term."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import teacher_row
from support.inputs import make_inputs

from trl_credit import Teacher, build_credit
from trl_credit.methods.teacher import teacher_term


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    coefficient=st.floats(-2.0, 2.0),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_oracle(seed, coefficient, bad):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (-4 * torch.rand(5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(5, 9, generator=generator) < 0.7
    mask[0], mask[1] = False, torch.arange(9) == 4
    if bad is not None:
        (teacher if seed % 2 else student)[4, seed % 9] = bad
    found = teacher_term(teacher, student, mask, coefficient)
    expected = [
        teacher_row(*(x.tolist() for x in row), coefficient) for row in zip(teacher, student, mask, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_student_is_the_policy_that_generated():
    method = Teacher("a/teacher", coefficient=2.0)
    inputs = make_inputs(method, 3, 4, 9)
    [teacher] = inputs.signals.values()
    torch.testing.assert_close(method.term(inputs), torch.where(inputs.mask, 2 * (teacher - inputs.old_logps), 0.0))
    on_policy = dataclasses.replace(inputs, old_logps=None)
    expected = torch.where(inputs.mask, 2 * (teacher - inputs.policy_logps), 0.0)
    torch.testing.assert_close(method.term(on_policy), expected)
    inputs.old_logps[2, int(inputs.mask[2].nonzero()[0])] = math.nan
    assert not method.term(inputs)[2].any()
    assert method.term(inputs)[1].any() or not inputs.mask[1].any()


def test_the_coefficient_follows_its_schedule():
    method = build_credit({"method": "teacher", "model": "t", "coefficient": {"from": 1.0, "to": 0, "updates": 10}})
    inputs = make_inputs(method, 3, 4, 9)
    half = method.term(dataclasses.replace(inputs, step=5))
    torch.testing.assert_close(half, Teacher("t", 0.5).term(inputs))
    assert not method.term(dataclasses.replace(inputs, step=10)).any()


def test_parameters():
    with pytest.raises(ValueError, match=r"needs a value for `model`. Write \{method: teacher, model: ...\}"):
        build_credit("teacher")
    with pytest.raises(ValueError, match="`model` is empty"):
        Teacher(" ")
    with pytest.raises(ValueError, match="`coefficient` must be other than 0"):
        Teacher("t", 0.0)
