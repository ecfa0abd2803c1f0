"""Rewards that judge images, in recipes of image models and of language models."""

import pytest
from support.train import line

from trl_credit.recipe.recipe import Recipe


DIGITS = [
    *("--trainer", "diffusion", "--model_name_or_path", "trl_credit:digits", "--dataset_name", "trl_credit:digits"),
    *("--use_cpu", "true", "--bf16", "false", "--output_dir", "out", "--credit", "pcpo"),
]


def rewards(*words):
    return Recipe.read([*DIGITS, "--reward_funcs", *words]).trainer_arguments()["reward_funcs"]


def test_an_image_model_s_rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def brightness(images, prompts, **columns):\n    return [1.0 for _ in images]\n")
    found = rewards(
        *("compressibility", "trl_credit.toy.digits.digit_probability", "own.py:brightness"),
        '{"name": "clip_score", "batch_size": 4}',
    )
    assert [reward.__name__ for reward in found] == ["compressibility", "digit_probability", "brightness", "clip_score"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compresibility"], "unknown reward 'compresibility'. Did you mean 'compressibility'"),
        (['{"name": "hps", "modle": "a"}'], "'hps' has no argument 'modle'. Did you mean 'model'"),
        (["accuracy"], "'accuracy' scores text, and this run makes images"),
    ],
)
def test_wrong_rewards(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`reward_funcs`: ") as raised:
        rewards(*words)
    assert message in str(raised.value)


@pytest.mark.parametrize("word", ["compressibility", '{"name": "pickscore", "dtype": "bfloat16"}'])
def test_a_language_model_makes_no_images(word, tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"judges images, but this run makes text\. Set `trainer: diffusion` or use"):
        Recipe.read(line(tmp_path, tiny_model, "--reward_funcs", word)).trainer_arguments()


def test_a_pipeline_is_no_language_model(tmp_path):
    words = [word for word in DIGITS if word not in ("--trainer", "diffusion")]
    words[words.index("pcpo")] = "uniform"
    words[words.index("--dataset_name") + 1] = "trl_credit:arithmetic"
    with pytest.raises(ValueError, match="is a pipeline of diffusers, which makes images"):
        Recipe.read([*words, "--reward_funcs", "trl_credit.toy.arithmetic.correct_answer"]).prepare()
