"""Skipping, trimming and regrouping leave the gradient unchanged."""

import contextlib
import zlib

import numpy as np
import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts, save_tiny_model, truncated_rollout
from support.batching import CREDIT, text_batch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from trl_credit import CreditGRPOTrainer, build_credit
from trl_credit.batching import (
    PLAN,
    Savings,
    loss_mask,
    regroup_rows,
    token_counts,
)
from trl_credit.extras.effect import NothingTrainedError
from trl_credit.records.record import read_parquet


LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo")

SAVE_ALL = {"skip_zero_advantage": True, "trim_padding": True}

SAVE_NONE = {"skip_zero_advantage": False, "trim_padding": False}


def half_constant_reward(prompts, completions, **kwargs):
    """No variance in the groups of every second prompt."""
    return [1.0 if zlib.crc32(prompt.encode()) % 2 else float(place) for place, prompt in enumerate(prompts)]


def train(model, output_dir, reward=half_constant_reward, in_vain=False, before=None, **settings):
    """Trains and returns the trainer, the gradients of each optimizer step and the rows that the policy saw. `before` gets
    the trainer first."""
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, **settings}
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        rollout_func=settings.pop("rollout_func", fixed_rollout),
        args=config(output_dir, **settings),
        train_dataset=prompts(),
    )
    if before is not None:
        before(trainer)
    trainer.create_optimizer()
    gradients = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
        )
    )
    trainer.updated_tokens = 0

    def count(module, args, output):
        if torch.is_grad_enabled():
            trainer.updated_tokens += output[0].shape[:2].numel()

    trainer.model.base_model.register_forward_hook(count)
    with pytest.raises(NothingTrainedError) if in_vain else contextlib.nullcontext():
        trainer.train()
    return trainer, gradients


# 16 rows a generation batch, in windows of two micro-batches of four rows
WINDOWS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 4,
}


def savings_of(name: str) -> dict:
    """Everything that is exact with a method."""
    return SAVE_ALL | ({"skip_zero_advantage": False} if build_credit(CREDIT[name]).credits_zero_advantage else {})


# A method that looks at all tokens of a micro-batch leaves its rows as they are
REGROUPED = [name for name in CREDIT if not build_credit(CREDIT[name]).reads_batch]


# Scales of rows depend on the loss alone: each loss with one method, each method with one loss, the rest at night
@pytest.mark.parametrize(
    ("name", "loss_type"),
    [
        pytest.param(name, loss, marks=() if i % len(REGROUPED) == j or loss == "dapo" else pytest.mark.nightly)
        for i, loss in enumerate(LOSSES)
        for j, name in enumerate(REGROUPED)
    ],
)
def test_gradients_are_those_of_the_full_batch(name, loss_type, tiny_model, tmp_path):
    settings = {**WINDOWS, "credit": CREDIT[name], "loss_type": loss_type}
    full, expected = train(tiny_model, tmp_path, **settings, **SAVE_NONE)
    saved, gradients = train(tiny_model, tmp_path, **settings, **savings_of(name))
    assert len(gradients) == len(expected) == 4
    skips = savings_of(name) == SAVE_ALL
    assert saved.updated_tokens < (0.75 if skips else 0.9) * full.updated_tokens
    for ours, theirs in zip(gradients, expected, strict=True):
        assert theirs.norm() > 1e-4
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    losses = [[entry["loss"] for entry in trainer.state.log_history[:-1]] for trainer in (saved, full)]
    np.testing.assert_allclose(*losses, rtol=1e-3, atol=1e-5)
    skipped = [entry["credit/skipped_fraction"] for entry in saved.state.log_history if "reward" in entry]
    assert 0.2 < np.mean(skipped) < 0.8 or not skips


