"""Continuations of completions in training: what is sampled, what it is worth, and what it leaves alone."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import qwen_vision
import torch
from datasets import Dataset, IterableDataset
from helpers import config, fixed_rollout, letter_reward, prompts
from support.resumed import assert_same_run, outcome
from support.resumed import make as resumable
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import (
    CreditGRPOTrainer,
    CreditMethod,
    ImageTokenGRPOConfig,
    ImageTokenGRPOTrainer,
    Paper,
    build_credit,
)
from trl_credit.inspection.scoring import CreditScorer
from trl_credit.methods.rollout import Continuations
from trl_credit.toy.arithmetic import correct_answer, make_dataset
from trl_credit.trainer.continuations import _own_random_numbers, _Sampler, different_beginnings, planned_calls
from trl_credit.values.bookkeeping import canonical_rest


TOY = str(Path(__import__("trl_credit.toy", fromlist=["toy"]).__file__).parent / "model")


@dataclass(frozen=True)
class Asking(CreditMethod):
    """Asks for values and keeps them; no token is credited by them."""

    every: int | str = 1
    count: int = 4

    name = "asking"
    paper = Paper(title="none", id="none", citation="none none")
    reweights = False
    own_advantages = True
    seen = []  # of all instances

    def continuations(self):
        return (Continuations(self.every, self.count),)

    def rollout_stage(self, rollout):
        self.seen.append((rollout, rollout.values.get(self.continuations()[0])))
        return {}

    def token_advantages(self, advantages, weights, inputs):
        return advantages.unsqueeze(1).expand_as(inputs.mask)


def asking(**parameters):
    return {"method": f"{__name__}.Asking", **parameters}


@pytest.fixture(autouse=True)
def nothing_seen():
    Asking.seen.clear()


def make(model, path, reward=letter_reward, data=None, **overrides):
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **{"credit": asking(), "max_steps": 1, **overrides}),
        train_dataset=prompts() if data is None else data,
        eval_dataset=prompts(2, seed=1),
    )


def trained(*args, **overrides):
    trainer = make(*args, **overrides)
    trainer.train()
    return trainer


def beginnings(rollout, found):
    """Row, tokens so far and value, for each segment of each completion, and for its end."""
    for row, mask in enumerate(rollout.mask):
        ids, segments = rollout.token_ids[row][mask].tolist(), found.segments[row][mask].tolist()
        for place, segment in enumerate(segments):
            if place == 0 or segment != segments[place - 1]:
                yield row, ids[:place], found.values[row, segment].item()
        if ids:
            yield row, ids, found.values[row, segments[-1] + 1].item()


# What a value is


def id_reward(completion_ids, **kwargs):
    return [sum(ids) % 5 / 5 for ids in completion_ids]


def exact_value(model, start, written, left, eos, temperature, reward):
    """The expected reward of all continuations, by enumeration."""
    probabilities = {(): 1.0}
    total = 0.0
    for _ in range(left):
        keys = list(probabilities)
        batch = torch.tensor([[*start, *written, *key] for key in keys])
        nexts = torch.softmax(model(batch).logits[:, -1].double() / temperature, -1)
        grown = {}
        for key, row in zip(keys, nexts.tolist(), strict=True):
            for token, p in enumerate(row):
                done = token == eos
                if done:
                    total += probabilities[key] * p * reward([[*written, *key, token]])[0]
                else:
                    grown[*key, token] = probabilities[key] * p
        probabilities = grown
    return total + sum(p * reward([[*written, *key]])[0] for key, p in probabilities.items())


def test_values_are_the_expected_rewards_of_what_may_follow(tiny_model, tmp_path):
    """As many tokens as the completion had left, at the rollout's temperature, and the reward of the whole text."""
    count, temperature = 600, 0.8
    trainer = make(
        tiny_model,
        tmp_path,
        id_reward,
        credit=asking(count=count),
        max_completion_length=2,
        temperature=temperature,
        learning_rate=0.0,
    )
    trainer.train()
    ((rollout, found),) = Asking.seen
    model, eos = trainer.model.double().eval(), trainer.tokenizer.eos_token_id
    first = trainer._logs["prompt"]
    compared, errors = {}, []
    with torch.no_grad():
        for row, written, value in beginnings(rollout, found):
            key = (first[row], tuple(written))
            if len(written) == int(rollout.mask[row].sum()):
                assert value == pytest.approx(id_reward([written])[0])
            elif key in compared:
                assert value == compared[key]
            else:
                compared[key] = value
                start = trainer.tokenizer(first[row])["input_ids"]
                expected = exact_value(model, start, written, 2 - len(written), eos, temperature, id_reward)
                errors.append((value - expected) / (0.35 / math.sqrt(count)))  # rewards deviate by at most that
    errors = torch.tensor(errors)
    assert len(errors) >= 5
    assert errors.abs().max() < 4
    assert 0.3 < errors.square().mean().sqrt() < 1.5


