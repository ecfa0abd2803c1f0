"""The arithmetic task."""

import random

import pytest

from trl_credit.toy.arithmetic import (
    correct_answer,
    make_dataset,
    prompt_of,
    written_solution,
)


def test_task():
    assert prompt_of([83, 48, 14]) == "83+48+14="
    assert written_solution([83, 48, 14], random.Random(0)) == "83+48=131;131+14=145;#145"
    wrong = written_solution([83, 48, 14], random.Random(0), {0})
    first = wrong.split(";")[0]
    assert first.startswith("83+48=")
    assert first != "83+48=131"
    result = int(first.partition("=")[2])
    assert wrong == f"83+48={result};{result}+14={result + 14};#{result + 14}"  # the rest follows from the wrong step
    assert correct_answer(["#145", "1#2#145 ", "145", "#146", ""], ["145"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_datasets_are_seeded_and_disjoint():
    train = make_dataset(50, seed=1)
    assert train.to_list() == make_dataset(50, seed=1).to_list()
    held_out = make_dataset(50, seed=1, exclude=train)
    assert not set(train["prompt"]) & set(held_out["prompt"])
    for row in train:
        assert str(sum(map(int, row["prompt"].rstrip("=").split("+")))) == row["answer"]


def test_there_are_only_so_many_different_problems():
    every = make_dataset(8100, num_terms=2)
    assert len(set(every["prompt"])) == 8100
    with pytest.raises(ValueError, match="8101 different sums of 2 numbers are asked for, but there are 8100: ask for"):
        make_dataset(8101, num_terms=2)
    with pytest.raises(
        ValueError, match=r"1 different sums of 2 numbers .* there are 0 beside the 8100 that are excluded"
    ):
        make_dataset(1, num_terms=2, exclude=every)
    letters = make_dataset(5, num_terms=2, style="letters", exclude=every)  # other prompts
    assert len(letters) == 5
