"""Gradients of credit methods against the true gradient."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.bench.gradients import (
    Comparison,
    Moments,
    bias_cosine,
    compare_gradients,
    cosine,
    group_gradients,
    sample_groups,
    uniform_gradient,
)
from trl_credit.bench.groups import Group, group_advantages


# Gradients


def naive_gradient(model, group: Group, token_advantages) -> torch.Tensor:
    """-(1/N) sum_i sum_t A_it log pi(y_it), token by token."""
    loss = torch.zeros(())
    for completion, row in zip(group.completions, token_advantages, strict=True):
        ids = torch.tensor([group.prompt_ids + completion])
        logps = model(ids).logits[0].double().log_softmax(-1)
        for t, token in enumerate(completion):
            loss = loss - float(row[t]) * logps[len(group.prompt_ids) + t - 1, token] / len(group.completions)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).float()


def random_groups(number: int, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(number):
        completions = [rng.integers(3, 60, rng.integers(1, 6)).tolist() for _ in range(4)]
        rewards = torch.tensor(rng.integers(0, 2, 4), dtype=torch.float32)
        groups.append(Group("?", rng.integers(3, 60, 4).tolist(), completions, rewards))
    return groups


def uniform(group: Group) -> list[np.ndarray]:
    return [np.full(len(c), float(a)) for c, a in zip(group.completions, group.advantages, strict=True)]


def random_credit(groups: list[Group], seed: int = 1):
    """Token advantages of weights, of a term that also groups without an advantage have, and of neither."""
    rng = np.random.default_rng(seed)
    return [
        {
            "uniform": uniform(group),
            "other": [row * rng.random(len(row)) for row in uniform(group)],
            "term": [row + rng.standard_normal(len(row)) for row in uniform(group)],
        }
        for group in groups
    ]


def test_advantages_are_trl_s():
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(advantages, torch.tensor([0.5, -0.5, -0.5, 0.5]) / (math.sqrt(1 / 3) + 1e-4))
    assert (group_advantages(torch.ones(4)) == 0).all()


def test_gradients(bench_model):
    model = AutoModelForCausalLM.from_pretrained(bench_model, dtype=torch.float32).eval()
    groups = random_groups(9)
    credit = random_credit(groups)
    naive = {
        label: torch.stack([naive_gradient(model, g, own[label]) for g, own in zip(groups, credit, strict=True)])
        for label in ("uniform", "other", "term")
    }
    place = next(i for i, group in enumerate(groups) if (group.advantages != 0).any())
    for label, gradient in group_gradients(model, groups[place], credit[place], pad=0):
        torch.testing.assert_close(gradient, naive[label][place], rtol=1e-3, atol=1e-5)
    place = next(i for i, group in enumerate(groups) if (group.advantages == 0).all())
    found = dict(group_gradients(model, groups[place], credit[place], pad=0))
    assert found["uniform"] is found["other"] is None  # no advantage, no gradient
    torch.testing.assert_close(found["term"], naive["term"][place], rtol=1e-3, atol=1e-5)

    target_groups = random_groups(12, seed=5)
    target, halves = uniform_gradient(model, target_groups, pad=0)
    own = torch.stack([naive_gradient(model, g, uniform(g)) for g in target_groups])
    torch.testing.assert_close(target, own.mean(0), rtol=1e-3, atol=1e-5)
    assert halves == pytest.approx(cosine(own[::2].sum(0), own[1::2].sum(0)), abs=1e-4)

    results = compare_gradients(model, groups, credit, target, pad=0, batch_sizes=(1, 4, 99))
    for label, gradients in naive.items():
        gradients = gradients.double()
        result, t = results[label], target.double()
        trace = gradients.var(0, unbiased=True).sum()
        mean = gradients.mean(0)
        squared = mean.square().sum() - trace / 9
        assert result["variance"] == pytest.approx(trace.item(), rel=1e-4)
        if squared > 0:
            assert result["relative_variance"] == pytest.approx((trace / squared).item(), rel=1e-2)
        assert result["mean_cosine"] == pytest.approx(cosine(mean, t), abs=1e-4)
        assert set(result["cosine"]) == {"1", "4"}
        batches = [gradients[i : i + 4].mean(0) for i in (0, 4)]
        cosines = [cosine(batch, t) for batch in batches]
        assert result["cosine"]["4"]["mean"] == pytest.approx(np.mean(cosines), abs=1e-4)
        assert result["cosine"]["4"]["stderr"] == pytest.approx(np.std(cosines, ddof=1) / math.sqrt(2), abs=1e-4)
        nonzero = [g for g in gradients if g.any()]
        assert result["cosine"]["1"]["n"] == len(nonzero)  # a group without an advantage has no direction
        assert result["cosine"]["1"]["mean"] == pytest.approx(np.mean([cosine(g, t) for g in nonzero]), abs=1e-4)
        uniform_trace = naive["uniform"].double().var(0, unbiased=True).sum()
        assert result["variance_over_uniform"] == pytest.approx((trace / uniform_trace).item(), rel=1e-4)


def test_moments_and_the_cosine_without_noise():
    """About 1 for noisy estimates in the direction of uniform's, about 0 for those in another one."""
    generator = torch.Generator().manual_seed(0)
    direction, other = torch.zeros(300), torch.zeros(300)
    direction[0] = other[1] = 1.0
    target = direction + torch.randn(300, generator=generator) / math.sqrt(1000)
    uniform = Comparison(target, (), block=80)
    for row in direction + torch.randn(640, 300, generator=generator):
        uniform.add(row)
    assert bias_cosine(uniform, uniform) == (1.0, 0.0)
    for mean, expected in ((4 * direction, 1.0), (other, 0.0), ((direction + other) / 2, math.sqrt(0.5))):
        comparison = Comparison(target, (1, 64), block=80)
        rows = mean + torch.randn(640, 300, generator=generator)
        for row in rows:
            comparison.add(row)
        result = comparison.result()
        assert result["variance"] == pytest.approx(rows.double().var(0).sum().item(), rel=1e-5)
        assert result["cosine"]["64"]["n"] == 10
        cosine_, error = bias_cosine(comparison, uniform)
        assert cosine_ == pytest.approx(expected, abs=0.12)
        assert 0 < error < 0.2
    assert math.isnan(Moments(3).trace)
    assert math.isnan(cosine(torch.zeros(2), torch.ones(2)))


def test_sampled_groups(bench_model):
    model = AutoModelForCausalLM.from_pretrained(bench_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bench_model)
    arguments = (model, tokenizer, ["1+2=", "10+20="], ["3", "30"])
    state = torch.get_rng_state()
    groups = sample_groups(*arguments, seed=0, group_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(group.completions) for group in groups] == [3, 3]
    assert groups[1].prompt == "10+20="
    assert groups[1].prompt_ids == tokenizer("10+20=")["input_ids"]
    assert groups[1].example == {"answer": "30", "solution": "10+20=30;#30"}
    assert [g.completions for g in groups] == [g.completions for g in sample_groups(*arguments, 0, 3)]
    assert [g.completions for g in groups] != [g.completions for g in sample_groups(*arguments, 1, 3)]
    eos = tokenizer.eos_token_id
    assert all(eos not in completion[:-1] for group in groups for completion in group.completions)


def test_no_gradient_without_different_rewards(bench_model):
    model = AutoModelForCausalLM.from_pretrained(bench_model, dtype=torch.float32).eval()
    same = [dataclasses.replace(group, rewards=torch.ones(4)) for group in random_groups(4)]
    with pytest.raises(ValueError, match="no gradient"):
        uniform_gradient(model, same, pad=0)