@pytest.mark.parametrize("part", ["gcpo", "dgpo"])
@pytest.mark.parametrize("reward", [half_constant_reward, lambda prompts, **kwargs: [1.0] * len(prompts)])
def test_a_signal_runs_for_the_rows_that_a_method_can_use_it_for(part, reward, tiny_model, tmp_path):
    """A teacher credits every completion; what weights the advantage is not computed where that is zero."""
    teacher = {"method": "teacher", "model": save_tiny_model(tmp_path / "teacher", seed=1), "coefficient": 0.1}
    settings = {**WINDOWS, "credit": [CREDIT[part], teacher], "num_iterations": 1, "credit_log_steps": 4}
    runs = []
    for everywhere in (True, False):
        rows = {"needed": 0, "run": 0, "all": 0}

        def count(trainer, everywhere=everywhere, rows=rows):
            if everywhere:
                trainer.credit_pass.partial = frozenset()
            source = trainer.credit_pass.sources[build_credit(CREDIT[part]).signals()[0]]
            forward = source.forward

            def counted(context, model, batch):
                rows["run"] += int(loss_mask(batch).any(-1).sum())
                return forward(context, model, batch)

            source.forward = counted
            finish = trainer.credit_pass.finish

            def finished(started, policy, step=0):
                result = finish(started, policy, step)
                rows["needed"] += int((started.batch["advantages"] != 0).sum())
                rows["all"] += len(started.batch["advantages"])
                return result

            trainer.credit_pass.finish = finished

        trainer, gradients = train(tiny_model, tmp_path / str(everywhere), reward=reward, before=count, **settings)
        runs.append((rows, gradients, trainer.state.log_history))
    (whole, expected, all_logged), (partly, found, logged) = runs
    assert whole["run"] == whole["all"] == 32
    assert partly["run"] == partly["needed"] == whole["needed"]
    assert partly["run"] < 24
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 1e-4
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    own = {
        name
        for entry in logged
        for name in entry
        if name.startswith((f"credit/{part}/", "credit/weight_", "credit/eff"))
    }
    assert len(own) >= 5
    shown, _ = read_parquet(tmp_path / "False" / "credit" / "step-000004.parquet")
    assert {record.advantage == 0 for record in shown} >= {True}
    for record in shown:
        assert len(record.signals) == (1 if record.advantage == 0 else 2)
        if record.advantage == 0:
            assert (record.weights[part][record.mask] == 1).all()
    for ours, theirs in zip(logged[:-1], all_logged[:-1], strict=True):
        for name in theirs.keys() & {"loss", "credit/teacher/teacher_gap", "credit/advantage_change"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(
    "settings",
    [
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "loss_type": "luspo"},
        {"beta": 0.1, "skip_zero_advantage": False},
        {"mask_truncated_completions": True, "rollout_func": truncated_rollout},
        {"off_policy_mask_threshold": 0.5},
        {"pad_to_multiple_of": 8},
        {"delta": 1.5},
        {"skip_zero_advantage": False},
        {"trim_padding": False},
        {"entropy_coef": 0.1, "skip_zero_advantage": False},
        {"top_entropy_quantile": 0.5, "skip_zero_advantage": False},
        {"loss_type": "bnpo", "beta": 0.1, "skip_zero_advantage": False},
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 1},
        {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "num_iterations": 1, "max_steps": 3},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "per_device_train_batch_size": 8},
        {"gradient_checkpointing": True},
        {"scale_rewards": "batch"},
    ],
    ids=lambda settings: " ".join(settings) if isinstance(settings, dict) else None,
)
def test_gradients_with_other_settings(settings, tiny_model, tmp_path):
    settings = {**WINDOWS, "loss_type": "dapo", **settings}
    ours = train(tiny_model, tmp_path, **SAVE_ALL | settings)[1]
    theirs = train(tiny_model, tmp_path, **settings | SAVE_NONE)[1]
    assert len(ours) == len(theirs)
    assert max(gradient.norm() for gradient in theirs) > 1e-3
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_token_means_keep_their_meaning(tiny_model, tmp_path):
    """With rows regrouped by length, a mean over micro-batches would count the tokens of short completions more. Each step
    is logged by itself, though one generation batch has two."""
    settings = {**WINDOWS, "num_iterations": 1, "max_steps": 2, "reward": place_reward, "learning_rate": 1e-9}
    full, _ = train(tiny_model, tmp_path, **settings, **SAVE_NONE)
    saved, _ = train(tiny_model, tmp_path, **settings, **SAVE_ALL)
    batches = full._buffered_inputs
    tokens = np.array([batch["completion_mask"].sum().item() for batch in batches])
    full.model.eval()
    entropies = []
    for batch in batches:
        with torch.no_grad():
            full._metrics["eval"].clear()
            full._compute_loss(full.model, batch)
            entropies.append(full._metrics["eval"]["entropy"][0])
    assert tokens[:2].sum() != tokens[2:].sum()
    for step, part in enumerate((slice(0, 2), slice(2, 4))):
        expected = (tokens * entropies)[part].sum() / tokens[part].sum()
        assert saved.state.log_history[step]["entropy"] == pytest.approx(expected, rel=1e-4)


def test_evaluation_between_windows(tiny_model, tmp_path):
    trainer, _ = train(tiny_model, tmp_path, **WINDOWS, credit=CREDIT["dgpo"], per_device_eval_batch_size=4)
    metrics = trainer.evaluate(prompts(3, seed=1))
    assert metrics["eval_credit/weight_std"] > 0.01
    assert 0 <= metrics["eval_credit/skipped_fraction"] <= 1


