"""Thinking tags that a chat template opens."""

import copy
import logging

import pytest

from trl_credit.rewards import REWARDS, _warn_once, accuracy, build_reward
from trl_credit.rewards.thinking import judged_text, opened_tag


def test_a_recipe_s_reward_with_arguments_asks_too():
    reward = build_reward({"name": "reasoning_accuracy", "reasoning_delimiters": ["</think>"]})
    assert reward(completions=[r"x</think>\boxed{5}"], solution=["5"], opened_tags=["<think>"]) == [1.0]
    cosine = build_reward("cosine_scaled", 10)
    ids = [[0] * 5]
    plain = cosine(completions=[r"\boxed{5}"], solution=["5"], completion_ids=ids)
    assert cosine(completions=[r"\boxed{5}"], solution=["5"], completion_ids=ids, opened_tags=[""]) == plain


@pytest.mark.parametrize("name", list(REWARDS))
def test_rewards_without_the_tags_are_as_in_trl_s_trainer(name):
    completion = [{"role": "assistant", "content": r"<think>a</think>\boxed{5}"}]
    arguments = {"completions": [completion], "solution": ["5"]}
    assert REWARDS[name](**arguments) == REWARDS[name](**arguments, opened_tags=[""]) == [1.0]


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("a<think>", "<think>"),
        ("a<think>\n\n", "<think>"),
        ("a<think>\n\n</think>\n\n", ""),
        ("<think> is a tag", ""),
        ("x[THINK]", "[THINK]"),
        ("◁think▷", "◁think▷"),
        ("", ""),
    ],
)
def test_opened_tag(prompt, tag):
    assert opened_tag(prompt) == tag


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "<think>a"),
        ([{"content": "a"}], "<think>a"),
        ([{"content": "a"}, {"role": "tool", "content": "b"}, {"content": "c"}], "<think>c"),
        ([{"content": "a", "reasoning_content": "b"}], "a"),  # parsed: the thought is over, or there is no content
        ([{"content": "a", "thinking": None}], "<think>a"),
        ([{"content": None, "tool_calls": []}], "<think>"),
        ([{"content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "<think>a"),
        ([], "<think>"),
    ],
)
def test_judged_text(completion, text):
    before = copy.deepcopy(completion)
    assert judged_text(completion, "<think>") == text
    assert completion == before


def test_accuracy_warns_once_that_it_reads_thoughts(caplog):
    _warn_once.cache_clear()
    for _ in range(2):
        accuracy([r"\boxed{5}"], ["5"], opened_tags=["<think>"])
    assert [record.message[:40] for record in caplog.records] == ["The chat template opens <think> for the "]
    caplog.clear()
    accuracy([r"\boxed{5}"], ["5"], opened_tags=[""])
    with caplog.at_level(logging.WARNING):
        assert not caplog.records
