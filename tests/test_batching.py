"""Savings: fewer rows and columns, the same gradients."""

import contextlib
import itertools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts, save_tiny_model, truncated_rollout
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from trl_credit import METHODS, CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.batching import (
    PLAN,
    Savings,
    concatenate,
    cut,
    partition,
    placeholder_row,
    plan_updates,
    regroup_rows,
    row_scales,
    select,
    token_counts,
)
from trl_credit.extras.effect import NothingTrainedError
from trl_credit.signals.models import padding_affects_output


CREDIT = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "wrong! {prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.002},
}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo")
SAVE_ALL = {"skip_zero_advantage": True, "trim_padding": True}
SAVE_NONE = {"skip_zero_advantage": False, "trim_padding": False}


def half_constant_reward(prompts, completions, **kwargs):
    """No variance in the groups of every second prompt."""
    return [1.0 if zlib.crc32(prompt.encode()) % 2 else float(place) for place, prompt in enumerate(prompts)]


def train(model, output_dir, reward=half_constant_reward, in_vain=False, **settings):
    """Trains and returns the trainer, the gradients of each optimizer step and the rows that the policy saw."""
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, **settings}
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        rollout_func=settings.pop("rollout_func", fixed_rollout),
        args=config(output_dir, **settings),
        train_dataset=prompts(),
    )
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


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("name", list(CREDIT))
def test_gradients_are_those_of_the_full_batch(name, loss_type, tiny_model, tmp_path):
    settings = {**WINDOWS, "credit": CREDIT[name], "loss_type": loss_type}
    full, expected = train(tiny_model, tmp_path, **settings, **SAVE_NONE)
    saved, gradients = train(tiny_model, tmp_path, **settings, **SAVE_ALL)
    assert len(gradients) == len(expected) == 4
    assert saved.updated_tokens < 0.75 * full.updated_tokens
    for ours, theirs in zip(gradients, expected, strict=True):
        assert theirs.norm() > 1e-4
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    losses = [[entry["loss"] for entry in trainer.state.log_history[:-1]] for trainer in (saved, full)]
    np.testing.assert_allclose(*losses, rtol=1e-3, atol=1e-5)
    skipped = [entry["credit/skipped_fraction"] for entry in saved.state.log_history if "reward" in entry]
    assert 0.2 < np.mean(skipped) < 0.8


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


