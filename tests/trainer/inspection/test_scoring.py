"""Scores of completions against full logits and against training."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from helpers import config, letter_reward, prompts
from support.inspection import FULL
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import CreditGRPOTrainer
from trl_credit.inspection import scoring
from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.inspection.sources import read_completions
from trl_credit.methods.compose import labelled
from trl_credit.records.record import (
    read_parquet,
    write_parquet,
)


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}

SHARP = {"method": "dgpo", "temperature": 0.01}


@pytest.fixture(scope="module")
def scorer(tiny_model, other_model):
    methods = labelled(["uniform", GCPO, FULL, SHARP | {"reference": other_model}])
    return CreditScorer(tiny_model, methods, temperature=0.7)


def distributions(path, prompt, ids, temperature):
    """(T, V) float64 log-probs of the tokens after a prompt, one completion at a time."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    prompt_ids = AutoTokenizer.from_pretrained(path)(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).numpy()


def test_scores_are_those_of_the_definitions(scorer, tiny_model, other_model):
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 90, size=length).tolist() for length in (1, 2, 9, 17)]
    masks = [None, [False, True], None, [i % 3 != 1 for i in range(17)]]
    completions = [
        Completion(prompt, token_ids=row, mask=mask, advantage=advantage)
        for prompt, row, mask, advantage in zip(
            ("ab=", "1+2=", "c=", "abcdef="), rows, masks, (1, -1, 0, 2), strict=True
        )
    ]
    records = scorer.score(completions)
    for completion, record in zip(completions, records, strict=True):
        row, mask = completion.token_ids, completion.mask or [True] * len(completion.token_ids)
        places = np.arange(len(row))
        policy = distributions(tiny_model, completion.prompt, row, 0.7)
        negative = distributions(tiny_model, "wrong! " + completion.prompt, row, 0.7)
        reference = distributions(other_model, completion.prompt, row, 0.7)
        logps, negative_logps = policy[places, row], negative[places, row]
        entropy = -(np.exp(policy) * policy).sum(-1)
        distance = 1 - np.exp((policy + reference) / 2).sum(-1)
        kl = (np.exp(policy) * (policy - negative)).sum(-1)
        np.testing.assert_allclose(record.logps, logps, atol=2e-5)
        np.testing.assert_allclose(record.entropy, entropy, atol=2e-5)
        np.testing.assert_allclose(record.signals["negative-prompt log-prob"], negative_logps, atol=2e-5)
        # Signals over the vocabulary are computed where the loss is
        on = np.array(mask)
        np.testing.assert_allclose(record.signals["squared Hellinger distance"][on], distance[on], atol=1e-5)
        np.testing.assert_allclose(record.signals["KL to the negative prompt"][on], kl[on], atol=2e-5)
        expected = {
            "uniform": np.array(mask, float),
            "gcpo divergence=sampled": oracles.gcpo_row(logps, negative_logps, mask, noise_floor=1e-4),
            "gcpo divergence=full": oracles.rank_row(kl, mask),
            "dgpo": oracles.dgpo_row(distance, entropy, mask, policy.shape[1], temperature=0.01),
        }
        assert list(record.weights) == list(expected)
        for label, weights in expected.items():
            np.testing.assert_allclose(record.weights[label], weights, rtol=5e-3, atol=1e-3, err_msg=label)
            np.testing.assert_allclose(
                record.token_advantages[label], completion.advantage * record.weights[label], rtol=1e-6
            )
        assert record.mask.tolist() == mask
        assert record.prompt == completion.prompt
        assert "".join(record.tokens) == scorer.tokenizer.decode(row)


def test_a_batch_scores_as_its_completions_alone(scorer):
    rng = np.random.default_rng(1)
    completions = [
        Completion("ab=" * (i % 3 + 1), token_ids=rng.integers(3, 90, size=i % 7 + 1).tolist(), advantage=1.0)
        for i in range(9)
    ]
    together = scorer.score(completions)
    for completion, record in zip(completions, together, strict=True):
        (alone,) = scorer.score([completion])
        assert record.token_ids.tolist() == alone.token_ids.tolist()
        np.testing.assert_allclose(record.logps, alone.logps, atol=1e-5)
        np.testing.assert_allclose(record.weights["dgpo"], alone.weights["dgpo"], rtol=1e-3)