@pytest.mark.parametrize(("style", "every"), [pytest.param("plain", 5, marks=pytest.mark.nightly), ("letters", "step")])
def test_values_agree_with_bookkeeping(style, every, tmp_path):
    count = 100
    trained(
        TOY,
        tmp_path,
        correct_answer,
        make_dataset(20, style=style),
        credit=asking(every=every, count=count),
        max_completion_length=48,
        learning_rate=0.0,
    )
    ((rollout, found),) = Asking.seen
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    model = AutoModelForCausalLM.from_pretrained(TOY).double().eval()
    data = make_dataset(20, style=style)["prompt"]
    errors, wrong = {}, []
    texts = {row: tokenizer.decode(ids) for row, ids, _ in beginnings(rollout, found)}
    with torch.no_grad():
        for row, written, value in beginnings(rollout, found):
            if len(written) == int(rollout.mask[row].sum()):
                continue
            text = tokenizer.decode(written)
            prompt = next(p for p in data if texts[row].replace("<eos>", "").strip() and _is_of(p, texts[row], style))
            rest = canonical_rest(prompt, text)
            if rest is None:
                wrong.append(value)
                continue
            start, ids = tokenizer(prompt)["input_ids"], [*tokenizer(rest)["input_ids"], tokenizer.eos_token_id]
            logps = torch.log_softmax(model(torch.tensor([[*start, *written, *ids]])).logits[0], -1)
            where = len(start) + len(written) - 1
            counted = [i for i, token in enumerate(ids) if style == "plain" or not tokenizer.decode(token).isalpha()]
            exact = math.exp(sum(logps[where + i, ids[i]].item() for i in counted))
            errors[prompt, text] = (value - exact) / math.sqrt(max(exact * (1 - exact), 0.01) / count)
    errors = torch.tensor(list(errors.values()))
    assert len(errors) >= 8
    assert errors.abs().max() < 4
    assert max(wrong, default=0) <= 0.08  # errors that cancel each other are rare


def _is_of(prompt, text, style):
    first = prompt.lstrip("~")[:5]  # the first two terms begin the first step
    return text.lstrip("abcdefghijklmnopqrstuvwxyz").startswith(first)


def test_equal_beginnings_of_a_group_share_their_continuations(tiny_model, tmp_path):
    trained(tiny_model, tmp_path, credit=asking(every=3))
    ((rollout, found),) = Asking.seen
    values = defaultdict(set)
    for row, written, value in beginnings(rollout, found):
        if len(written) < int(rollout.mask[row].sum()):
            values[int(rollout.groups[row]), tuple(written)].add(value)
    assert all(len(shared) == 1 for shared in values.values())
    assert {(group, ()) for group in (0, 1)} < set(values)
    for row, reward in enumerate(rollout.rewards.tolist()):
        count = int(found.segments[row][rollout.mask[row]].max()) + 1
        assert count == -(-int(rollout.mask[row].sum()) // 3)
        assert found.values[row, count].item() == reward
        assert found.values[row, count + 1 :].isnan().all()


# With what it is rewarded


def test_reward_functions_get_the_rows_of_the_data_and_the_whole_completion(tiny_model, tmp_path):
    data = Dataset.from_list([{"prompt": row["prompt"], "answer": row["prompt"] + "!"} for row in prompts()])
    calls = []

    def reward(prompts, completions, completion_ids, answer, trainer_state, **kwargs):
        calls.append(len(prompts))
        assert [prompt + "!" for prompt in prompts] == answer
        for text, ids in zip(completions, completion_ids, strict=True):
            assert 1 <= len(ids) <= 12
            assert text == tokenizer.decode(ids, skip_special_tokens=True)
        return letter_reward(completions)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trained(tiny_model, tmp_path, reward, data, credit=asking(every=4, count=3))
    ((rollout, found),) = Asking.seen
    different = {
        (int(rollout.groups[row]), tuple(written))
        for row, written, _ in beginnings(rollout, found)
        if len(written) < int(rollout.mask[row].sum())
    }
    assert calls[0] == 8
    assert max(calls) == 8  # no more at a time than a rollout has
    assert sum(calls[1:]) == 3 * len(different)


def test_conversations(tiny_model, tmp_path):
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in prompts()]
    )
    roles = []

    def reward(completions, **kwargs):
        roles.extend(completion[0]["role"] for completion in completions)
        return letter_reward(completions)

    trained(tiny_model, tmp_path, reward, data, credit=asking(every=6))
    assert len(roles) > 8
    assert set(roles) == {"assistant"}
    assert not Asking.seen[0][1].values[:, 0].isnan().any()