@pytest.mark.parametrize("name", list(CREDIT))
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_without_any_advantage(name, accumulation, tiny_model, tmp_path):
    """Gradients are zero and not missing, so that the optimizer does what it does in TRL."""
    settings = {"credit": CREDIT[name], "reward": lambda completions, **kwargs: [1.0] * len(completions)}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    trainer, gradients = train(tiny_model, tmp_path, in_vain=True, **settings, **SAVE_ALL)
    assert len(gradients) == 3
    assert all((gradient == 0).all() for gradient in gradients)
    assert trainer.updated_tokens <= 3 * 14  # one short row a step
    for entry in trainer.state.log_history[:-1]:
        assert entry["credit/skipped_fraction"] == 1.0
        assert entry["loss"] == 0.0
        # The same keys as ever, without a value
        for key in ("entropy", "credit/weight_std", "credit/weight_max", "credit/effective_fraction"):
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


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"credit_cache_gib": 1.0}, "`credit_cache_gib` .* has no effect with `num_iterations=1`"),
        ({"credit_cache_device": "cpu"}, "`credit_cache_device` .* has no effect"),
        ({"credit_cache_device": "disk", "num_iterations": 2}, "unknown value 'disk'"),
        ({"credit_cache_gib": -1, "num_iterations": 2}, "must be non-negative, got -1"),
        ({"skip_zero_advantage": True, "beta": 0.1}, "KL penalty .*Set `skip_zero_advantage=False`"),
        ({"skip_zero_advantage": True, "entropy_coef": 0.1}, "entropy bonus"),
        ({"skip_zero_advantage": True, "use_adaptive_entropy": True}, "entropy bonus"),
        ({"skip_zero_advantage": True, "top_entropy_quantile": 0.5}, "quantile"),
    ],
)
def test_refusals(settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        config(tmp_path, **settings)


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


def test_padding_affects_output():
    def reason(**rope):
        return padding_affects_output(SimpleNamespace(model_type="some", rope_parameters=rope))

    assert reason(rope_type="default", rope_theta=1e4) is None
    assert reason(full_attention={"rope_type": "default"}, sliding_attention={"rope_type": "yarn"}) is None
    assert "'longrope'" in reason(rope_type="longrope")
    assert "'dynamic'" in reason(full_attention={"rope_type": "dynamic"}, sliding_attention={"rope_type": "default"})
    assert "no rotary" in reason()


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


# Index plans


def cost(groups, lengths, overhead):
    return sum(len(rows) * lengths[rows].max(0).sum() + overhead for rows in groups)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=6),
    st.integers(1, 3),
    st.integers(2, 4),
    st.sampled_from([0, 3, 50]),
)
def test_partition_is_the_cheapest_in_order_of_length(pairs, groups, max_rows, overhead):
    lengths = np.array(pairs, dtype=int).reshape(-1, 2)[: groups * max_rows]
    found = partition(lengths, groups, max_rows, overhead)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert len(found) <= groups
    assert all(0 < len(rows) <= max_rows for rows in found)
    if not len(lengths):
        return
    order = np.argsort(lengths.sum(-1), kind="stable")
    best = min(
        cost([order[a:b] for a, b in itertools.pairwise((0, *ends, len(order)))], lengths, overhead)
        for count in range(groups)
        for ends in itertools.combinations(range(1, len(order)), count)
        if all(b - a <= max_rows for a, b in itertools.pairwise((0, *ends, len(order))))
    )
    assert cost(found, lengths, overhead) == best


def test_row_scales():
    tokens = np.array([4, 0, 6, 2])
    groups = [[], [2], [0, 3]]
    assert [s.tolist() for s in row_scales("grpo", groups, tokens, 2)] == [[], [0.5], [1.0, 1.0]]
    assert [s.tolist() for s in row_scales("bnpo", groups, tokens, 2)] == [[], [6 / 8], [6 / 4, 6 / 8]]
    assert [s.tolist() for s in row_scales("dapo", groups, tokens, 2)] == [[], [1.0], [1.0, 1.0]]


