"""Plans of rows and columns."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import config
from hypothesis import given
from hypothesis import strategies as st
from support.batching import CREDIT, NEED_MORE, text_batch

from trl_credit import CreditGRPOConfig
from trl_credit.batching import (
    GROUPS,
    HAS_CREDIT,
    PLAN,
    PlanSettings,
    Savings,
    concatenate,
    cut,
    keep_groups_together,
    partition,
    placeholder_row,
    plan_updates,
    row_scales,
    select,
    token_counts,
)
from trl_credit.methods.registry import methods_for
from trl_credit.signals.models import padding_affects_output


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
        ({"keep_groups_together": True}, r"no effect: with `steps_per_generation` \(1\) not above"),
        (
            {"keep_groups_together": True, "gradient_accumulation_steps": 4, "steps_per_generation": 2},
            "no effect: .* are in one optimizer step. Remove it",
        ),
        (
            {"keep_groups_together": True, "gradient_accumulation_steps": 2, "steps_per_generation": 3},
            r"`steps_per_generation` \(3\) to be a multiple of `gradient_accumulation_steps` \(2\)",
        ),
        (
            {"keep_groups_together": True, "per_device_train_batch_size": 2, "steps_per_generation": 4},
            r"a process's 2 completions of an optimizer step .* do not hold whole groups of `num_generations` \(4\)",
        ),
    ],
)
def test_refusals(settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        config(tmp_path, **settings)


def test_padding_affects_output():
    def reason(**rope):
        return padding_affects_output(SimpleNamespace(model_type="some", rope_parameters=rope))

    assert reason(rope_type="default", rope_theta=1e4) is None
    assert reason(full_attention={"rope_type": "default"}, sliding_attention={"rope_type": "yarn"}) is None
    assert "'longrope'" in reason(rope_type="longrope")
    assert "'dynamic'" in reason(full_attention={"rope_type": "dynamic"}, sliding_attention={"rope_type": "default"})
    assert "no rotary" in reason()


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


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(2, 4), st.randoms(use_true_random=False))
def test_groups_are_dealt_whole(steps, window, per_step, size, random):
    """`per_step` groups of `size` completions in each of `steps` optimizer steps of `window` micro-batches."""
    per_step *= window  # so that they fill its micro-batches
    per_batch = per_step * size // window
    rows = [(7 + group, member) for group in range(steps * per_step) for member in range(size)]
    random.shuffle(rows)

    def micro_batch(rows):
        numbers = torch.tensor(rows)
        return {
            GROUPS: numbers[:, 0],
            "advantages": numbers[:, 1].float(),
            "names": rows,
            "num_items_in_batch": torch.tensor(5),
            "nothing": None,
        }

    batches = [micro_batch(rows[i : i + per_batch]) for i in range(0, len(rows), per_batch)]
    dealt = keep_groups_together(batches, window)
    assert [len(batch["names"]) for batch in dealt] == [per_batch] * len(batches)
    assert all(batch["num_items_in_batch"] == 5 and batch["nothing"] is None for batch in dealt)
    found = [row for batch in dealt for row in batch["names"]]
    assert sorted(found) == sorted(rows)
    for batch in dealt:
        assert list(zip(batch[GROUPS].tolist(), batch["advantages"].tolist(), strict=True)) == batch["names"]
    first = []
    for start in range(0, len(found), per_batch * window):
        step = found[start : start + per_batch * window]
        groups = list(dict.fromkeys(group for group, _ in step))
        assert len(groups) == per_step
        assert step == [row for row in rows if row[0] in groups]  # in TRL's order
        first += groups
    assert first == list(dict.fromkeys(group for group, _ in rows))


def test_groups_with_and_without_images_are_not_dealt():
    batch = {**image_batch(), GROUPS: torch.tensor([0, 1, 0])}
    assert keep_groups_together([batch, batch], 1) is None
    with_images = select(batch, [2, 0])
    a, b = keep_groups_together([with_images | {GROUPS: torch.tensor([0, 1])}] * 2, 1)
    assert a["num_images"] == [1, 1]
    assert a["image_grid_thw"].tolist() == [[1, 4, 4]] * 2
    assert a["pixel_values"].flatten().tolist() == [*range(12, 28)] * 2
    assert b["num_images"] == [2, 2]


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

    def plan(batch, lengths=token_counts):
        settings = PlanSettings(
            savings, every_row=False, loss_type="dapo", window=1, overhead=0, forward_overhead=0, images=True
        )
        (planned,), metrics = plan_updates([batch], {"signal": lengths}, lambda x: x, settings)
        return planned, metrics["credit/skipped_fraction"]

    planned, skipped = plan(batch)
    assert planned["num_images"] == [2, 0, 1]
    assert planned[PLAN].credit_rows == [0, 1, 2]
    assert [sorted(rows) for rows in planned[PLAN].forwards["signal"]] == [[0, 1, 2]]
    assert skipped == pytest.approx(2 / 3)
    planned, _ = plan(batch, lambda batch: np.array([[0, 0], [0, 0], [2, 3]]))  # the signal reads one row
    assert [sorted(rows) for rows in planned[PLAN].forwards["signal"]] == [[0, 2]]
    planned, skipped = plan(batch | {"advantages": torch.zeros(3)})  # another process may have some
    assert planned[PLAN].credit_rows == [0, 1, 2]
    assert skipped == 1.0
    planned, _ = plan(select(batch, [0, 2]) | {"advantages": torch.tensor([0.0, 1.0])})
    assert planned["num_images"] == [1]


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_processes_agree_whether_some_rows_have_no_image(here, there):
    """If one process leaves nothing out, the others must run the vision tower with it."""
    batch = image_batch() | {"advantages": torch.zeros(3)}
    with_images = select(batch, [0, 2])
    own = select(batch, [0, 1]) if here else with_images
    gathered = []

    def gather(tensor):
        gathered.append(tensor)
        other = torch.tensor([there]) if len(gathered) == 1 else tensor  # another process has the same plan
        return torch.cat([tensor, other])

    savings = Savings(skip_zero_advantage=True, trim_padding=True)
    settings = PlanSettings(
        savings, every_row=False, loss_type="dapo", window=1, overhead=0, forward_overhead=0, images=True
    )
    planned, _ = plan_updates([with_images, own], {}, gather, settings)
    assert gathered[0].tolist() == [here]
    assert len(gathered) == 2
    assert [batch[PLAN].rows for batch in planned] == ([2, 2] if here or there else [0, 0])
    plan_updates([with_images], {}, lambda tensor: gathered.append(tensor) or tensor, replace(settings, images=False))
    assert len(gathered) == 3


def test_some_signals_run_only_for_rows_with_an_advantage():
    batch = {**text_batch(), "advantages": torch.tensor([0.0, 2.0])}
    settings = PlanSettings(
        Savings(), every_row=True, loss_type="dapo", window=1, overhead=0, forward_overhead=0, partial={"some"},
    )  # fmt: skip

    def plan(**entries):
        signals = {"some": token_counts, "every": token_counts}
        (planned,), _ = plan_updates([batch | entries], signals, lambda x: x, settings)
        assert planned[PLAN].credit_rows == [0, 1]
        return {signal: sorted(row for run in rows for row in run) for signal, rows in planned[PLAN].forwards.items()}

    assert plan() == {"some": [1], "every": [0, 1]}
    assert plan(**{HAS_CREDIT: torch.tensor([True, False])}) == {"some": [0], "every": [0, 1]}
    assert plan(advantages=torch.zeros(2)) == {"some": [], "every": [0, 1]}


@pytest.mark.parametrize("skips", [False, True])
def test_a_method_may_name_the_completions_itself(skips):
    """Those that have credit are kept, whatever their sequence advantage; without a token in the loss, none is."""
    batch = text_batch() | {"advantages": torch.tensor([0.0, 2.0]), HAS_CREDIT: torch.tensor([True, False])}
    settings = PlanSettings(
        Savings(skip_zero_advantage=skips), every_row=False, loss_type="grpo", window=1, overhead=0, forward_overhead=0
    )
    (planned,), metrics = plan_updates([batch], {"signal": token_counts}, lambda tensor: tensor, settings)
    names = [planned["names"][row] for row in planned[PLAN].credit_rows]
    assert names == ["a"]
    assert planned["names"] == (["a"] if skips else ["a", "b"])
    assert metrics["credit/skipped_fraction"] == 0.5
    (planned,), _ = plan_updates(
        [batch | {"completion_mask": torch.zeros(2, 4, dtype=torch.long)}],
        {"signal": token_counts}, lambda tensor: tensor, settings,
    )  # fmt: skip
    assert planned[PLAN].credit_rows == []
    assert not placeholder_row(batch)[HAS_CREDIT].any()


@pytest.mark.parametrize("reads", [[True, False], [False, False]])
def test_rows_that_a_signal_does_not_read_are_not_forwarded(reads):
    """The other signal's forwards stay as they are, as do the rows with credit; processes run equally many forwards."""
    settings = PlanSettings(
        Savings(), every_row=False, loss_type="dapo", window=1, overhead=0, forward_overhead=0, max_forwards=1
    )

    def lengths(batch):
        return token_counts(batch) * np.array(reads)[:, None]

    def plan(gather):
        signals = {"some": lengths, "every": token_counts}
        (planned,), _ = plan_updates([text_batch()], signals, gather, settings)
        return planned[PLAN]

    alone = plan(lambda tensor: tensor)
    assert alone.credit_rows == [0, 1]
    assert alone.forwards == {"some": [[0]] if reads[0] else [], "every": [[1, 0]]}

    def with_another(tensor):  # whose last two numbers are one forward of each signal
        other = tensor.clone()
        other[:, -2:] = 1
        return torch.cat([tensor, other])

    assert plan(with_another).forwards == {"some": [[0]] if reads[0] else [[]], "every": [[1, 0]]}


