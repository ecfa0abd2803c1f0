"""Token credit logged during training, and the warning about effectively uniform weights."""

import logging
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, prompts, truncated_rollout
from support.batching import CREDIT
from support.credit_log import train

from trl_credit import CreditGRPOTrainer
from trl_credit.extras.effect import NothingTrainedError
from trl_credit.records.record import read_parquet
from trl_credit.trainer.credit_log import REWARD, ROW


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def constant_reward(completions, **kwargs):
    return [1.0] * len(completions)


def parameters(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "credit", ["uniform", GCPO, {"method": "dgpo", "temperature": 0.01}], ids=lambda c: str(c)[:12]
)
def test_a_logged_run_is_the_run(credit, tiny_model, tmp_path):
    plain = train(tiny_model, tmp_path / "plain", credit=credit, max_steps=4)
    logged = train(tiny_model, tmp_path / "logged", credit=credit, max_steps=4, credit_log_steps=2)
    for name, value in parameters(plain).items():
        assert torch.equal(value, parameters(logged)[name]), name
    files = sorted(path.name for path in (tmp_path / "logged" / "credit").iterdir())
    assert files == [f"step-00000{step}.{kind}" for step in (2, 4) for kind in ("html", "parquet")]


@pytest.mark.parametrize("name", CREDIT)
def test_every_method_is_shown(name, tiny_model, tmp_path):
    train(tiny_model, tmp_path, credit=CREDIT[name], max_steps=2, num_iterations=2, credit_log_steps=2)
    records, about = read_parquet(tmp_path / "credit" / "step-000002.parquet")
    assert list(about["methods"]) == [name]
    assert all(set(record.token_advantages) == {name} for record in records)


def test_a_list_is_shown_with_each_of_its_parts(tiny_model, tmp_path):
    credit = [GCPO, {"method": "dgpo", "temperature": 0.01}, "otb"]
    train(tiny_model, tmp_path, credit=credit, max_steps=2, credit_log_steps=2)
    records, about = read_parquet(tmp_path / "credit" / "step-000002.parquet")
    assert list(about["methods"]) == ["gcpo + dgpo + otb", "gcpo", "dgpo", "otb"]
    for record in records:
        whole = record.weights["gcpo + dgpo + otb"]
        product = record.weights["gcpo"] * record.weights["dgpo"]
        scaled = product * record.mask.sum() / product[record.mask].sum()
        np.testing.assert_allclose(whole[record.mask], scaled[record.mask], rtol=1e-4)
        own = record.token_advantages["otb"]
        np.testing.assert_allclose(record.token_advantages["gcpo + dgpo + otb"], whole * own, rtol=1e-4, atol=1e-6)
        assert set(record.weights) == {"gcpo + dgpo + otb", "gcpo", "dgpo"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
        {"rollout": truncated_rollout, "mask_truncated_completions": True},
        {"skip_zero_advantage": False, "trim_padding": False},
    ],
    ids=["plain", "accumulation", "windows", "truncated", "whole"],
)
def test_what_is_shown_is_what_was_computed(settings, tiny_model, tmp_path):
    trainer = train(tiny_model, tmp_path, credit_log_steps=2, credit_log_completions=5, max_steps=4, **settings)
    for step in (2, 4):
        records, about = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        assert 1 <= len(records) <= 5
        assert about["step"] == step
        assert about["methods"]["gcpo"] == trainer.credit_method.to_dict()
        signs = [record.advantage > 0 for record in records]
        assert len(records) < 5 or {2, 3} == {sum(signs), len(signs) - sum(signs)}
        for record in records:
            weights = record.weights["gcpo"][record.mask]
            assert weights.mean() == pytest.approx(1.0, abs=1e-5)
            np.testing.assert_allclose(
                record.token_advantages["gcpo"], record.advantage * record.weights["gcpo"], rtol=1e-5
            )
            assert record.tokens[-1] == "<eos>"
            assert record.prompt.endswith("=")
            assert record.info == {"source_prompt": record.prompt}
            assert np.isfinite(record.signals["negative-prompt log-prob"]).all()
            # The place in the generation batch, which has two groups of four for each micro-batch of eight
            assert 0 <= record.reward <= 16
            assert np.sign(record.reward % 4 - 1.5) == np.sign(record.advantage)


def test_columns_of_the_table(tiny_model, tmp_path):
    settings = {"log_completions": True, "credit_log_steps": 2, "max_steps": 4, "reward": letter_reward}
    train(tiny_model, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, **settings)
    for step in range(1, 5):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert ("credit/top_tokens" in table) == (step % 2 == 0)
        if step % 2:
            continue
        with_credit = table["advantage"] != 0
        assert table["credit/effective_fraction"].notna().tolist() == with_credit.tolist()
        assert with_credit.any()
        records, _ = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        for record in records:
            same = (table["prompt"] == record.prompt) & (table["completion"] == record.completion)
            (row,) = table.index[same]
            assert table["advantage"][row] == pytest.approx(record.advantage)
            assert table["letter_reward"][row] == pytest.approx(record.reward)
            shown = re.findall(r" (\d+\.\d\d)(?:, |$)", table["credit/top_tokens"][row])
            heaviest = np.sort(record.weights["gcpo"])[::-1][:5]
            assert shown == [f"{weight:.2f}" for weight in heaviest]
            tokens = [repr(t) for t, w in zip(record.tokens, record.weights["gcpo"], strict=True) if w == heaviest[0]]
            assert table["credit/top_tokens"][row].startswith(tuple(tokens))


