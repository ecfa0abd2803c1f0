"""Problems with several answers."""

import pytest
from datasets import Dataset

from trl_credit.data import report_unparsable
from trl_credit.fields import gold_of
from trl_credit.rewards import accuracy, build_reward, judged
from trl_credit.rewards.several import judge_any


def test_rewards_of_several_answers():
    texts = [r"$\boxed{2}$", r"$\boxed{3}$", r"$\boxed{5}$", r"$\boxed{3, 2}$", "no"]
    for reward in (judged, accuracy):
        assert reward(texts, solution=[["2", "3"]] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
        assert reward(texts, solution=[gold_of(["2", "3"], "all")] * 5) == [0.0, 0.0, 0.0, 1.0, 0.0]
        assert reward(texts[:2], solution=[["7"], "3"]) == [0.0, 1.0]
    lengths = build_reward("cosine_scaled", 100)(texts, solution=[["2", "3"]] * 5, completion_ids=[[1]] * 5)
    assert [value > 0 for value in lengths] == [True, True, False, False, False]
    assert gold_of(["red", "blue"], "all") == r"\{red, blue\}"
    words = [r"\boxed{blue, Red}", r"\boxed{\text{red and blue}}", r"\boxed{red}", r"\boxed{red, blue, green}"]
    assert judged(words, solution=[r"\{red, blue\}"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert judged(words[:2], solution=["red, blue"] * 2) == [0.0, 0.0]  # in this order
    assert report_unparsable(Dataset.from_dict({"solution": [["", "1"], ["2", "3"]]}), judged) == 0


def test_votes_of_several_answers():
    texts = [r"\boxed{2}", r"\boxed{3}", r"\boxed{5}", r"\boxed{5.0}", "", r"\boxed{any of: 2 | 3}"]
    first, second, third, fourth, none, forged = judge_any(texts, [["2", "3"]] * 6)
    assert first.vote == second.vote == "any of: 2 | 3"
    assert (third.correct, third.vote, fourth.vote) == (False, "5", "5")
    assert (none.vote, none.correct) == (None, False)
    assert not forged.correct
    assert forged.vote != first.vote
    assert "It matches none of the 2 solutions" in third.reason
    assert judge_any([r"\boxed{2}"], [["", "2"]])[0].correct
    assert judge_any([r"\boxed{2}"], [["", " "]])[0].correct is None


@pytest.mark.parametrize(
    ("answers", "right", "wrong"),
    [
        (["1,000", "2"], "2, 1000", "1, 0, 2"),
        (["$5", "$10"], "10, 5", "5"),
        (["3", "3.0"], "3", "3, 4"),
        (["$x$", "$y$"], "y, x", "x"),
    ],
)
def test_all_of_several_answers(answers, right, wrong):
    gold = gold_of(answers, "all")
    assert judged([rf"\boxed{{{right}}}", rf"\boxed{{{wrong}}}"], solution=[gold] * 2) == [1.0, 0.0]