def test_every_method_is_covered():
    assert set(CREDIT) == set(methods_for("tokens")) - NEED_MORE
    assert CreditGRPOConfig.__dataclass_fields__["skip_zero_advantage"].default is None


def test_each_setting_of_a_plan_has_its_effect():
    """Overheads of micro-batches and of signals' forwards, padding, and the budget of what is kept."""
    lengths = [1, 1, 9, 9]
    batch = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones(4, 24, dtype=torch.long),
        "completion_mask": torch.tensor([[1] * n + [0] * (24 - n) for n in lengths]),
        "advantages": torch.tensor([1.0, -1.0, 2.0, -2.0]),
        "num_items_in_batch": torch.tensor(20),
    }
    base = {"savings": Savings(trim_padding=True), "every_row": False, "loss_type": "dapo", "window": 1, "overhead": 0}

    def plan(**settings):
        (planned,), _ = plan_updates(
            [batch], {"signal": token_counts}, lambda x: x, PlanSettings(**base | {"forward_overhead": 0} | settings)
        )
        return planned, planned[PLAN]

    assert sorted(map(len, plan()[1].forwards["signal"])) == [2, 2]  # short and long apart
    assert len(plan(forward_overhead=1000)[1].forwards["signal"]) == 1
    assert len(plan(overhead=1000)[1].forwards["signal"]) == 2
    assert len(plan(max_forwards=1)[1].forwards["signal"]) == 1
    assert plan()[0]["completion_ids"].size(1) == 9
    assert plan(pad_to_multiple_of=8)[0]["completion_ids"].size(1) == 16
    needed = 4 * 9 * 10  # rows, columns, bytes
    assert plan(kept_bytes_per_token=10, budget_bytes=needed)[1].keep
    assert not plan(kept_bytes_per_token=10, budget_bytes=needed - 1)[1].keep
    assert not plan(kept_bytes_per_token=0, budget_bytes=needed)[1].keep
