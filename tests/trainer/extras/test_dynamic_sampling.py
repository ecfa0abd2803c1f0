"""Dynamic sampling in training."""

import numpy as np
import pytest
import qwen_vision
import torch
from helpers import config, fixed_rollout, letter_reward, prompts
from support.rollout import Place, make, trl_order
from support.runs import assert_same, run
from support.tools import chats, tool_calling_model
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.extras.effect import NothingTrainedError


CREDITS = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "!{prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.01},
}


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
    trainer.credit_observers.append(lambda batch, result: batches.append(dict(batch)))
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
    assert log["num_tokens"] == trainer.state.num_input_tokens_seen == tokens  # of everything that was generated

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


def test_what_is_left_when_the_rounds_are_used_up(tiny_model, tmp_path, caplog):
    data = prompts(16)
    hard = Judge(hard=data["prompt"])
    settings_ = {"per_device_train_batch_size": 16, "max_steps": 1, "dynamic_sampling_max_rounds": 3}
    trainer = make(tiny_model, tmp_path, data, hard, fixed_rollout, **settings_)
    with pytest.raises(NothingTrainedError, match="none of the 16 completions has an advantage"):
        trainer.train()
    log = trainer.state.log_history[0]
    assert [len(call) for call in hard.calls] == [16, 16, 16]
    assert (
        "drew 12 prompts in 3 rounds, and no group of them teaches anything: 0 were too easy and 12 too" in caplog.text
    )
    assert log["dynamic_sampling/rounds"] == 3
    assert log["dynamic_sampling/left"] == 4
    assert log["dynamic_sampling/kept"] == 0
    assert log["dynamic_sampling/too_hard"] == 12
    assert log["dynamic_sampling/discarded_tokens"] == sum(len(ids) for call in hard.calls[1:] for _, ids in call)
    assert log["completions/mean_length"] == np.mean([len(ids) for _, ids in hard.calls[0]])


def test_no_more_rounds_than_prompts(tiny_model, tmp_path):
    data = prompts(4)
    hard = Judge(hard=data["prompt"])
    trainer = make(tiny_model, tmp_path, data, hard, per_device_train_batch_size=8, max_steps=2)
    with pytest.raises(NothingTrainedError):
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
    settings_ = {"max_steps": 1, "per_device_eval_batch_size": 8}
    trainer = make(tiny_model, tmp_path, data, judge, **settings_)
    with pytest.raises(NothingTrainedError):
        trainer.train()
    judge.calls.clear()
    trainer.evaluate(data)
    assert [len(call) for call in judge.calls] == [8] * 4
    assert {prompt for call in judge.calls for prompt, _ in call} == set(data["prompt"])


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


# TRL's other ways to make a batch


def by_prompt(hard):
    """Groups of the prompts that hold one of the texts are hard."""

    def reward(prompts, completions, **kwargs):
        return [0.0 if any(text in str(p) for text in hard) else float(i % 2) for i, p in enumerate(prompts)]

    return reward


def recorded(trainer):
    """TRL's generation batches, before they are cut into micro-batches."""
    batches = []
    generate = trainer._generate_and_score_completions

    def record(inputs):
        batch = generate(inputs)
        batches.append((list(inputs), {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}))
        return batch

    trainer._generate_and_score_completions = record
    return batches


