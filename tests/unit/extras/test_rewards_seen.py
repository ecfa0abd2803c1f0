"""What an error says of the rewards of a run that trained nothing."""

import functools

import torch
from torch import nn

from trl_credit.extras.reward_guard import GuardedReward
from trl_credit.extras.rewards_seen import RewardsSeen
from trl_credit.rewards import accuracy


NAN = float("nan")


def reads(completions, answer, level=None, **kwargs):
    return [0.0] * len(completions)


def free(completions, **kwargs):
    return [0.0] * len(completions)


def described(functions, rewards, rows):
    """The sentences, if each number of rewards comes in a batch of its own, with its row."""
    names = [getattr(function, "__name__", "model") for function in functions]
    seen = RewardsSeen(functions, names, torch.device("cpu"))
    for reward, row in zip(rewards, rows, strict=True):
        seen.add(torch.tensor([reward]), [row])
    return seen.described(lambda counts: counts)


def test_rewards_of_every_kind():
    functions = [free, functools.partial(reads, answer=[1]), nn.Linear(1, 1), accuracy]
    functions[1].__name__ = "bound"
    rewards = [[0.5, NAN, -1.0, NAN], [0.5, 2.0, 3.0, NAN], [0.5, 2.0, 0.0, NAN]]
    assert described(functions, rewards, [{"solution": "1"}] * 3) == (
        "`free` was always 0.5. `bound` was always 2 or `None`. `model` was between -1 and 3. `accuracy` always gave `None`."
    )


def test_columns_that_are_empty():
    empty = [None, "", " \n", [], NAN]
    rows = [{"answer": value, "level": None, "prompt": ""} for value in [*empty, "7", 0, [0], False, {}]]
    found = described([GuardedReward(reads, "reads", exclude=False, timeout=None)], [[0.0]] * 10, rows)
    assert found.endswith(
        "The column 'answer', which `reads` reads, is empty in 50 % of the rows (see `answer_column`)."
    )
    assert "level" not in found
    found = described([free], [[0.0]] * 3, [{"solution": value, "extra": None} for value in (None, None, "1")])
    assert found == "`free` was always 0. The column 'solution' is empty in 67 % of the rows (see `answer_column`)."
    assert described([reads], [[0.0]], [{"answer": "1", "solution": None}]) == "`reads` was always 0."
    assert described([free], [[0.0]], [{"prompt": ""}]) == "`free` was always 0."


def test_counts_of_all_processes():
    seen = RewardsSeen([free], ["free"], torch.device("cpu"))
    seen.add(torch.zeros(2, 1), [{"answer": None}])
    other = torch.tensor([[0.0, 0.0], [3.0, 0.0]])  # another process's `solution` and `answer`
    assert "empty in 25 % of the rows" in seen.described(lambda counts: counts + other)
    assert RewardsSeen([free], ["free"], torch.device("cpu")).described(lambda counts: counts) == ""
