"""Settings of sequence-level ratios."""

import math

import pytest
import torch
from helpers import config

from trl_credit.trainer.gspo_token import sequence_token_old_logps


def batch(rows=4, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps, old = (-3 * torch.rand(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = [6, 1, 3, 5][:rows]
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths])
    return logps, old, mask


def test_value_and_gradient_are_the_definitions():
    logps, old, mask = batch()
    old[2, 4] = math.nan  # off the mask
    logps.requires_grad_()
    ratio = torch.exp(logps - sequence_token_old_logps(logps, old, mask))
    for row in range(len(mask)):
        places = [t for t in range(mask.size(1)) if mask[row, t]]
        s = math.exp(sum((logps[row, t] - old[row, t]).item() for t in places) / len(places))
        for t in places:
            assert ratio[row, t].item() == pytest.approx(s, rel=1e-12)
            (gradient,) = torch.autograd.grad(ratio[row, t], logps, retain_graph=True)
            expected = torch.zeros_like(gradient)
            expected[row, t] = s  # of pi / sg[pi], times s
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_a_completion_without_a_token_in_the_loss():
    logps, old, mask = batch()
    mask[1] = False
    assert sequence_token_old_logps(logps, old, mask)[1].isfinite().all()


def test_on_policy_the_ratio_is_one():
    logps, _, mask = batch()
    assert torch.equal(sequence_token_old_logps(logps, logps.clone(), mask), logps)


@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_refused_where_it_is_nothing(loss_type, tmp_path):
    with pytest.raises(ValueError, match=f"'sequence_token'` has no effect with `loss_type='{loss_type}'`"):
        config(tmp_path, credit="gcpo", importance_sampling_level="sequence_token", loss_type=loss_type)