def test_several_rewards_are_weighted_and_none_leaves_a_continuation_out(tiny_model, tmp_path):
    seen = Counter()

    def some(completion_ids, **kwargs):
        seen["calls"] += 1
        rewards = [1.0 + place % 2 if seen["calls"] == 1 else 1.0 for place in range(len(completion_ids))]
        return [None if ids[0] % 4 == 1 else reward for ids, reward in zip(completion_ids, rewards, strict=True)]

    def none(completion_ids, **kwargs):
        return [None] * len(completion_ids)

    trainer = trained(
        tiny_model,
        tmp_path,
        [some, none],
        credit=asking(every=100),
        reward_weights=[0.5, 3.0],
        per_device_train_batch_size=16,
    )
    ((rollout, found),) = Asking.seen
    known = ~rollout.rewards.isnan()
    assert known.any()
    assert not known.all()
    assert rollout.rewards[known].unique().tolist() == [0.5, 1.0]
    assert (found.values[known, 0] == 0.5).all()  # not pulled to 0 by those without a reward
    assert found.values[~known].isnan().all()
    assert 0 < trainer.state.log_history[0]["credit/unrewarded_continuations"] < 16


def test_a_completion_is_neutral_and_counted_if_no_continuation_has_a_reward(tiny_model, tmp_path):
    seen = Counter()

    def first_only(completion_ids, **kwargs):
        seen["calls"] += 1
        rewards = [float(i % 2) for i in range(len(completion_ids))]
        return rewards if seen["calls"] == 1 else [None] * len(completion_ids)

    trainer = make(tiny_model, tmp_path, first_only, credit={"method": "vine", "every": 3, "count": 2})
    updates = []
    trainer.credit_observers.append(lambda batch, result: updates.append((batch, result)))
    trainer.train()
    ((_, result),) = updates
    mask = result.inputs.mask
    lengths = mask.sum(-1)
    long = lengths > 3  # with more than one segment, so that the last one is known at one end only
    assert long.any()
    assert torch.equal(
        result.token_advantages[mask], torch.where(mask, result.inputs.advantages.unsqueeze(1), 0.0)[mask]
    )
    assert trainer.state.log_history[0]["credit/nonfinite_tokens"] == lengths.sum()


def test_masked_completions_are_not_continued(tiny_model, tmp_path):
    trainer = trained(
        tiny_model,
        tmp_path,
        mask_truncated_completions=True,
        max_completion_length=6,
        credit=asking(every=2),
        per_device_train_batch_size=16,
    )
    ((rollout, found),) = Asking.seen
    there = rollout.mask.any(-1)
    assert there.any()
    assert not there.all()
    assert found.values[~there].isnan().all()
    assert (found.values[there, 0] >= 0).all()
    assert trainer.state.log_history[0]["credit/nonfinite_tokens"] == 0


# What it leaves alone


def test_rollouts_and_metrics_are_those_of_a_run_without_continuations(tiny_model, tmp_path):
    def reward(completions, log_extra, log_metric, **kwargs):
        log_extra("column", ["x"] * len(completions))
        log_metric("rate", sum(letter_reward(completions)))
        return letter_reward(completions)

    logged, completions = {}, {}
    for name, credit in {"uniform": "uniform", "asking": asking(every=4)}.items():
        trainer = make(
            tiny_model, tmp_path / name, reward, credit=credit, learning_rate=0.0, max_steps=3, log_completions=True
        )
        seen = completions[name] = []
        score = trainer._generate_and_score_completions

        def watched(inputs, score=score, seen=seen):
            batch = score(inputs)
            seen.append((batch["completion_ids"].tolist(), batch["advantages"].tolist()))
            return batch

        trainer._generate_and_score_completions = watched
        trainer.train()
        logged[name] = trainer.state.log_history
        assert list(trainer._logs["extra"]["column"]) == ["x"] * 8
    assert completions["uniform"] == completions["asking"]
    for plain, ours in zip(logged["uniform"], logged["asking"], strict=True):
        own = {key for key in ours if key.startswith("credit/")}
        for key in set(plain) | set(ours) - own:
            if key.startswith(("completions/", "reward", "rate", "entropy", "loss", "frac")):
                assert ours[key] == plain[key], key
        if "num_tokens" in ours:
            assert ours["num_tokens"] > 2 * plain["num_tokens"]