def token_reward(completion_ids, **kwargs):
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def check_rewards(path):
    records, _ = read_parquet(path)
    assert records
    for record in records:
        assert record.reward == pytest.approx(sum(record.token_ids.tolist()) % 7 / 7)
        assert record.info["source_prompt"] == record.prompt


def test_rows_that_dynamic_sampling_replaces(tiny_model, tmp_path):
    """Rewards and prompts are those of the rows that came in their place."""

    def some(prompts, completion_ids, **kwargs):
        rewards = token_reward(completion_ids)
        return [reward if len(prompt) % 2 else 1.0 for prompt, reward in zip(prompts, rewards, strict=True)]

    settings = {"dynamic_sampling": True, "log_completions": True, "credit_log_steps": 1, "max_steps": 3}
    trainer = train(tiny_model, tmp_path, reward=some, **settings)
    drawn = [
        entry["dynamic_sampling/rounds"] for entry in trainer.state.log_history if "dynamic_sampling/rounds" in entry
    ]
    assert max(drawn) > 1
    for step in range(1, 4):
        check_rewards(tmp_path / "credit" / f"step-{step:06d}.parquet")
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert table["credit/effective_fraction"].notna().tolist() == (table["advantage"] != 0).tolist()


def test_an_evaluation_in_a_generation_batch(tiny_model, tmp_path):
    """TRL logs the evaluation's completions in the place of the batch's, so the table has no credit then."""
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=token_reward,
        rollout_func=fixed_rollout,
        args=config(
            tmp_path,
            credit=GCPO,
            num_completions_to_print=0,
            log_completions=True,
            credit_log_steps=1,
            max_steps=4,
            steps_per_generation=2,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=8,
        ),
        train_dataset=prompts(),
        eval_dataset=prompts(4, seed=1),
    )
    trainer.train()
    for step in range(1, 5):
        check_rewards(tmp_path / "credit" / f"step-{step:06d}.parquet")


def test_resumed_in_a_generation_batch(tiny_model, tmp_path):
    """The batch's prompts and log are not there after a resume; its rewards are."""
    settings = {"steps_per_generation": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    settings |= {"credit_log_steps": 1, "log_completions": True, "reward": token_reward}
    whole = train(tiny_model, tmp_path, **settings)
    expected = [read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")[0] for step in (2, 3)]
    again = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=token_reward,
        rollout_func=fixed_rollout,
        args=whole.args,
        train_dataset=prompts(),
    )
    shutil.rmtree(tmp_path / "credit")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for records, step in zip(expected, (2, 3), strict=True):
        resumed, _ = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        for one, other in zip(records, resumed, strict=True):
            assert (one.prompt, one.completion, one.reward) == (other.prompt, other.completion, other.reward)
            np.testing.assert_array_equal(one.weights["gcpo"], other.weights["gcpo"])


def test_nothing_to_show_is_said(tiny_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(NothingTrainedError):
        train(tiny_model, tmp_path, reward=constant_reward, credit_log_steps=1, max_steps=1)
    assert "Update 1 had no completion with credit to show." in caplog.text


def test_a_full_disk_ends_no_run(tiny_model, tmp_path, caplog):
    (tmp_path / "credit").write_text("a file where the folder would be")
    with caplog.at_level(logging.WARNING):
        train(tiny_model, tmp_path, credit_log_steps=1, max_steps=2)
    assert caplog.text.count("Cannot write or send the token credit of update") == 2


def test_groups_are_those_of_prompts(tiny_model, tmp_path):
    """Also of the second generation batch, and with micro-batches that cut groups."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "log_completions": True}
    train(tiny_model, tmp_path, credit_log_steps=1, credit_log_completions=16, max_steps=3, **settings)
    numbers = []
    for step in (1, 2, 3):
        records, _ = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        # `place_reward` is the place in the generation batch, of four groups of four
        assert {(record.group - 4 * (step - 1), int(record.reward)) for record in records} <= {
            (place // 4, place) for place in range(16)
        }
        assert len({record.group for record in records}) > 1
        numbers += [(record.group, record.prompt) for record in records]
    assert len({group for group, _ in numbers}) == len(set(numbers))


def test_no_reward_is_no_zero(tiny_model, tmp_path):
    """A completion that no function scored has no advantage to show, and no reward in the batch."""

    def unscored(completions, **kwargs):
        return [None if place % 4 == 0 else float(place) for place in range(len(completions))]

    settings = {"credit_log_steps": 1, "max_steps": 1, "skip_zero_advantage": False, "trim_padding": False}
    trainer = train(tiny_model, tmp_path, reward=unscored, **settings)
    (batch,) = trainer._buffered_inputs
    for row, reward in zip(batch[ROW].tolist(), batch[REWARD].tolist(), strict=True):
        assert math.isnan(reward) if row % 4 == 0 else reward == row
    records, _ = read_parquet(tmp_path / "credit" / "step-000001.parquet")
    assert all(record.reward % 4 for record in records)


def test_trackers(tiny_model, tmp_path, monkeypatch):
    """TensorBoard gets a picture; trackio and wandb (offline) the page."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trackers = {"report_to": ["tensorboard", "wandb"]}
    train(tiny_model, tmp_path / "run", credit_log_steps=2, max_steps=2, **trackers)
    import wandb

    wandb.finish()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["credit"]
    (image,) = events.Images("credit")
    assert image.step == 2
    assert image.width > 300
    pages = list((tmp_path / "wandb").glob("offline-run-*/files/media/html/credit_*.html"))
    assert len(pages) == 1
    assert pages[0].read_bytes() == (tmp_path / "run" / "credit" / "step-000002.html").read_bytes()