def test_scores_are_those_of_training(tiny_model, tmp_path):
    """What a training run logs of its first update is what scoring its completions with the initial model gives."""
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=GCPO, max_steps=1, credit_log_steps=1, credit_log_completions=6),
        train_dataset=prompts(),
    )
    trainer.train()
    logged, about = read_parquet(tmp_path / "credit" / "step-000001.parquet")
    assert len(logged) == 6
    completions, written = read_completions(str(tmp_path), 100)
    assert len(written[0]) == len(read_completions(str(tmp_path / "credit"), 100)[0]) == 6
    scored = CreditScorer(tiny_model, labelled([about["methods"]["gcpo"]])).score(completions)
    for ours, theirs in zip(scored, logged, strict=True):
        assert (ours.prompt, ours.completion, ours.tokens) == (theirs.prompt, theirs.completion, theirs.tokens)
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
        np.testing.assert_allclose(ours.weights["gcpo"], theirs.weights["gcpo"], atol=1e-3)
        np.testing.assert_allclose(ours.token_advantages["gcpo"], theirs.token_advantages["gcpo"], atol=1e-3)


def test_nothing_to_score(scorer):
    records = scorer.score(
        [
            Completion("ab=", text="", finished=False),
            Completion("ab=", token_ids=[4, 5], mask=[False, False]),
            Completion("ab=", text="1"),
        ]
    )
    assert [len(record.tokens) for record in records] == [0, 2, 2]
    assert records[2].tokens == ["1", "<eos>"]
    assert np.isnan(records[1].logps).all()
    assert not records[0].weights
    assert not records[1].weights
    assert scorer.score([]) == []


def test_messages_and_text_together(scorer):
    messages = [{"role": "user", "content": "hi"}]
    first, second, third = scorer.score([Completion(p, text="1") for p in ("user:hi;assistant:", messages, "a=")])
    assert first.prompt == second.prompt == "user:hi;assistant:"
    np.testing.assert_array_equal(first.logps, second.logps)
    assert third.prompt == "a="


def test_scorer_errors(scorer):
    with pytest.raises(ValueError, match="Completion 2: the mask has 1 entries for 2 tokens"):
        scorer.score([Completion("a=", text="1"), Completion("a=", token_ids=[4, 5], mask=[True])])
    with pytest.raises(ValueError, match="more than the model's context of 256"):
        scorer.score([Completion("a=", token_ids=[4] * 300)])
    with pytest.raises(ValueError, match="Completion 2 has an empty prompt"):
        scorer.score([Completion("a=", text="1"), Completion("", text="1")])
    with pytest.raises(ValueError, match="Prompt 2 is empty"):
        scorer.generate([{"prompt": "a"}, {"prompt": ""}], 2)
    with pytest.raises(ValueError, match="needs `token_ids` or `text`"):
        scorer.score([Completion("a=")])
    for token in (-1, scorer.vocab_size):
        with pytest.raises(
            ValueError, match=rf"Completion 2 has the token id {token}, but the model's vocabulary ends at"
        ):
            scorer.score([Completion("a=", text="1"), Completion("a=", token_ids=[4, token])])


def test_generate(tiny_model):
    methods = labelled(["uniform", GCPO])
    scorer = CreditScorer(tiny_model, methods, reward_funcs=[letter_reward], max_completion_length=6)
    torch.manual_seed(0)
    completions = scorer.generate(prompts(5).to_list(), 3, max_rows=6)
    assert len(completions) == 15
    assert [c.group for c in completions] == [i // 3 for i in range(15)]
    for group in range(5):
        rewards = np.array([c.reward for c in completions if c.group == group])
        advantages = [c.advantage for c in completions if c.group == group]
        np.testing.assert_allclose(advantages, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), atol=1e-4)
    for completion, record in zip(completions, scorer.score(completions), strict=True):
        assert completion.reward == pytest.approx(letter_reward([record.completion])[0])
        assert 1 <= len(record.tokens) <= 6
    assert CreditScorer(tiny_model, methods).generate(prompts(1).to_list(), 2)[0].reward is None
    silent = CreditScorer(tiny_model, methods, reward_funcs=[lambda completions, **kwargs: [None] * len(completions)])
    assert silent.generate(prompts(1).to_list(), 2)[0].reward is None


def test_advice_is_for_methods_that_are_uniform(tiny_model, scorer):
    """By the method's own judgement, and on everything that was scored."""
    same = CreditScorer(
        tiny_model, labelled(["uniform", "dgpo", GCPO, {"method": "gcpo", "negative_prompt": "{prompt}"}])
    )
    same.score([Completion("ab=", text="cd"), Completion("ab=", text="cd" * 9)])
    assert set(same.advice) == {"dgpo", "gcpo negative_prompt={prompt}"}
    assert "`reference`" in same.advice["dgpo"]
    scorer.score([Completion("ab=", text="cdef")])
    assert not scorer.advice


