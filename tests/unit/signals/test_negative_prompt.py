"""Negative prompts from templates and columns."""

import pytest
from helpers import letter_reward, prompts
from PIL import Image
from support.negative_prompt import column_args

from trl_credit import CreditGRPOTrainer
from trl_credit.signals.negative_prompt import COLUMN, TEMPLATES, negative_prompt_of


NOTE = "\n\nNote: Intentionally generate an incorrect answer."

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]


def test_plain():
    assert negative_prompt_of("2+2?", "wrong_answer", {}) == "2+2?" + NOTE
    assert negative_prompt_of("2+2?", "empty", {}) == TEMPLATES["empty"]
    assert negative_prompt_of("2+2?", r"Lie: {prompt} \boxed{}", {}) == r"Lie: 2+2? \boxed{}"
    assert negative_prompt_of("2+2?", "column", {COLUMN: "3+3?"}) == "3+3?"


def test_conversation_keeps_all_but_the_last_user_message():
    before = [dict(message) for message in CHAT]
    negative = negative_prompt_of(CHAT, "wrong_answer", {})
    assert negative == [*CHAT[:3], {"role": "user", "content": "2+2?" + NOTE}]
    assert before == CHAT
    assert negative_prompt_of(CHAT, "empty", {})[-1]["content"] == TEMPLATES["empty"]
    assert negative_prompt_of(CHAT, "column", {COLUMN: "3+3?"}) == [*CHAT[:3], {"role": "user", "content": "3+3?"}]
    other = [{"role": "user", "content": "5?"}]
    assert negative_prompt_of(CHAT, "column", {COLUMN: other}) == other


def test_images_stay_where_they_are():
    image = Image.new("RGB", (4, 6), (10, 20, 30))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    prompt = [{"role": "user", "content": content}]
    [message] = negative_prompt_of(prompt, "wrong_answer", {})
    assert message["content"] == [content[0], {"type": "text", "text": "What?" + NOTE}]
    [message] = negative_prompt_of(prompt, "empty", {})
    assert message["content"] == [content[0], {"type": "text", "text": TEMPLATES["empty"]}]
    [message] = negative_prompt_of(prompt, "blank_image", {})
    assert message["content"][1] == content[1]
    blank = message["content"][0]["image"]
    assert (blank.size, blank.mode, blank.getpixel((0, 0))) == ((4, 6), "RGB", (255, 255, 255))
    assert image.getpixel((0, 0)) == (10, 20, 30)


def test_messages_of_a_column_get_the_prompts_images():
    image = Image.new("RGB", (4, 6))
    prompt = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    [message] = negative_prompt_of(prompt, "column", {COLUMN: [{"role": "user", "content": "Lie."}]})
    assert message["content"] == [{"type": "image", "image": image}, {"type": "text", "text": "Lie."}]


@pytest.mark.parametrize("row", [{}, {COLUMN: ""}, {COLUMN: " \n"}, {COLUMN: None}, {COLUMN: []}])
def test_a_row_with_an_empty_column_has_no_negative_prompt(row):
    assert negative_prompt_of("2+2?", "column", row) is None


def test_messages_for_a_plain_prompt_are_refused():
    with pytest.raises(ValueError, match="holds messages, but the prompt is plain text"):
        negative_prompt_of("2+2?", "column", {COLUMN: CHAT})


def test_no_user_message():
    with pytest.raises(ValueError, match="No user message"):
        negative_prompt_of(CHAT[:1], "wrong_answer", {})


def test_missing_column_fails_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="the train dataset has only: prompt, answer"):
        CreditGRPOTrainer(
            model="no/such/model", reward_funcs=letter_reward, args=column_args(tmp_path), train_dataset=prompts()
        )


def test_missing_column_of_the_evaluation_data(tmp_path):
    good = prompts().map(lambda row: {COLUMN: "x"})
    with pytest.raises(ValueError, match="the hard dataset has only"):
        CreditGRPOTrainer(
            model="no/such/model",
            reward_funcs=letter_reward,
            args=column_args(tmp_path),
            train_dataset=good,
            eval_dataset={"easy": good, "hard": prompts()},
        )


def test_empty_row_fails_before_the_model_is_loaded(tmp_path):
    dataset = prompts().map(lambda row, i: {COLUMN: "" if i == 5 else "x"}, with_indices=True)
    with pytest.raises(ValueError, match="'negative_prompt' is empty in row 5"):
        CreditGRPOTrainer(
            model="no/such/model", reward_funcs=letter_reward, args=column_args(tmp_path), train_dataset=dataset
        )
