"""What the rollout stage sees of TRL's batch, and where its results arrive."""

import math
import random
from dataclasses import dataclass

import pytest
import torch
from helpers import config, fixed_rollout, prompts
from support.resumed import assert_same_run, outcome
from support.resumed import make as resumable

from trl_credit import CreditGRPOTrainer, CreditMethod, Paper, credit_pass
from trl_credit.batching import STAGE_PREFIX, loss_mask
from trl_credit.trainer import grpo
from trl_credit.trainer.rollout_stage import add_rollout_stage


TEMPERATURE = 0.8


@dataclass(frozen=True)
class Seeing(CreditMethod):
    """Keeps its rollouts; the results are the tokens' ids and log-probs, by which a token is known at the update."""

    name = "seeing"
    paper = Paper(title="none", id="none", citation="none none")
    reweights = False
    own_advantages = True
    rollout_needs = ("logps", "sum_squared_probs", "hidden_states")
    seen = []  # of all instances

    def rollout_stage(self, rollout):
        self.seen.append(rollout)
        return {"ids": rollout.token_ids.float(), "logps": rollout.logps}

    def rows_with_credit(self, rollout):
        return rollout.groups_with_signal

    def token_advantages(self, advantages, weights, inputs):
        return torch.where(inputs.mask, inputs.rollout["ids"], 0.0)


CREDIT = f"{__name__}.Seeing"


@pytest.fixture(autouse=True)
def nothing_seen():
    Seeing.seen.clear()


def first_reward(completion_ids, **kwargs):
    return [float(sum(ids) % 3) for ids in completion_ids]


def second_reward(completion_ids, **kwargs):
    """None for some; constant for prompts whose first reward is, too."""
    return [None if len(ids) % 2 else 1.0 for ids in completion_ids]


def environment_rollout(prompts_, trainer):
    rollout = fixed_rollout(prompts_, trainer)
    rollout["env_mask"] = [[int(place % 4 != 2) for place in range(len(row))] for row in rollout["completion_ids"]]
    return rollout


def make(model, path, reward=(first_reward, second_reward), rollout_func=fixed_rollout, **overrides):
    settings = {"temperature": TEMPERATURE, "credit": CREDIT, "reward_weights": [1.0, 0.25][: len(reward)]}
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=list(reward),
        rollout_func=rollout_func,
        args=config(path, **settings | overrides),
        train_dataset=prompts(),
        eval_dataset=prompts(2, seed=1),
    )


class Watched:
    """The generation batches as TRL makes them, the updates' batches and results, and the model's weights."""

    def __init__(self, trainer):
        self.generated, self.updates = [], []
        score = trainer._generate_and_score_completions

        def watched(inputs):
            batch = score(inputs)
            texts = {name: dict(trainer._logs["rewards"])[name] for name in trainer.reward_func_names}
            rewards = {name: list(values)[-len(batch["advantages"]) :] for name, values in texts.items()}
            weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            self.generated.append((dict(batch), rewards, weights))
            return batch

        trainer._generate_and_score_completions = watched
        trainer.credit_observers.append(lambda batch, result: self.updates.append((dict(batch), result)))


