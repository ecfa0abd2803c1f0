"""Rewards that fail during training."""

import contextlib

import pytest
import torch
from helpers import config, letter_reward, prompts
from support.guard import length_reward, make
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from trl_credit import CreditGRPOTrainer
from trl_credit.extras.effect import NothingTrainedError
from trl_credit.extras.reward_guard import RewardError, largest_rewards


NAN, INF = float("nan"), float("inf")


def long_is_bad(completions, **kwargs):
    return [NAN if len(text) > 7 else 1.0 for text in completions]


def test_excluded_completions_are_out_of_their_groups(tiny_model, tmp_path):
    """By any of the functions, for all of them: as if TRL had got no reward from either."""

    def masked(completions, **kwargs):
        return [None if len(text) > 7 else float(len(text)) for text in completions]

    def constant(completions, **kwargs):
        return [None if len(text) > 7 else 1.0 for text in completions]

    runs = {}
    for name, functions in {"ours": [length_reward, long_is_bad], "theirs": [masked, constant]}.items():
        trainer = make(tiny_model, tmp_path / name, functions, on_reward_error="exclude", max_steps=2)
        batches = []
        plan = trainer._planned
        trainer._planned = lambda batch, *args, plan=plan, batches=batches: (batches.extend(batch), plan(batch, *args))[
            1
        ]
        trainer.train()
        runs[name] = trainer.state.log_history, [batch["advantages"] for batch in batches]
    for ours, theirs in zip(runs["ours"][1], runs["theirs"][1], strict=True):
        assert torch.equal(ours, theirs)
        assert (ours == 0).any()
        assert (ours != 0).any()
    log, other = runs["ours"][0][0], runs["theirs"][0][0]
    assert log["rewards/long_is_bad/excluded"] > 0
    assert log["rewards/length_reward/excluded"] == 0
    assert other["rewards/masked/excluded"] == 0
    assert log["reward"] == other["reward"]


def test_in_training_it_is_an_error_that_names_the_completion(tiny_model, tmp_path):
    with pytest.raises(RewardError, match=r"'long_is_bad' failed on completion \d of 8: it returned nan"):
        make(tiny_model, tmp_path, [length_reward, long_is_bad]).train()


# Finite in float32, but not what TRL makes of them: it would find every advantage zero
TOO_LARGE = {
    "the reward": ({}, 3e38),
    "its square": ({}, 1e20),
    "its square, of the batch": ({"scale_rewards": "batch"}, 1e20),
    "each function's": ({"multi_objective_aggregation": "normalize_then_sum"}, 1e20),
    "with its weight": ({"reward_weights": [1e10]}, 1e9),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_rewards_whose_statistics_overflow(case, tiny_model, tmp_path):
    settings, size = TOO_LARGE[case]

    def large(completions, **kwargs):
        return [size if i == 3 else float(i) for i in range(len(completions))]

    with pytest.raises(RewardError, match=r"'large' failed on completion 3 of 8: .* statistics overflow in float32"):
        make(tiny_model, tmp_path, large, **settings).train()
    trainer = make(tiny_model, tmp_path, large, on_reward_error="exclude", max_steps=1, **settings)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/large/excluded"] == 1
    assert log["grad_norm"] > 0


@pytest.mark.parametrize("settings", [{}, {"reward_weights": [1e-30]}])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_the_largest_rewards_that_are_taken(aggregation, scale, settings, tiny_model, tmp_path):
    """What the guard lets through does not overflow."""
    largest = largest_rewards(8, torch.tensor(settings.get("reward_weights", [1.0]))).item()
    signs = iter((1, 1, 1, -1, -1, 1, -1, -1))
    trainer = make(
        tiny_model, tmp_path, lambda completions, **_: [next(signs) * largest * 0.99 for _ in completions],
        max_steps=1, scale_rewards=scale, multi_objective_aggregation=aggregation, learning_rate=1e-20, **settings,
    )  # fmt: skip
    advantages = []
    planned = trainer._planned
    trainer._planned = lambda batches, *rest: (advantages.append(batches[0]["advantages"]), planned(batches, *rest))[1]
    with contextlib.suppress(NothingTrainedError):
        trainer.train()
    assert advantages[0].isfinite().all()
    assert (advantages[0] != 0).all()


def test_weights_that_are_not_finite(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="`reward_weights` must be finite in float32"):
        make(tiny_model, tmp_path, length_reward, reward_weights=[1e39])


def test_a_reward_model_that_returns_nan(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = Qwen2Config(
        vocab_size=len(tokenizer), num_labels=1, num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id, **settings
    )
    reward = Qwen2ForSequenceClassification(small)
    torch.nn.init.constant_(reward.score.weight, NAN)
    reward.config._name_or_path = "judge"

    def trainer(**overrides):
        return CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=[reward, letter_reward],
            reward_processing_classes=[tokenizer, None],
            args=config(tmp_path, max_steps=1, **overrides),
            train_dataset=prompts(),
        )

    with pytest.raises(RewardError, match=r"'judge' failed on completion 0 of 8: it returned nan.*Prompt: "):
        trainer().train()
    excluding = trainer(on_reward_error="exclude")
    with pytest.raises(NothingTrainedError, match="none of the 8 completions has an advantage"):
        excluding.train()
    assert excluding.state.log_history[0]["rewards/judge/excluded"] == 8