@pytest.mark.parametrize("credit", ["uniform", {"method": "gcpo", "negative_prompt": "blank_image"}, "dgpo"], ids=str)
def test_images_are_those_of_the_final_batch(credit, tmp_path):
    model, processor = qwen_vision.tiny_model()
    data = qwen_vision.make_dataset()
    order = trl_order(8, 2, True, 3, passes=1)
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=by_prompt([f"see {order[0]}?"]),
        args=config(tmp_path, credit=credit, dynamic_sampling=True, max_steps=2, num_iterations=2),
        train_dataset=data,
    )
    batches = recorded(trainer)
    trainer.train()
    ((inputs, batch),) = batches
    kept = [order[2]] * 4 + [order[1]] * 4
    assert [row["prompt"][0]["content"] for row in inputs] == [f"see {i}?" for i in kept]
    assert batch["num_images"] == [len(data[i]["images"]) for i in kept]
    expected = processor.image_processor(
        images=[image for i in kept for image in data[i]["images"]], return_tensors="pt"
    )
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["image_grid_thw"], expected["image_grid_thw"])
    tokens = (batch["prompt_ids"] == model.config.image_token_id).sum(-1)
    per_image = expected["image_grid_thw"].prod(-1) // 4
    assert tokens.tolist() == [part.sum().item() for part in torch.split(per_image, batch["num_images"])]


def test_text_does_not_take_the_place_of_images(tmp_path):
    """TRL takes a batch's images from its rows when there are any: a group with images is replaced by one with images."""
    model, processor = qwen_vision.tiny_model()
    data = qwen_vision.make_dataset()
    order = trl_order(8, 2, True, 3, passes=1)
    hard, text = order[0], order[2]  # the first that is drawn in its place has no image
    data = data.map(
        lambda row, i: {"images": [] if i == text else row["images"]}, with_indices=True, features=data.features
    )
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=by_prompt([f"see {hard}?"]),
        args=config(tmp_path, dynamic_sampling=True, max_steps=1),
        train_dataset=data,
    )
    batches = recorded(trainer)
    trainer.train()
    assert [row["prompt"][0]["content"] for row in batches[0][0][::4]] == [f"see {i}?" for i in (order[3], order[1])]
    log = trainer.state.log_history[0]
    assert (log["dynamic_sampling/surplus"], log["dynamic_sampling/rounds"]) == (1, 3)


class Other(Place):
    made = 0

    def reset(self, answer, **kwargs) -> str:
        self.answer = answer
        return f"elsewhere {answer}"


def test_environments_are_reset_with_the_fresh_rows(tmp_path):
    model, tokenizer = tool_calling_model(tmp_path / "model")
    rows = chats()
    rows = rows.add_column("environment", ["place" if i % 2 else "other" for i in range(len(rows))])
    order = trl_order(16, 2, True, 3, passes=1)
    answers = []

    def reward(prompts, completions, environments, **kwargs):
        answers.append([environment.answer for environment in environments])
        return by_prompt([rows[order[0]]["prompt"][0]["content"]])(prompts, completions)

    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        environment_factory={"place": Place, "other": Other},
        args=config(tmp_path, dynamic_sampling=True, max_steps=1, credit="gcpo"),
        train_dataset=rows,
    )
    batches = recorded(trainer)
    trainer.train()
    ((inputs, batch),) = batches
    assert [row["answer"] for row in inputs[::4]] == [rows[i]["answer"] for i in (order[2], order[1])]
    assert answers == [
        [rows[i]["answer"] for i in order[:2] for _ in range(4)],
        [rows[order[2]]["answer"]] * 4,
    ]
    for i, row in enumerate(inputs):
        text = tokenizer.decode(batch["prompt_ids"][i][batch["prompt_mask"][i].bool()])
        place = "at" if row["environment"] == "place" else "elsewhere"
        assert f"{row['prompt'][0]['content']}{place} {row['answer']}<|im_end|>" in text
    assert trainer._batch_environments == [row["environment"] for row in inputs]
    assert Place.made + Other.made <= 2 + 8 + 4  # probed, and then as many as work at the same time
    assert trainer.state.log_history[0]["tools/call_frequency"] == 0


