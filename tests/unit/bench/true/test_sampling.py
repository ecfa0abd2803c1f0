"""Advantages of sampled groups, and where a sampled sum goes wrong."""

import math

import numpy as np
import pytest

from trl_credit.bench.true.sampling import advantages_of, can_keep_books, mistaken_token
from trl_credit.rewards import accuracy
from trl_credit.toy.arithmetic import correct_answer
from trl_credit.values.store import Sample


def test_advantages_are_those_of_the_completions_with_a_reward():
    rewards = [1.0, math.nan, 0.0, 0.0]
    mean = 1 / 3
    std = math.sqrt(((1 - mean) ** 2 + 2 * mean**2) / 2)
    found = advantages_of(np.array(rewards))
    assert np.isnan(found).tolist() == [False, True, False, False]
    assert found[[0, 2, 3]] == pytest.approx([(r - mean) / (std + 1e-4) for r in (1.0, 0.0, 0.0)])
    assert np.isnan(advantages_of(np.array([1.0, math.nan]))).all()  # nothing to compare with


def sample(text, reward=0.0, finished=True, ids=None):
    return Sample(
        prompt=0,
        index=0,
        token_ids=tuple(ids or range(2, 2 + len(text) + finished)),
        text=text,
        finished=finished,
        reward=reward,
        advantage=1.0,
        example={"prompt": "12+34="},
        prompt_ids=(),
    )


END = 99


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        (["12+34", "=", "4", "7", "<end>"], 3),  # the second digit is wrong
        (["12+34=4", "7", "<end>"], 1),
        (["12+34=47", "<end>"], 0),
        (["12+34=", "<end>"], 1),  # it ended too early
        (["12+3", "9", "=46", "<end>"], 1),
    ],
)
def test_the_token_with_the_mistake(pieces, place):
    ids = [*range(len(pieces) - 1), END]
    wrong = sample("".join(pieces[:-1]), ids=ids)
    assert mistaken_token(wrong, pieces, [END]) == place


def test_no_mistake():
    right, lucky = ["12+34=", "46", ";#46", "<end>"], ["12+34=", "47", ";#46", "<end>"]
    ids = [0, 1, 2, END]
    assert mistaken_token(sample("".join(right[:-1]), ids=ids), right, [END]) is None
    assert mistaken_token(sample("".join(lucky[:-1]), ids=ids), lucky, [END]) == 1
    assert mistaken_token(sample("".join(lucky[:-1]), 1.0, ids=ids), lucky, [END]) is None
    # Cut where it may still become right
    assert mistaken_token(sample("12+34", finished=False, ids=[0]), ["12+34"], [END]) is None


def test_books_are_kept_of_sums_with_their_own_reward_alone():
    sums = [{"prompt": "12+34="}, {"prompt": "~1+2+3="}]
    assert can_keep_books([correct_answer], sums)
    assert not can_keep_books([correct_answer, correct_answer], sums)
    assert not can_keep_books([lambda **_: [1.0]], sums)
    assert not can_keep_books([correct_answer], [*sums, {"prompt": "What is 1+2="}])
    assert not can_keep_books([correct_answer], [{"prompt": [{"role": "user", "content": "12+34="}]}])
    asked = [{"prompt": "Calculate 12 + 34.\n"}]  # a language model may be right in another notation
    assert not can_keep_books([accuracy], asked)
    assert not can_keep_books([correct_answer], asked)
    assert not can_keep_books([accuracy], sums)
