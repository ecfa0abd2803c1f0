"""Prompts with hints, and which tokens are a thought."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from helpers import config, letter_reward, prompts

from trl_credit import CreditGRPOTrainer
from trl_credit.signals.hint import TEMPLATES, HintLogps, hint_prompt_of
from trl_credit.signals.negative_prompt import NegativePromptLogps
from trl_credit.signals.second_prompt import fill
from trl_credit.signals.thought_tokens import in_thought
from trl_credit.toy.build_model import build_tokenizer


def test_fill_reads_the_template_once():
    values = {"prompt": "say {answer}", "answer": r"\frac{1}{2} {prompt}"}
    assert fill("{prompt}|{answer}|{other}|{}", values) == r"say {answer}|\frac{1}{2} {prompt}|{other}|{}"


def test_hints():
    own = "Q: {prompt} A: {answer}"
    assert hint_prompt_of("2+2?", own, "solution", {"solution": "4"}) == "Q: 2+2? A: 4"
    assert hint_prompt_of("2+2?", own, "key", {"key": 0}) == "Q: 2+2? A: 0"
    assert hint_prompt_of("2+2?", own, "key", {"key": ["4", "four"]}) == "Q: 2+2? A: 4 or four"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
    assert hint_prompt_of(chat, own, "key", {"key": "4"}) == [chat[0], {"role": "user", "content": "Q: 2+2? A: 4"}]
    default = hint_prompt_of("2+2?", "default", "solution", {"solution": "4"})
    assert default.startswith("2+2?\n")
    assert "\n4\n" in default
    assert {"default"} == set(TEMPLATES)


@pytest.mark.parametrize("row", [{}, {"solution": ""}, {"solution": " "}, {"solution": None}, {"solution": []}])
def test_a_row_without_an_answer_has_no_hint(row):
    assert hint_prompt_of("2+2?", "default", "solution", row) is None


def test_a_stream_may_lose_the_column_but_not_lack_it():
    source = HintLogps("default", "solution").source()
    context = SimpleNamespace(
        tokenize_prompts=lambda chosen: ([[1]] * len(chosen), None, None), tokenizer=build_tokenizer()
    )
    rows = [{"prompt": "a", "solution": "4"}, {"prompt": "b"}]
    lacking = {"prompt": "2+2?"}
    with pytest.raises(ValueError, match="A hint needs a column 'solution', but the rows have only: prompt"):
        source.tokenized(context, [lacking], ["2+2?"], {})
    assert source.tokenized(context, rows, ["a", "b"], {}).present == [True, False]
    assert source.tokenized(context, [lacking], ["2+2?"], {}).present == [False]


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "warned"),
    [
        ("2+2?", "{prompt} Be wrong.", False),
        ("<s>2+2?", "{prompt} Be wrong.", False),
        ("<|user|>2+2?<|assistant|>", "{prompt} Be wrong.", True),
        ("<|user|>2+2?<|assistant|>", "column", False),  # which says it whole
        ([{"role": "user", "content": "<|user|>"}], "{prompt} Be wrong.", False),
    ],
)
def test_conversations_that_are_text_already(prompt, negative_prompt, warned, caplog):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    context = SimpleNamespace(tokenize_prompts=lambda chosen: ([[1]], None, None), tokenizer=tokenizer)
    source = NegativePromptLogps(negative_prompt).source()
    for _ in range(2):
        source.tokenized(context, [{"prompt": prompt, "negative_prompt": "<|user|>5?"}], [prompt], {})
    assert caplog.text.count("The prompts are conversations as text, with <|") == warned


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (prompts(), "column 'solution', but the train dataset has only: prompt, answer"),
        (Dataset.from_list([{"prompt": "a", "solution": "1"}, {"prompt": "b", "solution": ""}]), "empty in row 1"),
    ],
)
def test_missing_answers_fail_before_the_model_is_loaded(dataset, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CreditGRPOTrainer(
            model="no/such/model",
            reward_funcs=letter_reward,
            args=config(tmp_path, credit="rlsd"),
            train_dataset=dataset,
        )


@pytest.mark.parametrize(
    ("pieces", "opened", "expected"),
    [
        (["<think>", "a", " b", "</think>", "c"], False, "01100"),
        (["<", "think>\n", "a", "</", "think", ">c"], False, "011000"),  # the line's end belongs to the thought
        (["a", "</think>", "b"], True, "100"),
        (["a", "</think>", "b"], False, "000"),
        (["x", "<think>", "a", "b"], False, "0011"),
        (["<think>", "a", "</think>", "b", "<think>", "c"], False, "010001"),
        (["<think>", "a", "<think>", "b</think>c"], False, "0111"),
        (["", "a"], True, "01"),
        ([], True, ""),
    ],
)
def test_thoughts(pieces, opened, expected):
    assert "".join(str(int(one)) for one in in_thought(pieces, "<think>", "</think>", opened)) == expected