def test_a_term_shows_without_rewards(tiny_model, other_model):
    """Without an advantage, a teacher's term is all there is, and a method that goes by the rewards says what it needs."""
    teacher = {"method": "teacher", "model": other_model}
    scorer = CreditScorer(tiny_model, labelled([teacher]), temperature=0.7)
    rewarded, alone = scorer.score(
        [Completion("ab=", token_ids=[5, 6, 7], advantage=advantage) for advantage in (2.0, None)]
    )
    row, places = [5, 6, 7], np.arange(3)
    gap = (
        distributions(other_model, "ab=", row, 0.7)[places, row]
        - distributions(tiny_model, "ab=", row, 0.7)[places, row]
    )
    np.testing.assert_allclose(alone.token_advantages["teacher"], gap, atol=1e-4)
    np.testing.assert_allclose(rewarded.token_advantages["teacher"], 2 + gap, atol=1e-4)
    assert not alone.weights
    scorer = CreditScorer(tiny_model, labelled(["rlcsd"]))
    with pytest.raises(ValueError, match=r"^rlcsd: the credit depends on the rewards of whole groups"):
        scorer.score([Completion("ab=", token_ids=[5, 6, 7])])


def test_turns(tiny_model, tmp_path):
    """Of completions of a file: a turn's return less the mean of the group's, the rest of the reward on the last turn."""
    rows = [
        {"prompt": "ab=", "token_ids": [5, 6, 7, 8], "mask": [1, 0, 1, 1], "reward": [1.0, 2.0]},
        {"prompt": "ab=", "token_ids": [5, 9, 7], "mask": [1, 0, 1], "reward": [0.0, None]},
        {"prompt": "ab=", "token_ids": [5], "reward": 4.0},
    ]
    (tmp_path / "turns.json").write_text(json.dumps(rows))
    completions, _ = read_completions(str(tmp_path / "turns.json"), 10)
    assert [c.reward for c in completions] == [3.0, 0.0, 4.0]
    scorer = CreditScorer(tiny_model, labelled(["turn", "gigpo"]))
    records = scorer.score(completions)
    # Returns 3, 2; 0, 0; and 4 of the completion that has ended
    first, second = 7 / 3, 2 / 3
    expected = [[3 - first, 0, 2 - second, 2 - second], [-first, 0, -second], [4 - first]]
    for record, advantages in zip(records, expected, strict=True):
        np.testing.assert_allclose(record.token_advantages["turn"], advantages, atol=1e-5)
        assert np.abs(record.token_advantages["gigpo"]).sum() > 0
    write_parquet(tmp_path / "credit.parquet", records)
    again = read_completions(str(tmp_path / "credit.parquet"), 10)[0]
    assert [c.turn_rewards for c in again] == [c.turn_rewards for c in completions]

    with pytest.raises(ValueError, match=r"^turn: the method needs turns, and these completions have one turn each"):
        scorer.score([replace(completion, mask=None) for completion in completions])
    with pytest.raises(ValueError, match="in a file of completions, let `reward` be such a list"):
        scorer.score([replace(completion, turn_rewards=None) for completion in completions])


@pytest.mark.parametrize(("settings", "rows"), [({}, [8, 8]), ({"per_device_train_batch_size": 4}, [4, 4, 8])])
def test_a_rollout_stage_forwards_as_many_rows_as_the_loss(settings, rows, tiny_model):
    """Unless a limit is given."""
    scorer = CreditScorer(tiny_model, labelled(["otb"]), **settings)
    seen = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    completions = [
        Completion("ab=", token_ids=[5 + place, 7], advantage=1.0, reward=float(place % 2), group=place // 4)
        for place in range(8)
    ]
    scorer.score(completions)
    assert seen == rows
    assert scorer.trainer.args.per_device_train_batch_size == settings.get("per_device_train_batch_size", 2)


def test_one_batch_is_one_rollout_stage_however_little_fits(tiny_model, monkeypatch):
    """Methods that compare completions see all of them, while forwards stay as small as ever."""
    completions = [
        Completion(
            "ab=",
            token_ids=[5 + place, 7, 8][: 1 + place % 3],
            advantage=1.0,
            reward=float(place % 2),
            group=place // 4,
        )
        for place in range(12)
    ]
    scorer = CreditScorer(tiny_model, labelled(["otb", "certainty", ["gcpo", "certainty"]]))
    whole = scorer.score(completions)
    in_one_forward = scorer.score(completions, one_batch=True)
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 30)
    cut = scorer.score(completions)
    seen = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = scorer.score(completions, one_batch=True)
    assert max(seen) < 8
    for records in (in_one_forward, found):
        for record, expected in zip(records, whole, strict=True):
            np.testing.assert_allclose(record.logps, expected.logps, atol=1e-5)
            for label in ("otb", "certainty", "gcpo + certainty"):
                np.testing.assert_allclose(
                    record.token_advantages[label], expected.token_advantages[label], rtol=1e-4, atol=1e-5
                )
    different = [
        not np.allclose(a.token_advantages["certainty"], b.token_advantages["certainty"], atol=1e-4)
        for a, b in zip(cut, whole, strict=True)
    ]
    assert any(different)