@pytest.mark.parametrize("name", [name for name in REGROUPED if savings_of(name) == SAVE_ALL])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_without_any_advantage(name, accumulation, tiny_model, tmp_path):
    """Gradients are zero and not missing, so that the optimizer does what it does in TRL."""
    settings = {"credit": CREDIT[name], "reward": lambda completions, **kwargs: [1.0] * len(completions)}
    settings |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation}
    method = build_credit(CREDIT[name])
    settings["num_iterations"] = 3 if method.needs_old_policy else 1
    trainer, gradients = train(tiny_model, tmp_path, in_vain=True, **settings, **SAVE_ALL)
    assert len(gradients) == 3
    assert all((gradient == 0).all() for gradient in gradients)
    assert trainer.updated_tokens <= 3 * 14  # one short row a step
    weighted = ("credit/weight_std", "credit/weight_max", "credit/effective_fraction")
    for entry in trainer.state.log_history[:-1]:
        assert entry.get("credit/skipped_fraction", 1.0) == 1.0  # logged with each generation batch
        assert entry["loss"] == 0.0
        # The same keys as ever, without a value
        for key in ("entropy", *(weighted if method.reweights or name == "uniform" else ("credit/advantage_change",))):
            assert entry[key] is None, key


@pytest.mark.parametrize("name", ["gcpo", "dgpo"])
def test_own_forwards_leave_out_what_needs_no_credit(name, tiny_model, tmp_path):
    """Also with the savings of the update off: no forward for rows without an advantage, none padded to the longest."""
    seen = []

    def run(**settings):
        trainer = CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=half_constant_reward,
            rollout_func=fixed_rollout,
            args=config(tmp_path, credit=CREDIT[name], per_device_train_batch_size=16, max_steps=2, **settings),
            train_dataset=prompts(),
        )
        (source,) = trainer.credit_pass.sources.values()
        forward = source.forward

        def record(trainer, model, batch):
            assert (batch["advantages"] != 0).all()
            seen.append((len(batch["prompt_ids"]), batch["completion_ids"].size(1)))
            assert batch["completion_ids"].size(1) == max(token_counts(batch)[:, 1].max(), 2)
            return forward(trainer, model, batch)

        source.forward = record
        trainer.train()
        return trainer

    trainer = run(**SAVE_NONE)
    needed = 1 - np.mean([entry["credit/skipped_fraction"] for entry in trainer.state.log_history[:-1]])
    assert sum(rows for rows, _ in seen) == round(32 * needed) < 32
    assert len({width for _, width in seen}) > 1


def test_near_zero_advantages_are_counted(tiny_model, tmp_path):
    """Eight rewards of 0.7 have a mean that is not 0.7 in float32: their advantages are 6e-4 and not zero."""
    trainer, _ = train(
        tiny_model, tmp_path, reward=lambda completions, **kwargs: [0.7] * len(completions), num_generations=8,
        max_steps=1, **SAVE_ALL,
    )  # fmt: skip
    entry = trainer.state.log_history[0]
    assert entry["credit/near_zero_advantages"] == 8
    assert entry["credit/skipped_fraction"] == 0.0


# The reference side, kept between the iterations over a generation batch


@pytest.mark.parametrize(("gib", "kept"), [(None, 1.0), (0, 0.0), (5e-6, 0.5)])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_reference_is_computed_once_per_generation_batch(gib, kept, device, tiny_model, tmp_path):
    def run(**settings):
        trainer = CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=place_reward,
            rollout_func=fixed_rollout,
            args=config(
                tmp_path, credit=CREDIT["dgpo"], num_iterations=3, max_steps=6, per_device_train_batch_size=4,
                steps_per_generation=2, **settings,
            ),
            train_dataset=prompts(),
        )  # fmt: skip
        (source,) = trainer.credit_pass.sources.values()
        rows = []
        source.model.base_model.register_forward_hook(lambda m, a, output: rows.append(len(output[0])))
        trainer.train()
        return trainer, sum(rows)

    trainer, rows = run(credit_cache_gib=gib, credit_cache_device=device)
    entry = trainer.state.log_history[0]
    assert entry["credit/kept_fraction"] == kept
    assert rows == 8 * (3 - 2 * kept)
    without = run(credit_cache_gib=0)[0]
    for a, b in zip(trainer.state.log_history[:-1], without.state.log_history[:-1], strict=True):
        assert a["credit/hellinger"] == b["credit/hellinger"]
        assert a["grad_norm"] == b["grad_norm"]


