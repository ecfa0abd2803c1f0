"""Negative prompts from a column, in training."""

import math

import pytest
import torch
from helpers import config, letter_reward, place_reward, prompts, save_tiny_model
from support.negative_prompt import column_args

from trl_credit import CreditGRPOTrainer, GCPOTrainer
from trl_credit.signals.negative_prompt import COLUMN, TEMPLATES
from trl_credit.toy.build_model import build_tokenizer, is_embedded_tokenizer


@pytest.mark.parametrize("remove_unused_columns", [True, False])
def test_column(remove_unused_columns, tiny_model, tmp_path):
    dataset = prompts().map(lambda row: {COLUMN: "zz" + row["prompt"]})

    def reward(completions, answer, **kwargs):
        assert all(isinstance(a, str) for a in answer)
        return place_reward(completions)

    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=reward,
        args=column_args(tmp_path, remove_unused_columns=remove_unused_columns),
        train_dataset=dataset,
    )
    trainer.train()
    batch = trainer._buffered_inputs[0]
    for row in range(8):
        negative = batch["negative_prompt/column/ids"][row][batch["negative_prompt/column/mask"][row].bool()]
        real = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        assert trainer._tokenizer.decode(negative) == "zz" + trainer._tokenizer.decode(real)
    assert trainer.state.log_history[0]["credit/contrast"] > 0


def test_longer_than_the_context(tmp_path):
    path = save_tiny_model(tmp_path / "short", context=40)
    credit = {"method": "gcpo", "negative_prompt": TEMPLATES["wrong_answer"]}
    with pytest.raises(ValueError, match=r"negative prompt of row \d+ has \d+ tokens.*context of 40"):
        CreditGRPOTrainer(
            model=path, reward_funcs=letter_reward, args=config(tmp_path, credit=credit), train_dataset=prompts()
        )


@pytest.mark.parametrize("negative_prompt", ["wrong_answer", TEMPLATES["wrong_answer"]])
def test_the_embedded_models_own_negative_prompt(negative_prompt, tmp_path):
    """It takes the default's place wherever the signal is used, and for what was trained from the embedded model."""
    path = save_tiny_model(tmp_path / "tiny")
    trainer = CreditGRPOTrainer(
        model=path,
        reward_funcs=place_reward,
        args=config(tmp_path, credit=["dgpo", {"method": "gcpo", "negative_prompt": negative_prompt}], max_steps=1),
        train_dataset=prompts(),
    )
    trainer.train()
    batch, decode = trainer._buffered_inputs[0], trainer.tokenizer.decode
    for row in range(len(batch["prompt_ids"])):
        prompt = decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
        key = f"negative_prompt/{negative_prompt}"
        negative = decode(batch[f"{key}/ids"][row][batch[f"{key}/mask"][row].bool()])
        assert negative == (
            "!" + prompt
            if negative_prompt == "wrong_answer"
            else prompt + TEMPLATES["wrong_answer"].removeprefix("{prompt}")
        )


def test_a_larger_vocabulary_is_not_the_embedded_models():
    tokenizer = build_tokenizer()
    assert is_embedded_tokenizer(tokenizer)
    tokenizer.add_tokens(["new"])
    assert not is_embedded_tokenizer(tokenizer)


def test_longer_than_the_context_in_a_stream_is_counted(tmp_path, caplog):
    """Rows that cannot be looked at beforehand do not stop the run: their completions get uniform weights."""
    path = save_tiny_model(tmp_path / "short", context=70)
    credit = {"method": "gcpo", "negative_prompt": "column"}
    dataset = prompts().map(lambda row, i: {COLUMN: "x" * (90 if i % 2 else 3)}, with_indices=True)
    trainer = CreditGRPOTrainer(
        model=path,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=credit, max_steps=2, shuffle_dataset=False),
        train_dataset=dataset.to_iterable_dataset(),
    )
    trainer.train()
    assert sum("do not fit the model's context" in message for message in caplog.messages) == 1
    entry = trainer.state.log_history[0]
    assert entry["credit/nonfinite_tokens"] > 0
    assert math.isfinite(entry["credit/contrast"])
    assert entry["credit/weight_std"] > 0


def test_blank_image_needs_images(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="needs a vision-language model"):
        CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "blank_image"}),
            train_dataset=prompts().add_column("image", [None] * 16),
        )


def test_iterable_dataset(tiny_model, tmp_path):
    trainer = GCPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=2),
        train_dataset=prompts().to_iterable_dataset(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["credit/weight_std"] > 0.5


def test_pad_in_a_text_model(tiny_model, tmp_path):
    """Without a beginning of the text, the whole prompt is padding, and the model sees all of it."""
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=place_reward,
        args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "pad"}),
        train_dataset=prompts(),
    )
    trainer.train()
    batch = trainer._buffered_inputs[0]
    assert torch.equal(batch["negative_prompt/pad/mask"].sum(1), batch["prompt_mask"].sum(1))
    assert (batch["negative_prompt/pad/ids"] == trainer._tokenizer.pad_token_id).all()
    assert trainer.state.log_history[0]["credit/contrast"] > 0