def text_batch():
    return {
        "prompt_ids": torch.tensor([[0, 1, 2], [0, 0, 3]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[4, 5, 0, 0], [6, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "importance_sampling_ratio": torch.ones(2, 1),
        "old_per_token_logps": torch.ones(2, 4),
        "token_type_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 0], [0, 0, 9, 10, 0, 0, 0]]),
        "advantages": torch.tensor([1.0, 2.0]),
        "num_items_in_batch": torch.tensor(3),
        "names": ["a", "b"],
    }


def test_cut():
    batch = cut(text_batch())
    assert batch["prompt_ids"].tolist() == [[1, 2], [0, 3]]
    assert batch["completion_ids"].tolist() == [[4, 5], [6, 0]]
    assert batch["old_per_token_logps"].shape == (2, 2)
    assert batch["importance_sampling_ratio"].shape == (2, 1)
    assert batch["token_type_ids"].tolist() == [[1, 2, 3, 4], [0, 9, 10, 0]]
    assert cut(text_batch(), 3)["completion_ids"].shape == (2, 3)
    assert cut(text_batch(), 16)["prompt_ids"].shape == (2, 3)
    empty = text_batch()
    empty["completion_mask"] = torch.zeros(2, 4, dtype=torch.long)
    assert cut(empty)["completion_ids"].shape == (2, 2)


def test_cut_keeps_what_is_said_to_go_with_the_completion():
    batch = {**text_batch(), "completion/rewards": torch.arange(8).view(2, 4), "other": torch.zeros(2, 4)}
    del batch["token_type_ids"]
    assert cut(batch)["completion/rewards"].tolist() == [[0, 1], [4, 5]]
    assert cut(batch)["other"].shape == (2, 4)
    assert cut(batch, prompts=False)["prompt_ids"].shape == (2, 3)


def test_images_of_a_completion_keep_their_tokens():
    """A tool's images stand in the completion, whose mask is zero where it was truncated and in a stand-in."""
    batch = {**text_batch(), "mm_token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]])}
    del batch["token_type_ids"]
    batch["completion_mask"] = torch.zeros(2, 4, dtype=torch.long)
    assert cut(batch)["completion_ids"].shape == (2, 3)
    assert cut(batch)["mm_token_type_ids"].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    row = placeholder_row(select(batch, [1]))
    assert row["mm_token_type_ids"].tolist() == [[0, 0, 0, 1]]


def test_select_and_concatenate():
    both = concatenate([text_batch(), text_batch()])
    assert both["names"] == ["a", "b", "a", "b"]
    assert both["num_items_in_batch"] == 3
    picked = select(both, [3, 0])
    assert picked["names"] == ["b", "a"]
    assert picked["advantages"].tolist() == [2.0, 1.0]
    assert picked["prompt_ids"].tolist() == [[0, 0, 3], [0, 1, 2]]


def test_stand_in_is_the_shortest_row_with_nothing_in_the_loss():
    row = placeholder_row(text_batch())
    assert row["names"] == ["b"]
    assert row["prompt_ids"].tolist() == [[3]]
    assert row["completion_ids"].tolist() == [[6, 0]]
    assert not row["completion_mask"].any()
    assert not row["advantages"].any()


def image_batch():
    """Rows with two, no and one image, flat as Qwen's processor gives them."""
    grid = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 4]])
    return {
        **{key: torch.cat([value, value[:1]]) for key, value in text_batch().items() if key in ("prompt_ids",
            "prompt_mask", "completion_ids", "completion_mask", "advantages")},
        "pixel_values": torch.arange(28.0).unsqueeze(1),
        "image_grid_thw": grid,
        "num_images": [2, 0, 1],
    }  # fmt: skip


def test_images_go_with_their_rows():
    picked = select(image_batch(), [2, 0])
    assert picked["pixel_values"].flatten().tolist() == [*range(12, 28), *range(12)]
    assert picked["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 2], [1, 2, 4]]
    assert picked["num_images"] == [1, 2]
    assert not {"pixel_values", "image_grid_thw", "num_images"} & set(select(image_batch(), [1]))
    # every process runs the vision tower
    assert placeholder_row(image_batch())["num_images"] != [0]
    assert select({**text_batch(), "num_images": None}, [1])["num_images"] is None  # TRL, where it dropped them all


def test_rows_with_and_without_images_stay_together():
    """A process whose rows had no images would not run the vision tower, for which the others wait."""
    batch = image_batch() | {"advantages": torch.tensor([0.0, 1.0, 0.0])}
    savings = Savings(skip_zero_advantage=True, trim_padding=True, regroup=True)

    def plan(batch):
        (planned,), metrics = plan_updates(
            [batch], {"signal": token_counts}, lambda x: x, savings=savings, every_row=False, loss_type="dapo", window=1,
            overhead=0, forward_overhead=0,
        )  # fmt: skip
        return planned, metrics["credit/skipped_fraction"]

    planned, skipped = plan(batch)
    assert planned["num_images"] == [2, 0, 1]
    assert planned[PLAN].credit_rows == [0, 1, 2]
    assert [sorted(rows) for rows in planned[PLAN].forwards["signal"]] == [[0, 1, 2]]
    assert skipped == pytest.approx(2 / 3)
    planned, skipped = plan(batch | {"advantages": torch.zeros(3)})  # another process may have some
    assert planned[PLAN].credit_rows == [0, 1, 2]
    assert skipped == 1.0
    planned, _ = plan(select(batch, [0, 2]) | {"advantages": torch.tensor([0.0, 1.0])})
    assert planned["num_images"] == [1]


def test_every_method_is_covered():
    assert set(CREDIT) == set(METHODS)
    assert CreditGRPOConfig.__dataclass_fields__["skip_zero_advantage"].default is None
