"""TRL's asynchronous trainer with token credit, without a vLLM server: batches are packed by TRL from made samples."""

import queue
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from helpers import prompts
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer, packing
from trl.experimental.async_grpo.async_grpo_trainer import DataCollatorForRollout
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from trl_credit import AsyncCreditGRPOConfig, AsyncCreditGRPOTrainer
from trl_credit.methods.inputs import CreditInputs
from trl_credit.methods.registry import build_credit


class PlainAttention:
    """Stands in for FlashAttention 3: each segment of queries is the end of its path of keys."""

    @staticmethod
    def flash_attn_varlen_func(query, key, value, ends_q, ends_k, *args, softmax_scale, causal, **kwargs):
        assert causal
        out = []
        shared = query.size(1) // key.size(1)
        for (a, b), (c, d) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
            q, k, v = query[a:b], key[c:d].repeat_interleave(shared, 1), value[c:d].repeat_interleave(shared, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
            place = torch.arange(len(k))
            later = place > place[len(k) - len(q) :, None]
            out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
        return torch.cat(out)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(packing, "_flash_attn", lambda: PlainAttention)
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *args: None)  # TRL asks CUDA


class Worker:
    """Delivers made samples."""

    def __init__(self, samples):
        self.rollout_buffer, self.metrics_queue = queue.Queue(), queue.Queue()
        for sample in samples:
            self.rollout_buffer.put(sample)

    def start(self):
        pass

    stop = start

    def update_model_version(self, version):
        pass

    check_health = update_model_version


class Transfer:
    def init_weight_transfer(self):
        pass

    pause = resume = destroy = init_weight_transfer

    def send_weights(self, parameters):
        for _ in parameters:
            pass


def make(model, path, samples=(), plain=False, **settings):
    settings = {
        "output_dir": str(path),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "token_budget": 0,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "temperature": 0.7,
        **settings,
    }
    config, trainer = (AsyncGRPOConfig, AsyncGRPOTrainer) if plain else (AsyncCreditGRPOConfig, AsyncCreditGRPOTrainer)
    return trainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config(**settings),
        train_dataset=prompts(),
        rollout_worker=Worker(samples),
        weight_transfer=Transfer(),
    )


