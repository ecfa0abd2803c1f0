"""Divergences between next-token distributions, against float64 references."""

import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from trl_credit.signals import divergence as statistics
from trl_credit.signals.divergence import STATISTICS, Head, compare_distributions, gathered_head


def squared_hellinger(hidden_p, head_p, hidden_q, head_q, mask, temperature=1.0):
    outputs = ("squared_hellinger",)
    return compare_distributions(hidden_p, head_p, hidden_q, head_q, mask, outputs, temperature)["squared_hellinger"]


def heads(vocab_size, hidden=16, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Head(scale * torch.randn(vocab_size, hidden, generator=generator))


@pytest.mark.parametrize("vocab_size", [2, 3, 50, 1031])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (512, 2048)])
def test_against_float64(vocab_size, temperature, tile, monkeypatch):
    if vocab_size > 100 and tile == (1, 1):
        tile = (1, 100)
    monkeypatch.setattr(statistics, "_CPU_TILE", tile)
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


def identity(logits):
    """Hidden states and a head that give these logits, (N, V), exactly."""
    return torch.eye(len(logits)).unsqueeze(0), Head(torch.as_tensor(logits, dtype=torch.float32).t().contiguous())


def check(logits_p, logits_q, temperature=1.0, c=4.0):
    """All statistics within 1e-6 + c * eps * max|logit| of float64, KL relatively (or absolutely below 1)."""
    (hidden_p, head_p), (hidden_q, head_q) = identity(logits_p), identity(logits_q)
    mask = torch.ones(1, len(logits_p)).bool()
    found = compare_distributions(hidden_p, head_p, hidden_q, head_q, mask, STATISTICS, temperature)
    found = {name: values[0].double().numpy() for name, values in found.items()}
    exact_p, exact_q = (head.weight.t().double().numpy() for head in (head_p, head_q))
    p, q = (oracles.distribution(x, temperature) for x in (exact_p, exact_q))
    size = max(np.abs(x[np.isfinite(x)]).max() for x in (exact_p, exact_q)) / temperature
    bound = 1e-6 + c * np.finfo(np.float32).eps * size
    distance = 0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1)
    errors = {
        "squared_hellinger": found["squared_hellinger"] - distance,
        "bhattacharyya": found["bhattacharyya"] - (1 - distance),
        "entropy": found["entropy"] - oracles.entropy(p),
    }
    for name, (a, b) in {"kl": (exact_p, exact_q), "reverse_kl": (exact_q, exact_p)}.items():
        expected = oracles.kl(a, b, temperature)
        assert (np.isinf(found[name]) == np.isinf(expected)).all(), name
        finite = np.isfinite(expected)
        errors[name] = (found[name][finite] - expected[finite]) / np.maximum(expected[finite], 1.0)
    for name, error in errors.items():
        assert np.abs(error).max(initial=0) <= bound, f"{name}: {np.abs(error).max()} > {bound}"
    assert (found["squared_hellinger"] >= 0).all()


@pytest.mark.parametrize(
    ("vocab_size", "tokens"), [(2, 40), (3, 40), (50, 40), (1031, 20), (4099, 8), (49152, 3), (151936, 2)]
)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_all_statistics(vocab_size, tokens, scale):
    rng = np.random.default_rng(vocab_size)
    logits = scale * rng.standard_normal((2, tokens, vocab_size))
    check(*logits)
    check(*logits, temperature=0.7)
    check(logits[0], logits[0] + 1e-2 * logits[1])


@pytest.mark.parametrize("vocab_size", [2, 3, 50, 5000])
def test_logits_of_ten_thousand(vocab_size):
    rng = np.random.default_rng(0)
    check(*rng.uniform(-1e4, 1e4, (2, 40, vocab_size)))
    check(*(rng.choice([-1e4, 1e4], (2, 40, vocab_size)) + rng.standard_normal((2, 40, vocab_size))))


