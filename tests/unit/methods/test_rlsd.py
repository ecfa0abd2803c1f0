"""RLSD's factors."""

import dataclasses
import math

import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rlsd_row
from support.inputs import make_inputs

from trl_credit import RLSD, build_credit
from trl_credit.methods.rlsd import rlsd_factors
from trl_credit.trainer.collapse import LengthWatch


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    strength=st.floats(0.0, 1.0),
    clip_range=st.floats(0.01, 1.0),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_oracle(seed, strength, clip_range, bad):
    generator = torch.Generator().manual_seed(seed)
    policy, hint = (-4 * torch.rand(6, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    hint[2] = policy[2] + 0.1 * (hint[2] - policy[2])  # within the clip
    policy[3] *= 200  # an exponential that overflows float32 but not the clip
    mask = torch.rand(6, 11, generator=generator) < 0.7
    mask[0], mask[1] = False, torch.arange(11) == 4
    advantages = torch.tensor([1.0, -1.0, 0.3, 2.0, -0.5, 0.0], dtype=torch.float64)
    if bad is not None:
        (policy if seed % 2 else hint)[4, seed % 11] = bad
    found = rlsd_factors(policy, hint, mask, advantages, strength, clip_range)
    expected = [
        rlsd_row(*(x.tolist() for x in row), strength, clip_range)
        for row in zip(policy, hint, mask, advantages, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_defaults_stay_within_a_tenth():
    inputs = make_inputs(RLSD(), 3, 6, 30)
    weights = RLSD().weights(inputs)[inputs.mask]
    assert weights.min() == pytest.approx(0.9)
    assert weights.max() == pytest.approx(1.1)


def test_the_strength_follows_its_schedule():
    method = build_credit({"method": "rlsd", "strength": {"from": 0.5, "to": 0, "updates": 60}})
    inputs = make_inputs(method, 3, 4, 20)
    for step, strength in [(0, 0.5), (30, 0.25), (60, 0.0), (99, 0.0)]:
        at = dataclasses.replace(inputs, step=step)
        torch.testing.assert_close(
            method.weights(at), RLSD(strength=strength).weights(at) if strength else at.mask.float()
        )
    assert build_credit(method.to_dict()) == method


def test_only_some_completions_and_tokens():
    inputs = make_inputs(RLSD(thought_only=True), 3, 6, 30)
    every = RLSD().weights(dataclasses.replace(inputs, signals=inputs.signals))
    negative = RLSD(negative_only=True).weights(inputs)
    below = (inputs.advantages < 0).unsqueeze(1)
    assert below.any()
    torch.testing.assert_close(negative, torch.where(below, every, inputs.mask.float()))
    thought = RLSD(thought_only=True)
    inside = inputs.signals[thought.signals()[1]] > 0.5
    torch.testing.assert_close(thought.weights(inputs), torch.where(inside & inputs.mask, every, inputs.mask.float()))
    assert not torch.equal(thought.weights(inputs), every)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strength": 0}, "`strength` must be above 0"),
        ({"strength": 1.5}, "between 0 and 1"),
        ({"strength": {"from": 0.5, "to": 2, "updates": 3}}, "between 0 and 1"),
        ({"clip_range": 0}, "`clip_range` must be above 0"),
        ({"template": "{prompt} and nothing"}, r"\{answer\} is missing"),
        ({"template": "defualt"}, "default"),
        ({"column": " "}, "Name the dataset's column"),
        ({"thought_end": ""}, "`thought_end` must be a tag"),
    ],
)
def test_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        RLSD(**parameters)


def test_uniform_is_a_hint_without_effect():
    assert RLSD().is_uniform({"credit/hint_fraction": 0.0, "credit/effective_fraction": 0.99}) is True
    assert RLSD().is_uniform({"credit/hint_fraction": 0.4, "credit/effective_fraction": 1.0}) is False
    assert RLSD().is_uniform({"credit/hint_fraction": math.nan}) is None
    assert "'solution'" in RLSD().remedy(make_inputs(RLSD(), 3, 4, 9))


def test_completions_that_shrink_call_for_one_warning(caplog):
    PartialState()  # the log of all processes
    watch = LengthWatch(RLSD(), batches=3)
    for length in [100, 110, 90, 80, 60, 50, 45, 40, 30, 20]:
        before = len(caplog.messages)
        watch.see(length)
        state, watch = watch.state_dict(), LengthWatch(RLSD(), batches=3)
        watch.load_state_dict(state)  # as after each checkpoint
        assert len(caplog.messages) == before + (length == 40)
    assert "from 100 to 45 tokens" in caplog.messages[0]
    for steady in (LengthWatch(RLSD(), batches=3), LengthWatch(build_credit("gcpo"), batches=3)):
        for length in (100.0, 100.0, 100.0, 51.0, 51.0, 51.0) if steady.names else (100.0, 1.0) * 5:
            steady.see(length)
    assert len(caplog.messages) == 1


def test_thought_tags_without_their_use_are_refused():
    with pytest.raises(ValueError, match=r"`thought_start` .* has no effect without `thought_only: true`"):
        RLSD(thought_start="<thought>")