def make_samples(model, count=8, seed=0):
    """Completions of uneven lengths, four to a prompt, some with a tool's text in the middle; of a policy nearby."""
    rng, vocabulary = random.Random(seed), len(AutoTokenizer.from_pretrained(model))
    policy = AutoModelForCausalLM.from_pretrained(model)
    samples = []
    for i in range(count):
        prompt = [3 + (7 * (i // 4) + k) % 20 for k in range(3 + i // 4)]
        completion = [5] * (i % 2) + [rng.randrange(3, vocabulary) for _ in range(rng.randint(2, 9))]
        mask = [1] * len(completion)
        if i % 3 == 0 and len(mask) > 4:
            mask[2:4] = [0, 0]
        with torch.no_grad():
            logps = logps_of(policy, torch.tensor(prompt + completion)).tolist()
        samples.append(
            RolloutSample(
                prompt=[], completion=[], input_ids=np.array(prompt + completion),
                completion_mask=np.array([0] * len(prompt) + mask),
                old_log_probs=np.array([0.0] + [logp + rng.uniform(-0.3, 0.2) for logp in logps], dtype=np.float32),
                advantage=rng.uniform(-2, 2), model_version=0, group_id=i // 4, metrics={"reward": 0.0},
            )
        )  # fmt: skip
    return samples


def logps_of(model, ids, temperature=0.7):
    """Log-probs of every token but the first."""
    logps = (model(ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
    return logps[torch.arange(len(ids) - 1), ids[1:]]


def pack(samples):
    row = packing.TreeRow()
    for sample in samples:
        names = ("input_ids", "completion_mask", "old_log_probs", "advantage", "group_id", "metrics")
        row.add({name: getattr(sample, name) for name in names})
    return DataCollatorForRollout(pad_token_id=0)([[row]])


def loss_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def own_loss(model, samples, weights_of, epsilon=0.2):
    """TRL's loss with token weights from its definition, in float64, a completion at a time."""
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager")
    rows = []
    for sample in samples:
        ids = torch.tensor(sample.input_ids)
        logps = logps_of(model, ids)
        first = int(sample.completion_mask.argmax())
        cut = slice(first - 1, None)
        mask, old = sample.completion_mask[first:].astype(bool), sample.old_log_probs[first:].astype(float)
        rows.append((logps[cut], old, mask, ids[first:]))
    loss, count = 0.0, sum(mask.sum() for _, _, mask, _ in rows)
    for (logps, old, mask, ids), sample in zip(rows, samples, strict=True):
        weights = weights_of(logps.detach(), old, sample.advantage, mask, ids)
        for t in np.flatnonzero(mask):
            ratio, advantage = torch.exp(logps[t] - old[t]), sample.advantage * float(weights[t])
            loss = loss - torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage) / count
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def random_weights(logps, old, advantage, mask, ids):
    on = torch.tensor(mask)[None]
    zeros = torch.zeros(on.shape)
    return build_credit("random").weights(
        CreditInputs(mask=on, policy_logps=zeros, policy_entropy=zeros, vocab_size=9, token_ids=ids[None])
    )[0]


def fipo_weights(logps, old, advantage, mask, ids):
    return oracles.fipo([logps.tolist()], [old], [advantage], [mask])[0]


@pytest.mark.parametrize("credit", ["random", "forking"])
def test_a_process_without_trained_tokens_gathers_as_the_others(credit, tiny_model, tmp_path):
    """Else the others would wait for it."""
    trainer = make(tiny_model, tmp_path, make_samples(tiny_model), credit=credit)
    samples = make_samples(tiny_model, 2)
    for sample in samples:
        sample.completion_mask[:] = 0
    gathered = []
    trainer.accelerator.gather = lambda tensor: gathered.append(tensor) or tensor
    inputs = pack(samples)
    assert not (inputs["token_index"] >= 0).any()
    size = (1, int(inputs["attention_mask"].sum()))
    outputs = SimpleNamespace(log_probs=torch.zeros(size), entropy=torch.zeros(size))
    assert trainer._token_advantages(inputs, outputs).shape == (0,)
    assert gathered


def test_uniform_is_trl_bit_for_bit(tiny_model, tmp_path):
    samples = make_samples(tiny_model)
    ours, theirs = make(tiny_model, tmp_path), make(tiny_model, tmp_path, plain=True)
    batch = pack(samples)
    for a, b in zip(loss_and_gradient(ours, batch), loss_and_gradient(theirs, batch), strict=True):
        assert torch.equal(a, b)
    metrics = {name: values for name, values in ours._metrics["train"].items() if not name.startswith("credit/")}
    assert metrics == theirs._metrics["train"]
    assert ours._metrics["train"]["credit/weight_std"] == [0.0]


@pytest.mark.parametrize(("credit", "weights_of"), [("random", random_weights), ("fipo", fipo_weights)])
def test_loss_and_gradient_are_those_of_the_definition(credit, weights_of, tiny_model, tmp_path):
    samples = make_samples(tiny_model)
    loss, gradient = loss_and_gradient(make(tiny_model, tmp_path, credit=credit), pack(samples))
    expected_loss, expected = own_loss(tiny_model, samples, weights_of)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    plain = own_loss(tiny_model, samples, lambda logps, *_: torch.ones_like(logps))[1]
    assert (gradient - plain).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize(
    "credit", ["fipo", "forking", "random", {"method": "shuffled", "of": "fipo"}, ["fipo", "random"]]
)
def test_it_trains(credit, tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, make_samples(tiny_model, 16), credit=credit, learning_rate=0.1)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    assert all(entry["credit/weight_std"] > 0 and entry["credit/nonfinite_tokens"] == 0 for entry in entries)


@pytest.mark.parametrize(
    ("credit", "reason"),
    [
        ("gcpo", "'gcpo' does not work asynchronously: it needs the signal"),
        ("dgpo", "'dgpo' does not work asynchronously: it needs the signal"),
        ({"method": "shuffled", "of": "gcpo"}, "'shuffled' does not work"),
        (["random", "gcpo"], "'gcpo' does not work"),
        ("pcpo", "weights the steps of an image model's sampler"),
    ],
)
def test_what_needs_more_is_refused_before_the_model_is_loaded(credit, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        AsyncCreditGRPOConfig(str(tmp_path), credit=credit, bf16=False, use_cpu=True)
    config = AsyncCreditGRPOConfig(str(tmp_path), bf16=False, use_cpu=True, credit="{method: random, seed: 7}")
    assert config.credit["seed"] == 7  # YAML, which transformers cannot read
    config = AsyncCreditGRPOConfig(str(tmp_path), bf16=False, use_cpu=True)
    config.credit = credit
    with pytest.raises(ValueError, match=reason):
        AsyncCreditGRPOTrainer("there is no such model", args=config)