def direct(trainer, weights, batch):
    """Log-probs, sums of squared probabilities and states of each row alone, without padding, in float64."""
    import copy

    model = copy.deepcopy(trainer.model)
    model.load_state_dict(weights)
    model = model.double().eval()
    for row in range(len(batch["advantages"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        states = model.model(input_ids=torch.cat([prompt, completion])[None]).last_hidden_state[0]
        states = states[len(prompt) - 1 : -1]
        logps = torch.log_softmax(model.lm_head(states) / TEMPERATURE, -1)
        yield logps[torch.arange(len(completion)), completion], logps.exp().square().sum(-1), states


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_it_sees(dynamic, tiny_model, tmp_path):
    extra = {"dynamic_sampling": True} if dynamic else {}
    trainer = make(tiny_model, tmp_path, rollout_func=environment_rollout, num_generations=4, **extra)
    watched = Watched(trainer)
    trainer.train()
    assert len(watched.generated) == len(Seeing.seen) == 3
    for rollout, (batch, rewards, weights) in zip(Seeing.seen, watched.generated, strict=True):
        assert torch.equal(rollout.mask, loss_mask(batch))
        assert torch.equal(rollout.token_ids, batch["completion_ids"])
        assert torch.equal(rollout.advantages, batch["advantages"])
        assert rollout.groups.tolist() == [0] * 4 + [1] * 4
        for i, (one, two) in enumerate(zip(*rewards.values(), strict=True)):
            ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
            assert one == sum(ids) % 3
            assert math.isnan(two) if len(ids) % 2 else two == 1.0
            assert rollout.rewards[i].item() == pytest.approx(one + (0.0 if math.isnan(two) else 0.25))
        with torch.no_grad():
            for i, (logps, squared, states) in enumerate(direct(trainer, weights, batch)):
                length = len(logps)
                on = rollout.mask[i, :length]
                torch.testing.assert_close(rollout.logps[i, :length][on].double(), logps[on], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(
                    rollout.sum_squared_probs[i, :length][on].double(), squared[on], rtol=1e-3, atol=1e-5
                )
                torch.testing.assert_close(
                    rollout.hidden_states[i, :length][on].double(), states[on], rtol=1e-3, atol=1e-3
                )
                places = torch.arange(length)
                expected = (places >= 3).long() + (places >= 7) + (places >= 11)
                assert rollout.turns[i, :length][on].tolist() == expected[on].tolist()
                assert (rollout.turn_states[i] != 0).sum() == len(set(expected[on].tolist()))
    assert all(rollout.turn_rewards is None for rollout in Seeing.seen)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {
            "per_device_train_batch_size": 2,
            "steps_per_generation": 4,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
        },
        {"skip_zero_advantage": False, "trim_padding": False},
        {"dynamic_sampling": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ],
    ids=["whole", "accumulated", "regrouped", "plain", "dynamic"],
)
def test_results_arrive_at_their_rows(settings, tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, **settings)
    watched = Watched(trainer)
    trainer.train()
    known = {}
    for rollout in Seeing.seen:
        for ids, logps, on, credit in zip(
            rollout.token_ids, rollout.logps, rollout.mask, rollout.groups_with_signal, strict=True
        ):
            if on.any():
                known.setdefault(tuple(ids[on].tolist()), []).append((logps[on], bool(credit)))
    compared = 0
    for batch, result in watched.updates:
        if result.view is None:
            continue
        inputs = result.inputs
        assert torch.equal(inputs.rollout["ids"][inputs.mask], inputs.token_ids[inputs.mask].float())
        for ids, logps, on in zip(inputs.token_ids, inputs.rollout["logps"], inputs.mask, strict=True):
            if not on.any():
                continue
            found = known[tuple(ids[on].tolist())]
            assert any(torch.equal(logps[on], other) and credit for other, credit in found)
            compared += 1
        mask = loss_mask(batch)
        rows = torch.zeros(len(mask), dtype=torch.bool)
        rows[list(result.rows)] = True
        assert (batch["advantages"][~rows] == 0).all()
    assert compared >= 8


@pytest.mark.parametrize("credit", ["certainty", "otb", "delta"])
def test_a_resumed_run_is_the_same(credit, tiny_model, tmp_path):
    settings = {"credit": credit, "max_steps": 7}
    whole = resumable(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    for stop in (2, 4):  # within a generation batch and between two
        again = resumable(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(again), outcome(whole), stop)


def test_evaluation(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, credit="otb", per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_credit/token_advantage_size"])
    assert metrics["eval_credit/nonfinite_tokens"] == 0


# Its forwards


def half_constant(completion_ids, **kwargs):
    """No variance in the groups of the first half."""
    count = len(completion_ids)
    return [1.0 if place < count // 2 else float(place) for place in range(count)]


def constant(completion_ids, **kwargs):
    return [1.0] * len(completion_ids)


def stages(model, path, credit, reward=half_constant, reads=None, **overrides):
    """The first generation batch's results of the stage, and the shapes of its forwards and of the tensors gathered for it.

    Args:
        reads: Replaces the method's `rollout_rows`.
    """
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_steps": 1}
    trainer = make(model, path, reward=(reward,), credit=credit, **settings | overrides)
    method = trainer.credit_method
    if reads is not None:
        object.__setattr__(method, "rollout_rows", reads)
    forwards, gathered, results = [], [], []

    def see(module, args, kwargs, output):
        assert not module.training
        forwards.append(tuple(kwargs["input_ids"].shape))

    def watched(trainer, method, batch, rewards, **kwargs):
        gather = trainer.accelerator.gather
        trainer.accelerator.gather = lambda tensor: (gathered.append(tuple(tensor.shape)), gather(tensor))[1]
        hook = trainer.model.base_model.register_forward_hook(see, with_kwargs=True)
        add_rollout_stage(trainer, method, batch, rewards, **kwargs)
        hook.remove()
        trainer.accelerator.gather = gather
        mask = loss_mask(batch)
        results.append({name: torch.where(mask, batch[name], 0) for name in batch if name.startswith(STAGE_PREFIX)})
        results[-1]["ids"] = batch["completion_ids"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "add_rollout_stage", watched)
        trainer._prepare_inputs([dict(row) for row in trainer.get_train_dataloader().__iter__().__next__()])
    return results[0], forwards, gathered


@pytest.mark.parametrize(
    "credit", ["certainty", "otb", "delta", ["delta", "random"], {"method": "shuffled", "of": "delta"}], ids=str
)
@pytest.mark.parametrize("padding", [None, "shown as a reason"])
def test_only_rows_that_are_read_run(credit, padding, tiny_model, tmp_path, monkeypatch):
    """16 completions, of which 8 have an advantage: half of the rows, fewer tokens each, and the same results."""
    monkeypatch.setattr(credit_pass, "padding_affects_output", lambda config: padding)
    found, forwards, gathered = stages(tiny_model, tmp_path, credit)
    every, all_forwards, _ = stages(tiny_model, tmp_path, credit, reads=lambda rollout: None)
    assert torch.equal(found["ids"], every["ids"])
    for name, result in found.items():
        torch.testing.assert_close(result, every[name], rtol=1e-4, atol=1e-5)
        assert result.any()
    rows, all_rows = (sum(shape[0] for shape in shapes) for shapes in (forwards, all_forwards))
    assert (rows, all_rows) == (8, 16)
    assert max(shape[0] for shape in all_forwards) == 2
    if padding:
        assert len({shape[1] for shape in all_forwards}) == 1
        assert (len(forwards), len(all_forwards)) == (4, 8)
    else:
        assert len({shape[1] for shape in forwards}) > 1
        assert sum(rows * width for rows, width in forwards) < 0.5 * 16 * max(width for _, width in all_forwards)
    # rewards and groups of all once each, though the rollout gets fields later
    assert gathered.count((16,)) == (2 if credit in ("certainty", "otb") else 0)


@pytest.mark.parametrize("credit", ["certainty", "otb", "delta"])
def test_without_an_advantage_nothing_runs(credit, tiny_model, tmp_path):
    found, forwards, _ = stages(tiny_model, tmp_path, credit, reward=constant)
    assert forwards == []
    every, _, _ = stages(tiny_model, tmp_path, credit, reward=constant, reads=lambda rollout: None)
    for name, result in found.items():
        assert torch.equal(result, every[name])


def test_rows_that_are_named_wrongly_are_an_error(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"'delta': `rollout_rows` must return a \(16,\) bool tensor.*float32 \(16,\)"):
        stages(tiny_model, tmp_path, "delta", reads=lambda rollout: rollout.advantages)


# Rewards of turns


def rewards_of(ids, prompt_length):
    """A number for each of three turns, and one for the completion; nothing tells completions of some prompts apart."""
    if prompt_length % 2:
        return [1.0, 0.0, 1.0], None
    return [float(random.Random(f"{ids}/{k}").randint(0, 2)) for k in range(3)], None if len(ids) % 2 else 1.0


def turns_reward(prompts, completion_ids, **kwargs):
    return [rewards_of(ids, len(prompt))[0] for prompt, ids in zip(prompts, completion_ids, strict=True)]


def whole_reward(prompts, completion_ids, **kwargs):
    return [rewards_of(ids, len(prompt))[1] for prompt, ids in zip(prompts, completion_ids, strict=True)]


@pytest.mark.parametrize("credit", ["turn", "gigpo"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_rewards_of_turns(credit, dynamic, tiny_model, tmp_path):
    """Rewards beyond the last turn and of functions for the whole completion are the last turn's; the sum is TRL's."""
    seen = []
    extra = {"dynamic_sampling": True, "dynamic_sampling_max_rounds": 3} if dynamic else {}
    trainer = make(
        tiny_model,
        tmp_path,
        reward=(turns_reward, whole_reward),
        rollout_func=environment_rollout,
        credit=credit,
        **extra,
    )
    stage = type(trainer.credit_method).rollout_stage
    object.__setattr__(
        trainer.credit_method,
        "rollout_stage",
        lambda rollout: (seen.append(rollout), stage(trainer.credit_method, rollout))[1],
    )
    watched = Watched(trainer)
    trainer.train()
    assert len(seen) == 3
    if dynamic:
        assert max(entry.get("dynamic_sampling/rounds", 0) for entry in trainer.state.log_history) > 1
    for rollout, (batch, _, _) in zip(seen, watched.generated, strict=True):
        for i in range(len(rollout.mask)):
            ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
            each, whole = rewards_of(ids, int(batch["prompt_mask"][i].sum()))
            whole = 0.25 * (whole or 0.0)
            last = int(rollout.turns[i][rollout.mask[i]].max())
            row = rollout.turn_rewards[i, : last + 1].tolist()
            expected = [*each[:last], sum(each[last:]) + whole]
            assert row == pytest.approx(expected[: len(row)])
            assert rollout.rewards[i].item() == pytest.approx(sum(each) + whole)
    assert any(entry.get("credit/token_advantage_size", 0) > 0 for entry in trainer.state.log_history)


@pytest.mark.parametrize("credit", ["turn", "gigpo"])
def test_a_run_without_turns_is_refused_at_the_first_rollout(credit, tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"has none\. They come from a `rollout_func`, a field of the recipe"):
        make(tiny_model, tmp_path, credit=credit).train()


def test_turn_without_rewards_of_turns_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="return a list of numbers"):
        make(tiny_model, tmp_path, credit="turn", rollout_func=environment_rollout).train()