def test_the_price_is_logged(tiny_model, tmp_path):
    counted = []

    def reward(completion_ids, **kwargs):
        counted.append([len(ids) for ids in completion_ids])
        return [float(sum(ids) % 2) for ids in completion_ids]

    trainer = trained(tiny_model, tmp_path, reward, credit=asking(every=5, count=3))
    ((rollout, found),) = Asking.seen
    log = trainer.state.log_history[0]
    starts = {}
    for row, written, _ in beginnings(rollout, found):
        if len(written) < int(rollout.mask[row].sum()):
            starts[int(rollout.groups[row]), tuple(written)] = len(written)
    assert log["credit/continuations"] == 3 * len(starts) / 8
    tokens = sum(map(sum, counted[1:])) - 3 * sum(starts.values())
    assert log["credit/continuation_tokens"] == pytest.approx(tokens / sum(counted[0]))
    assert 0 < log["credit/continuation_seconds"] < log["step_time"]
    assert log["credit/unrewarded_continuations"] == 0


@pytest.mark.parametrize(("every", "steps"), [(12, 1), (4, 3), (3, 4)])
def test_the_price_is_that_of_the_formula(every, steps, tiny_model, tmp_path):
    """In docs/scaling.md, for completions without a common beginning and continuations that use what was left."""
    count, size = 3, 4

    def generate(prompt_ids, images, fields, num_generations):
        return [[10 + place % 40] * 12 for place in range(len(prompt_ids))], None

    def reward(completions, **kwargs):
        return [float(place % 2) for place in range(len(completions))]

    trainer = make(tiny_model, tmp_path, reward, credit=asking(every=every, count=count), num_generations=size)
    trainer._generate_single_turn = generate
    trainer.train()
    found = trainer.state.log_history[0]["credit/continuation_tokens"]
    assert found == pytest.approx(count * ((steps - 1) / 2 + 1 / size))