def test_a_reference_that_follows_is_not_kept(tiny_model, tmp_path):
    trainer, _ = train(
        tiny_model, tmp_path, credit="dgpo", num_iterations=2, sync_ref_model=True, ref_model_sync_steps=1
    )
    assert "credit/kept_fraction" not in trainer.state.log_history[0]


def resolved(tmp_path, model, **settings):
    return CreditGRPOTrainer(
        model=model, reward_funcs=letter_reward, args=config(tmp_path, **settings), train_dataset=prompts()
    )._savings


def test_defaults(tiny_model, tmp_path):
    """TRL's own trainer by default, all that is exact with token credit."""
    uniform = resolved(tmp_path, tiny_model)
    assert uniform == Savings()
    gcpo = resolved(tmp_path, tiny_model, credit="gcpo")
    assert gcpo == Savings(skip_zero_advantage=True, trim_padding=True, regroup=True)
    penalty = resolved(tmp_path, tiny_model, credit="gcpo", beta=0.1)
    assert penalty == Savings(trim_padding=True, regroup=True)


def test_models_on_which_padding_acts_are_not_cut(tiny_model, tmp_path):
    """GPT-2 counts TRL's padding as positions: the reference must see the same, or it is not the policy at the start."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    for parameter in model.parameters():
        parameter.data *= 3.0 if parameter.dim() > 1 else 1.0
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    rewards = [1.0] * 4 + [1.0, 2.0, 3.0, 4.0]
    trainer, _ = train(str(tmp_path / "gpt2"), tmp_path, reward=lambda **kwargs: rewards, credit="dgpo", max_steps=1)
    assert trainer._savings == Savings(skip_zero_advantage=True)
    assert trainer.state.log_history[0]["credit/skipped_fraction"] == 0.5
    assert trainer.state.log_history[0]["credit/hellinger"] < 1e-6
    with pytest.raises(ValueError, match=r"`trim_padding` is not exact here: a 'gpt2' model.*`trim_padding=False`"):
        resolved(tmp_path, str(tmp_path / "gpt2"), trim_padding=True)


def test_a_cache_that_nothing_is_kept_in_is_refused(tiny_model, tmp_path):
    for credit, settings in (("gcpo", {}), ("uniform", {}), ("dgpo", {"sync_ref_model": True})):
        with pytest.raises(ValueError, match=rf"`credit_cache_gib` \(1.0\) has no effect: .*{credit!r}"):
            resolved(tmp_path, tiny_model, credit=credit, num_iterations=2, credit_cache_gib=1.0, **settings)


def test_old_log_probs_keep_their_padding_in_half_precision(tiny_model, tmp_path):
    """Other padding is other rounding, and a ratio of 1 would not be 1."""

    def width(batch, **settings):
        savings = resolved(tmp_path, tiny_model, credit="gcpo", **settings)
        (regrouped, _, _), *_ = regroup_rows([batch], savings, "dapo", overhead=0)
        return regrouped["prompt_ids"].size(1)

    before = text_batch()
    alone = {key: value for key, value in before.items() if key != "old_per_token_logps"}
    assert width(before, bf16=True) == 3
    assert width(before) == width(alone, bf16=True) == 2


def test_what_is_kept_goes_before_the_next_generation(tiny_model, tmp_path):
    kept = []

    def rollout(prompts_, trainer):
        kept.extend(bool(batch[PLAN].cache) for batch in trainer._buffered_inputs or [])
        return fixed_rollout(prompts_, trainer)

    trainer, _ = train(tiny_model, tmp_path, **WINDOWS | {"max_steps": 8}, credit="dgpo", rollout_func=rollout)
    assert kept == [False] * 4
    assert any(batch[PLAN].cache for batch in trainer._buffered_inputs)


def test_dealing_is_refused_with_the_reason(tmp_path, tiny_model, caplog):
    dropout = save_tiny_model(tmp_path / "dropout", attention_dropout=0.5)
    cases = [
        (dropout, {}, "dropout"),
        (tiny_model, {"entropy_coef": 0.1}, "entropy bonus"),
        (tiny_model, {"top_entropy_quantile": 0.5}, "quantile"),
        (tiny_model, {"loss_type": "bnpo", "beta": 0.1}, "bnpo"),
    ]
    for model, settings, reason in cases:
        caplog.clear()
        savings = resolved(tmp_path, model, trim_padding=True, **settings)
        assert savings.trim_padding
        assert not savings.regroup
        assert any("does not regroup" in message and reason in message for message in caplog.messages), reason