class FakeVLLM:
    """As TRL's wrapper of vLLM answers: completions by the prompt, with the sampler's log-probs."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler):
        assert len(prompts) % num_generations == 0
        assert all(prompt == prompts[i // num_generations * num_generations] for i, prompt in enumerate(prompts))
        self.calls.append(len(prompts))
        ids = [
            [10 + (sum(prompt) + i) % 20] * (1 + i % 5) + [self.tokenizer.eos_token_id]
            for i, prompt in enumerate(prompts)
        ]
        return prompts, ids, [[[-0.1 * token] for token in row] for row in ids], None


def test_vllm(tiny_model, tmp_path):
    data = prompts(16)
    order = trl_order(16, 2, True, 3, passes=1)
    reward = Judge(hard=texts(data, [order[0]]))
    trainer = make(tiny_model, tmp_path, data, reward, max_steps=1, credit=CREDITS["gcpo"])
    trainer.use_vllm, trainer.vllm_generation = True, FakeVLLM(trainer.processing_class)
    trainer._last_loaded_step = -1
    batches = recorded(trainer)
    trainer.train()
    ((_, batch),) = batches
    assert trainer.vllm_generation.calls == [8, 4]
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["sampling_per_token_logps"][mask], -0.1 * batch["completion_ids"][mask].float())
    assert batch["importance_sampling_ratio"].shape[0] == 8
    assert batch["old_per_token_logps"].shape == batch["completion_ids"].shape


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_several_rewards(aggregation, tiny_model, tmp_path):
    """Two that cancel in the sum teach nothing, unless they are normalised one by one."""

    def up(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    def down(completions, **kwargs):
        return [1.0 - i % 2 for i in range(len(completions))]

    trainer = make(tiny_model, tmp_path, prompts(4), [up, down], max_steps=1, multi_objective_aggregation=aggregation)
    with pytest.raises(NothingTrainedError):  # normalised, these two still cancel in the advantage
        trainer.train()
    kept = trainer.state.log_history[0]["dynamic_sampling/kept"]
    assert kept == (0 if aggregation == "sum_then_normalize" else 2)


def test_a_dataloader_of_the_users_own(tiny_model, tmp_path):
    class Own(CreditGRPOTrainer):
        def get_train_dataloader(self):
            return GRPOTrainer.get_train_dataloader(self)

    trainer = Own(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, dynamic_sampling=True),
        train_dataset=prompts(4),
    )
    with pytest.raises(ValueError, match="Own overrides `get_train_dataloader` without calling"):
        trainer.train()


def test_rewards_that_a_subclass_makes(tiny_model, tmp_path):
    """They decide, once for each completion."""
    calls = []

    class Shaped(CreditGRPOTrainer):
        def _calculate_rewards(self, inputs, prompts, *args):
            rewards = super()._calculate_rewards(inputs, prompts, *args)
            calls.append(len(rewards))
            return rewards + torch.arange(len(rewards))[:, None] % 4

    trainer = Shaped(
        model=tiny_model, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(tmp_path, dynamic_sampling=True, max_steps=2), train_dataset=prompts(8),
    )  # fmt: skip
    trainer.train()
    assert calls == [8, 8]
    log = trainer.state.log_history[0]
    assert (log["dynamic_sampling/kept"], log["reward"]) == (2, 1.5)


def test_two_rewards_that_log_the_same_column(tiny_model, tmp_path):
    data = prompts(16)
    order = trl_order(16, 2, True, 3, passes=1)
    rewards = [Judge(hard=texts(data, [order[0]])), Judge(hard=texts(data, [order[0]]))]
    trainer = make(tiny_model, tmp_path, data, rewards, max_steps=1, log_completions=True)
    trainer.train()
    seen = [text.split(":")[0] for text in trainer._logs["extra"]["answer"]]
    assert seen == list(trainer._logs["prompt"]) == [p for p in texts(data, [order[2], order[1]]) for _ in range(4)]


def test_a_column_that_is_too_short(tiny_model, tmp_path):
    def reward(completions, log_extra, **kwargs):
        log_extra("half", completions[::2])
        return [float(i) for i in range(len(completions))]

    with pytest.raises(ValueError, match="logged 4 values in the column 'half' for 8 completions"):
        make(tiny_model, tmp_path, prompts(8), reward, max_steps=1).train()