@pytest.mark.parametrize(("credit", "name"), [("vine", "credit"), (["vine", "forking"], "credit/vine")])
def test_in_evaluation_nothing_is_continued(credit, name, tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, credit=credit, per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    assert not any("continuation" in key for key in metrics)
    assert metrics["eval_credit/nonfinite_tokens"] == 0
    assert metrics[f"eval_{name}/advantage_change"] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_resumed_run_is_the_same(count, tiny_model, tmp_path):
    settings = {"credit": {"method": "vine", "every": 4, "count": count}, "max_steps": 7}
    whole = resumable(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    for stop in (2, 4):  # within a generation batch and between two
        again = resumable(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(again), outcome(whole), stop)


def test_each_generation_batch_has_a_seed_of_its_own(tiny_model, tmp_path):
    """So that continuations do not draw what the next rollout draws, nor what other continuations drew."""
    trainer = make(tiny_model, tmp_path, max_steps=3)
    generate, seeds = trainer._generate_single_turn, []

    def watched(prompt_ids, images, fields, num_generations):
        seeds.append((trainer.state.global_step, num_generations == 1, torch.initial_seed()))
        return generate(prompt_ids, images, fields, num_generations)

    trainer._generate_single_turn = watched
    trainer.train()
    assert len({seed for _, again, seed in seeds if not again}) == 1
    assert len({(step, seed) for step, again, seed in seeds if again}) == 3
    assert len({seed for _, _, seed in seeds}) == 1 + 3


def test_groups_of_equal_rewards_are_trained(tiny_model, tmp_path):
    """Whose sequence advantages are 0."""
    seen = Counter()

    def reward(completion_ids, **kwargs):
        seen["calls"] += 1
        return [1.0 if seen["calls"] == 1 else float(sum(ids) % 2) for ids in completion_ids]

    trainer = trained(tiny_model, tmp_path, reward, credit={"method": "vine", "every": 4})
    log = trainer.state.log_history[0]
    assert log["frac_reward_zero_std"] == 1
    assert log["credit/skipped_fraction"] == 0
    assert log["grad_norm"] > 0


def test_dynamic_sampling(tiny_model, tmp_path):
    """The final batch is continued, with the rows that took the place of others."""
    data = Dataset.from_list([{"prompt": row["prompt"], "answer": row["prompt"] + "!"} for row in prompts()])

    def reward(prompts, completion_ids, answer, **kwargs):
        assert [prompt + "!" for prompt in prompts] == answer
        return [1.0 if len(p) % 2 else sum(ids) % 7 / 7 for p, ids in zip(prompts, completion_ids, strict=True)]

    trainer = trained(tiny_model, tmp_path, reward, data, credit=asking(every=5), dynamic_sampling=True, max_steps=3)
    replaced = [entry["dynamic_sampling/prompts_drawn"] for entry in trainer.state.log_history[:-1]]
    assert max(replaced) > 2
    for rollout, found in Asking.seen:
        assert torch.isfinite(found.values[:, 0]).all()
        assert not rollout.groups_with_signal.logical_not().all()


# With other engines


class FakeVLLM:
    """As TRL's wrapper of vLLM answers: each prompt's sum as often as there is room, and the end."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.max_completion_length = tokenizer, [], 12

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler):
        assert images is None
        self.calls.append((prompts, num_generations, self.max_completion_length))
        ids = [[10 + sum(prompt) % 20] * self.max_completion_length for prompt in prompts]
        return prompts, ids, [[[-0.1] for _ in row] for row in ids], None


def test_vllm_continues_in_calls_of_similar_budgets(tiny_model, tmp_path):
    def reward(completions, **kwargs):
        return [float(place % 2) for place in range(len(completions))]

    trainer = make(tiny_model, tmp_path, reward, credit=asking(every=5, count=3))
    trainer.use_vllm, trainer.vllm_generation = True, FakeVLLM(trainer.processing_class)
    trainer._last_loaded_step = -1
    trainer.train()
    first, *again = trainer.vllm_generation.calls
    assert first[1:] == (4, 12)
    # From 0, 5 and 10 of 12 tokens: with 12 and 7 left in one call, with 2 in the other
    assert [call[1:] for call in again] == [(1, 12), (1, 2)]
    ((rollout, found),) = Asking.seen
    starts = {tuple(prompt): rollout.token_ids[4 * i].tolist() for i, prompt in enumerate(first[0][::4])}
    for (asked, *_), places in zip(again, ((0, 5), (10,)), strict=True):
        expected = Counter((*prompt, *ids[:place]) for prompt, ids in starts.items() for place in places)
        assert Counter(map(tuple, asked)) == dict.fromkeys(expected, 3)
    assert trainer.vllm_generation.max_completion_length == 12
    assert torch.isfinite(found.values[:, :4]).all()


# How the work is dealt


def test_calls_hold_rows_of_similar_budgets():
    lengths, budgets = [9, 4, 6, 4, 7], [1, 8, 5, 8, 3]
    assert planned_calls(lengths, budgets, 2) == [[1, 3], [2, 4], [0]]
    assert planned_calls(lengths, budgets) == [[1, 3, 2, 4, 0]]
    assert planned_calls([], [], 4) == []
    assert planned_calls(lengths, budgets, 5, context=12) == [[1, 3], [2, 4], [0]]
    assert planned_calls(lengths, budgets, 5, context=11) == [[1, 3], [2, 4], [0]]
    # Rows whose own budgets go beyond the context are no reason to run each by itself
    assert planned_calls([4, 4, 5], [20, 20, 19], 5, context=12) == [[0, 1], [2]]
    # Of an engine that batches by itself: no budget is more than twice another of its call
    assert planned_calls(lengths, budgets, within=2.0) == [[1, 3, 2], [4], [0]]
    assert planned_calls(lengths, [4, 8, 5, 8, 4], within=2.0) == [[1, 3, 2, 4, 0]]


def test_processes_generate_equally_often_and_equally_long(monkeypatch):
    """An engine that spans several processes waits for ever, or cuts, if their limits differ."""
    found = different_beginnings([(0, [1, 2], [3] * 9, [0, 2, 5, 8]), (1, [1], [4] * 7, [0, 6])])

    def calls_of(rank):
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(num_processes=2, process_index=rank),
            use_vllm=False,
            use_transformers_continuous_batching=False,
            generation_config=SimpleNamespace(max_new_tokens=10),
            context_length=None,
        )
        calls = []

        def continued(self, beginnings, part, budgets, longest):
            calls.append((len(part), longest))
            assert max(budgets) <= longest
            return torch.zeros(2 * len(part)), [1] * len(part)

        monkeypatch.setattr(_Sampler, "_continued", continued)
        sampler = _Sampler.__new__(_Sampler)
        sampler.trainer, sampler.count, sampler.tokens, sampler.unrewarded, sampler._rows = trainer, 0, 0, 0, 1
        sampler.rewards(found, 1)
        return calls, sampler.tokens

    (first, tokens), (second, others) = calls_of(0), calls_of(1)
    assert first == second == [(1, 10), (1, 8), (1, 4)]
    assert tokens + others == 6


def test_beginnings_are_those_of_the_group():
    found = different_beginnings([(0, [7], [1, 2, 3], [0, 2]), (0, [7], [1, 2, 4], [0, 2]), (1, [7], [1, 2], [0])])
    assert list(zip(found.groups, found.written, strict=True)) == [(0, []), (0, [1, 2]), (1, [])]
    assert found.prompts == [[7]] * 3


# Where it is refused


def add(number: int) -> int:
    """Adds one.

    Args:
        number: The number.
    """
    return number + 1


@pytest.mark.parametrize("name", ["rollout_func", "tools"])
def test_what_cannot_be_continued_is_refused_before_the_model_is_loaded(name, tmp_path):
    value = {"rollout_func": fixed_rollout, "tools": [add]}[name]
    for credit in ("vine", ["vine", "forking"]):
        with pytest.raises(
            ValueError, match=f"'vine' continues completions from within, which `{name}` does not allow"
        ):
            CreditGRPOTrainer(
                model="no/model",
                reward_funcs=letter_reward,
                args=config(tmp_path, credit=credit),
                train_dataset=prompts(),
                **{name: value},
            )


@pytest.mark.parametrize(
    "setting",
    [{"generation_kwargs": {"min_new_tokens": 4}}, {"use_vllm": True, "vllm_structured_outputs_regex": r"\d+"}],
)
def test_what_rules_a_whole_completion_is_refused(setting, tmp_path):
    with pytest.raises(ValueError, match="'vine' continues completions from within, and there"):
        make("no/model", tmp_path, credit="vine", **setting)


def test_inspection_refuses(tiny_model):
    with pytest.raises(ValueError, match="vine: the credit comes from continuations"):
        CreditScorer(tiny_model, {"vine": build_credit("vine")})


def test_image_tokens_refuse(tmp_path):
    args = config(tmp_path, kind=ImageTokenGRPOConfig, credit="vine")
    with pytest.raises(
        ValueError, match="'vine' continues completions from within, and images cannot be continued yet"
    ):
        ImageTokenGRPOTrainer(model="no/model", reward_funcs=letter_reward, args=args, train_dataset=prompts())


def test_prompts_with_images_are_refused(tmp_path):
    """Before the model is loaded, if the data tell."""
    data = qwen_vision.make_dataset()
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    in_prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": parts}]}])
    for dataset in (data, data.to_iterable_dataset(), in_prompts):
        with pytest.raises(ValueError, match="those of prompts with images cannot be continued"):
            make("no/model", tmp_path, data=dataset, credit={"method": "vine"})


def test_images_of_which_the_data_do_not_tell_are_refused_when_they_come(tmp_path):
    model, processor = qwen_vision.tiny_model()
    rows = list(qwen_vision.make_dataset())
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit="vine", max_steps=1),
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)),
    )
    with pytest.raises(ValueError, match="prompts with images cannot be continued"):
        trainer.train()


def test_the_random_numbers_of_mps_are_put_back(monkeypatch):
    """`torch.manual_seed` seeds that device, too."""
    kept = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "before")
    monkeypatch.setattr(torch.mps, "set_rng_state", kept.append)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("mps"), process_index=0),
        args=SimpleNamespace(seed=0),
        _step=0,
    )
    before = torch.get_rng_state()
    with _own_random_numbers(trainer):
        torch.rand(1)
        assert kept == []
    assert kept == ["before"]
    assert torch.equal(torch.get_rng_state(), before)
