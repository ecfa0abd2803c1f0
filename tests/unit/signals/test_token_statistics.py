"""Log-probs and sums of squared probabilities from hidden states and the output head."""

import numpy as np
import oracles
import pytest
import torch

from trl_credit.signals import token_statistics as module
from trl_credit.signals.divergence import Head
from trl_credit.signals.token_statistics import token_statistics


BATCH, TOKENS, HIDDEN, VOCAB = 3, 7, 8, 40


def inputs(vocab=VOCAB, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(BATCH, TOKENS, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(vocab, HIDDEN, generator=generator).to(dtype)
    bias = torch.randn(vocab, generator=generator).to(dtype)
    ids = torch.randint(0, vocab, (BATCH, TOKENS), generator=generator)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[0, 3:] = False
    mask[1, 1] = False
    mask[2] = False
    return states, weight, bias, ids, mask


def expected_of(states, head, ids, mask, temperature):
    logits = states.double().numpy() @ head.weight.double().numpy().T
    if head.bias is not None:
        logits = logits + head.bias.double().numpy()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * np.tanh(logits / head.softcap)
    probs = oracles.distribution(logits, temperature)
    chosen = np.take_along_axis(probs, ids.numpy()[..., None], -1)[..., 0]
    on = mask.numpy()
    return {"logps": np.where(on, np.log(chosen), 0.0), "sum_squared_probs": np.where(on, (probs**2).sum(-1), 0.0)}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("with_bias", [False, True])
def test_oracle(with_bias, scale, softcap, temperature):
    states, weight, bias, ids, mask = inputs()
    head = Head(weight, bias if with_bias else None, scale, softcap)
    found = token_statistics(states, head, ids, mask, temperature)
    for name, expected in expected_of(states, head, ids, mask, temperature).items():
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=1e-5, atol=1e-5)
        assert found[name].dtype == torch.float32
        assert (found[name][~mask] == 0).all()


@pytest.mark.parametrize("logits", [1, 40, 130, 10_000])
def test_chunks_change_nothing(monkeypatch, logits):
    """A chunk of one token (a vocabulary larger than all logits that may exist at once), of some, and of all."""
    states, weight, bias, ids, mask = inputs()
    head = Head(weight, bias)
    whole = token_statistics(states, head, ids, mask)
    monkeypatch.setattr(module, "_LOGITS", logits)
    for name, values in token_statistics(states, head, ids, mask).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-6, atol=1e-6)


def test_bfloat16_is_rounded_once():
    """States and weights are rounded, the product is not: as exact as float32 on the rounded values."""
    states, weight, _, ids, mask = inputs()
    found = token_statistics(states, Head(weight, None), ids, mask, dtype=torch.bfloat16)
    rounded = Head(weight.bfloat16().float(), None)
    for name, expected in expected_of(states.bfloat16().float(), rounded, ids, mask, 1.0).items():
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=1e-4, atol=1e-5)
    unrounded = expected_of(states, Head(weight, None), ids, mask, 1.0)["logps"]
    difference = np.abs(found["logps"].double().numpy() - unrounded).max()
    assert 1e-4 < difference < 0.1


def test_no_token_at_all():
    states, weight, _, ids, mask = inputs()
    for values in token_statistics(states, Head(weight, None), ids, torch.zeros_like(mask)).values():
        assert values.shape == mask.shape
        assert not values.any()


def test_logits_far_beyond_the_range_of_exp():
    states, weight, _, ids, mask = inputs()
    found = token_statistics(states * 1e3, Head(weight, None), ids, mask)
    assert all(torch.isfinite(values).all() for values in found.values())
    torch.testing.assert_close(found["sum_squared_probs"], mask.float(), rtol=1e-4, atol=1e-4)
