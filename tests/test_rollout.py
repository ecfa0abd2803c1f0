"""Dynamic sampling: what is drawn, replaced, kept and logged."""

import collections

import numpy as np
import pytest
from datasets import Dataset
from helpers import config, fixed_rollout, letter_reward, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_uniform import assert_same, run
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.rollout import KEPT, TOO_EASY, TOO_HARD, UNSCORED, PromptStream, judge_groups


NAN = float("nan")
CREDITS = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "!{prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.01},
}


# Which groups


@pytest.mark.parametrize(
    ("group", "expected", "settings_"),
    [
        ([[0], [1], [0], [1]], KEPT, {}),
        ([[0.7], [0.7], [0.7], [0.7]], TOO_EASY, {}),
        ([[0], [0], [0], [0]], TOO_HARD, {}),
        ([[-1], [-1], [-1], [-1]], TOO_HARD, {}),
        ([[NAN], [1], [1], [NAN]], TOO_EASY, {}),
        ([[NAN], [NAN], [NAN], [NAN]], UNSCORED, {}),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], TOO_EASY, {}),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], KEPT, {"every_function": True}),
        ([[0, 1], [0, 2], [0, 1], [0, 2]], TOO_HARD, {"column": 0}),
        ([[1, 1], [1, 2], [1, 1], [1, 2]], TOO_EASY, {"column": 0}),
        ([[1, 1], [0, 1], [1, 1], [1, 1]], KEPT, {"column": 0}),
        ([[1, 1], [0, 1], [1, 1], [1, 1]], TOO_EASY, {"column": 0, "bounds": (0.2, 0.75)}),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], KEPT, {"column": 0, "bounds": (0.2, 0.75)}),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], TOO_HARD, {"column": 0, "bounds": (0.25, 0.75)}),
        ([[NAN, 1], [NAN, 2], [NAN, 1], [NAN, 2]], UNSCORED, {"column": 0}),
        ([[NAN, 1], [1, 2], [0, 1], [NAN, 2]], KEPT, {"column": 0}),
    ],
)
def test_judging_one_group(group, expected, settings_):
    other = [[0.5] * len(group[0])] * 4  # what the neighbours do is nothing to it
    weights = np.ones(len(group[0]))
    assert judge_groups(np.array(other + group + other), weights, 4, **settings_)[1] == expected


def test_a_function_without_weight_does_not_decide():
    rewards = np.array([[1.0, 0.0], [1.0, 1.0]])
    for every_function in (False, True):
        assert judge_groups(rewards, np.array([1.0, 0.0]), 2, every_function=every_function) == [TOO_EASY]


# Which prompts


def trl_order(size, batch_size, shuffle, seed, passes):
    sampler = RepeatSampler(range(size), mini_repeat_count=1, batch_size=batch_size, shuffle=shuffle, seed=seed)
    return [index for _ in range(passes) for index in sampler]