@pytest.mark.parametrize("vocab_size", [3, 50, 5000])
def test_impossible_tokens(vocab_size):
    """Logits of -inf, on one side (an infinite KL) and on both; also a whole block of the vocabulary."""
    rng = np.random.default_rng(0)

    def logits_of(bias_p, bias_q):
        hidden = torch.as_tensor(rng.standard_normal((1, 6, 8)), dtype=torch.float32)
        weight = torch.as_tensor(rng.standard_normal((vocab_size, 8)), dtype=torch.float32)
        sides = [Head(weight, torch.as_tensor(bias, dtype=torch.float32)) for bias in (bias_p, bias_q)]
        found = compare_distributions(hidden, sides[0], 2 * hidden, sides[1], torch.ones(1, 6).bool(), STATISTICS)
        base = hidden[0].double().numpy() @ weight.double().numpy().T
        return {name: v[0].double().numpy() for name, v in found.items()}, base + bias_p, 2 * base + bias_q

    nothing, some, other = np.zeros((3, vocab_size))
    some[: max(1, vocab_size // 2)] = -np.inf
    other[-1] = -np.inf
    for bias_p, bias_q in ((some, some), (some, nothing), (nothing, some), (some, other)):
        found, p, q = logits_of(bias_p, bias_q)
        for name, (a, b) in {"kl": (p, q), "reverse_kl": (q, p)}.items():
            np.testing.assert_allclose(found[name], oracles.kl(a, b), rtol=1e-4, atol=1e-5, err_msg=name)
        p, q = oracles.distribution(p), oracles.distribution(q)
        np.testing.assert_allclose(found["squared_hellinger"], oracles.squared_hellinger(p, q), atol=1e-5)
        np.testing.assert_allclose(found["entropy"], oracles.entropy(p), atol=1e-5)


@pytest.mark.parametrize("vocab_size", [50, 4099, 49152])
def test_nearly_equal_distributions_do_not_cancel(vocab_size):
    """A squared Hellinger distance of 1e-8 keeps two digits, and so do both KLs (four times as large)."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((4, vocab_size)).astype(np.float32)
    moved = (logits + 3e-4 * rng.standard_normal((4, vocab_size))).astype(np.float32)
    (hidden_p, head_p), (hidden_q, head_q) = identity(logits), identity(moved)
    found = compare_distributions(hidden_p, head_p, hidden_q, head_q, torch.ones(1, 4).bool(), STATISTICS)
    p, q = (oracles.distribution(x.astype(np.float64)) for x in (logits, moved))
    distance = 0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1)
    assert 1e-9 < distance.min() <= distance.max() < 1e-7
    np.testing.assert_allclose(found["squared_hellinger"][0], distance, rtol=1e-2)
    np.testing.assert_allclose(found["kl"][0], oracles.kl(logits, moved), rtol=2e-2)
    np.testing.assert_allclose(found["reverse_kl"][0], oracles.kl(moved, logits), rtol=2e-2)


def test_nan_is_not_hidden():
    hidden, head = torch.randn(1, 3, 16), heads(5000)
    broken = hidden.clone()
    broken[0, 1, 2] = torch.nan
    for sides in ((broken, hidden), (hidden, broken)):
        found = compare_distributions(sides[0], head, sides[1], head, torch.ones(1, 3).bool(), STATISTICS)
        for name, values in found.items():
            bad = values[0].isnan().tolist()
            assert bad == [False, name != "entropy" or sides[0] is broken, False], name


def test_no_token_at_all():
    hidden, head = torch.randn(2, 3, 16), heads(50)
    found = compare_distributions(hidden, head, hidden, head, torch.zeros(2, 3).bool(), STATISTICS)
    assert all((values == 0).all() and values.shape == (2, 3) for values in found.values())
    assert compare_distributions(hidden[:0], head, hidden[:0], head, torch.zeros(0, 3).bool())


def test_only_what_is_asked_for():
    hidden, head = torch.randn(1, 3, 16), heads(50)
    assert list(compare_distributions(hidden, head, hidden, head, torch.ones(1, 3).bool(), ("kl",))) == ["kl"]
    with pytest.raises(ValueError, match="Unknown statistics jsd; known: squared_hellinger"):
        compare_distributions(hidden, head, hidden, head, torch.ones(1, 3).bool(), ("jsd",))
    with pytest.raises(ValueError, match="different vocabulary sizes, 50 and 51"):
        compare_distributions(hidden, head, hidden, heads(51), torch.ones(1, 3).bool())


MEMORY = """
import resource, sys, torch
from trl_credit.signals.divergence import Head, compare_distributions

torch.set_num_threads(1)
tokens, vocab_size, width = int(sys.argv[1]), 151936, 896
hidden = torch.randn(1, tokens, width, dtype=torch.bfloat16)
head = Head(torch.zeros(vocab_size, width, dtype=torch.bfloat16).normal_())
mask = torch.ones(1, tokens).bool()
compare_distributions(hidden[:, :1], head, hidden[:, :1], head, mask[:, :1])  # loads what it needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compare_distributions(hidden, head, hidden, head, mask, ("squared_hellinger", "entropy"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory():
    """At 2,048 tokens, a vocabulary of 151,936 and hidden states of 896, whose logits would take 1.2 GB a side."""
    done = subprocess.run([sys.executable, "-c", MEMORY, "2048"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 600


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


def test_shapes_and_dtypes_are_checked_in_the_tests():
    """By conftest.py, in every call of the signals' functions."""
    hidden, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    head = statistics.Head(torch.randn(7, 4))
    for wrong in ((hidden[0], hidden, mask), (hidden, hidden[:, :2], mask), (hidden, hidden, mask.float())):
        with pytest.raises(TypeCheckError):
            statistics.compare_distributions(wrong[0], head, wrong[1], head, wrong[2])
