"""DelTA: factors from the means of both sides' token gradients."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import make_inputs, make_rollout
from support.processes import on_processes

from trl_credit import DelTA
from trl_credit.methods.delta import delta_factors


def of(seed, batch=6, length=11, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 1.5 * torch.rand(batch, 1, generator=generator)
    mask[0] = False
    mask[-1] = False
    mask[-1, seed % length] = True
    return make_rollout(seed, mask, **kwargs)


def expected_of(rollout, *args):
    return oracles.delta(
        rollout.logps.numpy(), rollout.hidden_states.numpy(), rollout.advantages.numpy(), rollout.mask.numpy(), *args
    )


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 8), length=st.integers(1, 20), refinements=st.integers(0, 3))
def test_oracle(seed, batch, length, refinements):
    rollout = of(seed, batch, length, dtype=torch.float64)
    advantages = rollout.advantages.clone()
    advantages[seed % batch] = 0
    rollout = replace(rollout, advantages=advantages)
    found = DelTA(refinements=refinements).rollout_stage(rollout)["factors"]
    np.testing.assert_allclose(found.numpy(), expected_of(rollout, 0.8, 1.2, refinements), rtol=1e-7, atol=1e-9)


def test_float32_and_bfloat16_states():
    rollout = of(3, 8, 30)
    found = DelTA().rollout_stage(rollout)["factors"]
    np.testing.assert_allclose(found.numpy(), expected_of(rollout), rtol=1e-4, atol=1e-5)
    half = replace(rollout, hidden_states=rollout.hidden_states.bfloat16())
    rounded = replace(half, hidden_states=half.hidden_states.float())
    np.testing.assert_allclose(
        DelTA().rollout_stage(half)["factors"].numpy(), expected_of(rounded), rtol=1e-4, atol=1e-5
    )


def test_large_states_far_from_the_origin():
    """Both means are nearly equal: distances would cancel in float32."""
    rollout = of(4, 8, 20)
    rollout = replace(rollout, hidden_states=rollout.hidden_states + 300)
    found = DelTA().rollout_stage(rollout)["factors"]
    np.testing.assert_allclose(found.numpy(), expected_of(rollout), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_one_side_alone_changes_nothing(sign):
    rollout = of(0)
    rollout = replace(rollout, advantages=sign * (rollout.advantages.abs() + 0.1))
    assert torch.equal(DelTA().rollout_stage(rollout)["factors"], rollout.mask.float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["logps", "hidden_states"])
def test_a_broken_completion_counts_nowhere(where, value):
    rollout = make_rollout(1, torch.ones(6, 5, dtype=torch.bool))
    clean = replace(rollout, mask=rollout.mask.clone(), **{where: getattr(rollout, where).clone()})
    clean.mask[2] = False
    getattr(rollout, where)[2, 3] = value
    found = DelTA().rollout_stage(rollout)["factors"]
    assert found[2].isnan().all()
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[kept], DelTA().rollout_stage(clean)["factors"][kept])
    np.testing.assert_allclose(found.numpy(), expected_of(rollout), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_values_of_completions_without_an_advantage_are_not_read(value):
    """They count in the mean factor all the same."""
    rollout = make_rollout(1, torch.ones(6, 5, dtype=torch.bool))
    rollout = replace(rollout, advantages=torch.tensor([1.0, 0.0, -0.5, 0.0, -0.5, 0.3]))
    expected = DelTA().rollout_stage(rollout)["factors"]
    unread = ~DelTA().rollout_rows(rollout)
    assert unread.tolist() == [False, True, False, True, False, False]
    rollout.logps[unread], rollout.hidden_states[unread] = value, value
    assert torch.equal(DelTA().rollout_stage(rollout)["factors"], expected)
    np.testing.assert_allclose(expected.numpy(), expected_of(rollout), rtol=1e-4, atol=1e-5)
    assert (expected[unread] < 1).all()


def test_garbage_off_the_mask_changes_nothing():
    rollout = of(2)
    expected = DelTA().rollout_stage(rollout)["factors"]
    off = ~rollout.mask
    garbage = replace(
        rollout,
        logps=rollout.logps.masked_fill(off, torch.nan),
        hidden_states=rollout.hidden_states.masked_fill(off.unsqueeze(-1), torch.inf),
    )
    torch.testing.assert_close(DelTA().rollout_stage(garbage)["factors"], expected)


def test_two_processes():
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[:3, 4:] = False
    rollout = make_rollout(5, mask, dtype=torch.float64)
    whole = DelTA().rollout_stage(rollout)["factors"]
    parts = on_processes(rollout, lambda r: DelTA().rollout_stage(r)["factors"], (4, 9))
    torch.testing.assert_close(torch.cat([torch.nn.functional.pad(parts[0], (0, 5)), parts[1]]), whole)


def test_the_other_side_on_another_process():
    """No process has both sides; the batch does."""
    rollout = make_rollout(6, torch.ones(4, 5, dtype=torch.bool), dtype=torch.float64)
    rollout = replace(rollout, advantages=torch.tensor([1.0, 0.5, -1.0, -0.5], dtype=torch.float64))
    whole = DelTA().rollout_stage(rollout)["factors"]
    parts = on_processes(rollout, lambda r: DelTA().rollout_stage(r)["factors"])
    assert not torch.equal(whole, torch.ones_like(whole))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_token_that_tells_the_sides_apart_counts_more():
    """Both sides share a direction; each has one token of its own."""
    shared, good, bad = torch.eye(3)
    hidden = torch.stack([torch.stack([shared, shared, good]), torch.stack([shared, shared, bad])])
    mask = torch.ones(2, 3, dtype=torch.bool)
    factors = delta_factors(torch.full((2, 3), -1.0), hidden, torch.tensor([1.0, -1.0]), mask)
    assert (factors[:, 2] > 1).all()
    assert (factors[:, :2] < 1).all()
    assert factors.mean() == pytest.approx(1.0)


def test_a_token_that_the_policy_is_sure_of_has_no_gradient():
    """v = 0, whatever its state."""
    rollout = make_rollout(7, torch.ones(4, 5, dtype=torch.bool))
    rollout.logps[:, 0] = 0.0
    expected = DelTA().rollout_stage(rollout)["factors"]
    moved = replace(rollout, hidden_states=rollout.hidden_states.clone())
    moved.hidden_states[:, 0] *= 100
    torch.testing.assert_close(DelTA().rollout_stage(moved)["factors"], expected)


def test_parameters_are_checked():
    for wrong in ({"low": -0.1}, {"high": 0.5}, {"refinements": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DelTA(**wrong)


def test_weights_are_the_factors():
    inputs = make_inputs(DelTA(), 3, 6, 12)
    weights = DelTA().weights(inputs)
    assert torch.equal(weights, inputs.rollout["factors"])
    assert not torch.equal(weights, inputs.mask.float())
