import numpy as np
import oracles
import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from trl_credit.signals import statistics
from trl_credit.signals.statistics import Head, gathered_head, squared_hellinger


def heads(vocab_size, hidden=16, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Head(scale * torch.randn(vocab_size, hidden, generator=generator))


@pytest.mark.parametrize("vocab_size", [2, 3, 50, 1031])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tile", [1, 700, 2**24])
def test_against_float64(vocab_size, temperature, tile, monkeypatch):
    monkeypatch.setattr(statistics, "_TILE_ELEMENTS", tile)
    generator = torch.Generator().manual_seed(1)
    hidden_p, hidden_q = torch.randn(2, 3, 5, 16, generator=generator)
    head_p, head_q = heads(vocab_size, seed=2), heads(vocab_size, seed=3)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    result = squared_hellinger(hidden_p, head_p, hidden_q, head_q, mask, temperature)
    p = oracles.distribution(hidden_p.double().numpy() @ head_p.weight.double().numpy().T, temperature)
    q = oracles.distribution(hidden_q.double().numpy() @ head_q.weight.double().numpy().T, temperature)
    np.testing.assert_allclose(result[mask], oracles.squared_hellinger(p, q)[mask.numpy()], rtol=1e-5, atol=1e-6)
    assert (result[~mask] == 0).all()


def test_equal_distributions_are_at_distance_zero():
    hidden, head = torch.randn(2, 4, 16), heads(300)
    assert (squared_hellinger(hidden, head, hidden, head, torch.ones(2, 4).bool()) == 0).all()


def test_nearly_equal_distributions():
    """No cancellation: distances of 1e-8 keep two digits."""
    hidden, head = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0)), heads(300, scale=0.3)
    moved = hidden + 3e-4 * torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(1))
    result = squared_hellinger(hidden, head, moved, head, torch.ones(1, 50).bool()).double().numpy()
    p, q = (oracles.distribution(h.double().numpy() @ head.weight.double().numpy().T) for h in (hidden, moved))
    expected = 0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1)
    assert expected.min() > 1e-10
    assert expected.max() < 1e-7
    np.testing.assert_allclose(result, expected, rtol=2e-2)


def test_infinite_logits():
    head = Head(torch.eye(3))
    hidden_p = torch.tensor([[[0.0, 1.0, 2.0]]])
    hidden_q = torch.tensor([[[5.0, 1.0, 2.0]]])
    head_p = Head(torch.eye(3), bias=torch.tensor([-torch.inf, 0.0, 0.0]))
    result = squared_hellinger(hidden_p, head_p, hidden_q, head, torch.ones(1, 1).bool()).item()
    p, q = oracles.distribution([-np.inf, 1.0, 2.0]), oracles.distribution([5.0, 1.0, 2.0])
    assert result == pytest.approx(oracles.squared_hellinger(p, q), rel=1e-6)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
        lambda: Cohere2ForCausalLM(
            Cohere2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=3.0)
        ),
        lambda: GraniteForCausalLM(
            GraniteConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=4.0)
        ),
    ],
    ids=["softcapping", "logit_scale", "logits_scaling"],
)
def test_head_is_the_models_own(make_model):
    """The logits are those of the model's own forward and of TRL's fused head: softcapping and scaling included."""
    torch.manual_seed(0)
    model = make_model().eval()
    ids = torch.arange(1, 11).unsqueeze(0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
        logits = model(ids).logits
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
        fused = model(ids, labels=ids, fused_lm_head=True)
        hidden = model.base_model(ids)[0][0]
        with gathered_head(model) as head:
            ours = head.logits(hidden, torch.float32)
    torch.testing.assert_close(ours, logits[0], rtol=1e-4, atol=1e-4)
    entropy = oracles.entropy(oracles.distribution(ours.double().numpy(), 0.7))
    np.testing.assert_allclose(fused.entropy[0], entropy[:-1], rtol=1e-3, atol=1e-4)


def test_bfloat16_rounds_the_inputs_only():
    hidden, head = torch.randn(7, 16), heads(40)
    expected = hidden.bfloat16().double() @ head.weight.bfloat16().double().t()
    torch.testing.assert_close(
        head.rounded(torch.bfloat16).logits(hidden, torch.bfloat16).double(), expected, rtol=1e-5, atol=1e-5
    )