def stream(size, batch_size=3, shuffle=True, seed=5, iterable=False):
    dataset = Dataset.from_dict({"prompt": [str(i) for i in range(size)]})
    if iterable:
        dataset = dataset.to_iterable_dataset()
    return PromptStream(dataset, batch_size=batch_size, shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_stream_is_trls_order(shuffle):
    ours = stream(11, shuffle=shuffle)
    expected = trl_order(11, 3, shuffle, 5, passes=4)
    assert [i for _ in range(12) for i in ours.draw(3)] == expected
    assert ours.passes == 4.0


@given(st.integers(3, 12), st.integers(1, 3), st.lists(st.integers(0, 5), max_size=12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_prompt_twice_in_a_pass_or_a_batch(size, batch_size, extra, seed):
    """Batches, each with some more prompts drawn for it."""
    ours = stream(size, batch_size, seed=seed)
    order = trl_order(size, batch_size, True, seed, passes=60)
    drawn = []
    for more in extra:
        batch = ours.draw(batch_size)
        batch += ours.draw(more, batch)
        assert len(set(batch)) == len(batch)
        assert len(batch) >= min(batch_size, size)
        drawn += batch
        # As often as in the passes begun, less what waits
        counts = collections.Counter(drawn)
        counts.update(ours.state_dict()["deferred"])
        assert counts == collections.Counter(order[: sum(counts.values())])


@pytest.mark.parametrize("iterable", [False, True])
def test_the_stream_goes_on_where_it_was(iterable):
    ours = stream(11, iterable=iterable)
    row = (lambda x: x["prompt"]) if iterable else (lambda x: x)
    tried = [0, 1, 2, 3, 4]
    for _ in range(7):
        other = stream(11, iterable=iterable)
        other.load_state_dict(ours.state_dict())
        assert other.state_dict() == ours.state_dict()
        expected = [[row(x) for x in other.draw(n, tried)] for n in (4, 3, 5)]
        assert [[row(x) for x in ours.draw(n, tried)] for n in (4, 3, 5)] == expected
        assert other.passes == ours.passes


def test_an_iterable_stream_is_trls_order(tiny_model, tmp_path):
    seen = {}
    for dynamic in (False, True):
        rows = []

        def reward(prompts, completions, rows=rows, **kwargs):
            rows.extend(prompts)
            return [float(i) for i in range(len(prompts))]

        data = prompts(11).to_iterable_dataset()
        trainer = make(tiny_model, tmp_path, data, reward, dynamic_sampling=dynamic, max_steps=9)
        trainer.train()
        seen[dynamic] = rows
    assert seen[True] == seen[False]
    assert len(set(seen[True])) > 4  # more than one pass was made


# Which completions


def make(model, path, data, reward, rollout_func=None, **overrides):
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        rollout_func=rollout_func,
        args=config(path, **{"dynamic_sampling": True, **overrides}),
        train_dataset=data,
    )


@pytest.mark.parametrize("credit", CREDITS)
def test_with_nothing_to_replace_nothing_changes(credit, tiny_model, tmp_path):
    common = {
        "credit": CREDITS[credit],
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "max_steps": 10,  # beyond the first pass
    }
    without = run(CreditGRPOTrainer, CreditGRPOConfig, tiny_model, tmp_path / "a", **common)
    ours = run(CreditGRPOTrainer, CreditGRPOConfig, tiny_model, tmp_path / "b", dynamic_sampling=True, **common)
    assert {log["dynamic_sampling/rounds"] for log in ours[0] if "dynamic_sampling/rounds" in log} == {1.0}
    stripped = [{k: v for k, v in log.items() if "dynamic_sampling" not in k} for log in ours[0]]
    assert_same((stripped, *ours[1:]), without)
    if credit == "uniform":
        del common["credit"]
        theirs = run(GRPOTrainer, GRPOConfig, tiny_model, tmp_path / "c", **common)
        assert_same((stripped, *ours[1:]), theirs)


class Judge:
    """A reward that decides by the prompt which groups are easy, hard or to be kept, and remembers what it saw."""

    __name__ = "judge"

    def __init__(self, easy=(), hard=()):
        self.easy, self.hard, self.calls = set(easy), set(hard), []

    def __call__(self, prompts, completions, completion_ids, answer, log_extra=None, log_metric=None, **kwargs):
        self.calls.append(list(zip(prompts, map(tuple, completion_ids), strict=True)))
        log_extra("answer", [f"{prompt}:{text}" for prompt, text in zip(prompts, answer, strict=True)])
        log_metric("called", 1.0)
        return [
            1.0 if prompt in self.easy else 0.0 if prompt in self.hard else float(i % 2)
            for i, prompt in enumerate(prompts)
        ]


def texts(data, indices):
    return [data[i]["prompt"] for i in indices]


@pytest.mark.parametrize("rollout_func", [None, fixed_rollout])
def test_groups_are_replaced_in_place(rollout_func, tiny_model, tmp_path):
    data = prompts(16)
    order = trl_order(16, 4, True, 3, passes=1)
    # Of the first four, one is easy and one hard; of the two drawn for them, one is hard
    judge = Judge(easy=texts(data, [order[1]]), hard=texts(data, [order[2], order[5]]))
    settings_ = {"per_device_train_batch_size": 16, "max_steps": 1, "log_completions": True}
    trainer = make(tiny_model, tmp_path, data, judge, rollout_func, **settings_)
    batches = []
    assign = trainer._assign_credit
    trainer._assign_credit = lambda batch, *args: (batches.append(dict(batch)), assign(batch, *args))
    trainer.train()

    assert [[p for p, _ in call][::4] for call in judge.calls] == [
        texts(data, order[:4]),
        texts(data, order[4:6]),
        texts(data, order[6:7]),
    ]
    log = trainer.state.log_history[0]
    final = texts(data, [order[0], order[4], order[6], order[3]])
    generated = {
        prompt: [ids for call in judge.calls for p, ids in call if p == prompt] for prompt in texts(data, order)
    }
    expected = {
        "rounds": 3,
        "prompts_drawn": 7,
        "kept": 4,
        "too_easy": 1,
        "too_hard": 2,
        "unscored": 0,
        "surplus": 0,
        "left": 0,
        "discarded_tokens": sum(len(ids) for i in (1, 2, 5) for ids in generated[data[order[i]]["prompt"]]),
        "drawn_reward": (4 * 0.5 + 1 + 0 + 0) / 7,
        "passes": 7 / 16,
    }
    assert {k.split("/")[1]: v for k, v in log.items() if "dynamic_sampling/" in k} == pytest.approx(expected)
    lengths = [len(ids) for prompt in final for ids in generated[prompt]]
    assert log["completions/mean_length"] == pytest.approx(np.mean(lengths))
    assert log["completions/min_length"] == min(lengths)
    assert log["reward"] == 0.5
    assert log["frac_reward_zero_std"] == 0.0
    assert log["called"] == 1.0
    tokenizer = trainer.processing_class
    tokens = sum(len(tokenizer(p)["input_ids"]) + len(ids) for call in judge.calls for p, ids in call)
    assert log["num_tokens"] == tokens  # of everything that was generated

    # The batch of the update
    (batch,) = batches
    rows = {
        (tuple(p[m.bool()].tolist()), tuple(c[n.bool()].tolist()))
        for p, m, c, n in zip(
            *(batch[f"{k}_{x}"] for k in ("prompt", "completion") for x in ("ids", "mask")), strict=True
        )
    }
    assert rows == {(tuple(tokenizer(p)["input_ids"]), ids) for p in final for ids in generated[p]}
    assert batch["num_items_in_batch"] == sum(lengths)
    assert batch["completion_ids"].size(1) == max(lengths)

    # The completions table
    assert list(trainer._logs["prompt"]) == [p for p in final for _ in range(4)]
    assert list(trainer._logs["completion"]) == [
        tokenizer.decode(ids, skip_special_tokens=True) for p in final for ids in generated[p]
    ]
    assert [x.split(":")[0] for x in trainer._logs["extra"]["answer"]] == [p for p in final for _ in range(4)]
    assert list(trainer._logs["rewards"]["judge"]) == [0.0, 1.0] * 8


def test_what_is_left_when_the_rounds_are_used_up(tiny_model, tmp_path):
    data = prompts(16)
    hard = Judge(hard=data["prompt"])
    trainer = make(
        tiny_model, tmp_path, data, hard, per_device_train_batch_size=16, max_steps=1, dynamic_sampling_max_rounds=3
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert [len(call) for call in hard.calls] == [16, 16, 16]
    assert log["dynamic_sampling/rounds"] == 3
    assert log["dynamic_sampling/left"] == 4
    assert log["dynamic_sampling/kept"] == 0
    assert log["dynamic_sampling/too_hard"] == 12
    assert log["dynamic_sampling/discarded_tokens"] == sum(len(ids) for call in hard.calls[1:] for _, ids in call)


def test_no_more_rounds_than_prompts(tiny_model, tmp_path):
    data = prompts(4)
    hard = Judge(hard=data["prompt"])
    trainer = make(tiny_model, tmp_path, data, hard, per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    assert [len(call) for call in hard.calls] == [8, 8] * 2  # 2 prompts, then the other 2, in each step
    assert [log["dynamic_sampling/passes"] for log in trainer.state.log_history[:2]] == [1.0, 2.0]


def test_a_chosen_reward_decides(tiny_model, tmp_path):
    data = prompts(16)
    order = trl_order(16, 2, True, 3, passes=1)
    judge = Judge(easy=texts(data, [order[0]]))
    trainer = make(
        tiny_model,
        tmp_path,
        data,
        [judge, letter_reward],  # the sum varies in every group
        max_steps=1,
        dynamic_sampling_reward="judge",
        dynamic_sampling_range=[0.4, 0.6],
    )
    trainer.train()
    assert [len(call) for call in judge.calls] == [8, 4]
    assert trainer.state.log_history[0]["rewards/judge/mean"] == 0.5


def test_not_in_evaluation(tiny_model, tmp_path):
    data = prompts(8)
    judge = Judge(hard=data["prompt"])
    trainer = make(tiny_model, tmp_path, data, judge, per_device_eval_batch_size=8)
    trainer.evaluate(data)
    assert [len(call) for call in judge.calls] == [8] * 4


@pytest.mark.parametrize("credit", ["gcpo", "dgpo"])
def test_credit_reads_the_final_batch(credit, tiny_model, tmp_path):
    """A negative prompt of the replaced group's row would be another prompt's."""
    data = prompts(16)
    data = data.add_column("negative_prompt", [f"{p}!" for p in data["prompt"]])
    order = trl_order(16, 2, True, 3, passes=1)
    judge = Judge(hard=texts(data, [order[0]]))
    spec = {"method": "gcpo", "negative_prompt": "column"} if credit == "gcpo" else CREDITS[credit]
    trainer = make(tiny_model, tmp_path, data, judge, credit=spec, max_steps=1)
    batches = []
    plan = trainer._planned
    trainer._planned = lambda batch, *args: (batches.extend(batch), plan(batch, *args))[1]
    trainer.train()
    tokenizer = trainer.processing_class
    (batch,) = batches
    key = next((key.removesuffix("/ids") for key in batch if key.endswith("/ids")), None)
    assert (key is not None) == (credit == "gcpo")
    for i, ids in enumerate(batch["prompt_ids"]):
        prompt = tokenizer.decode(ids[batch["prompt_mask"][i].bool()])
        assert prompt in texts(data, [order[1], order[2]])
        if key:
            negative = tokenizer.decode(batch[f"{key}/ids"][i][batch[f"{key}/mask"][i].bool()])
            assert negative == f"{prompt}!"
