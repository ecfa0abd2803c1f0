"""Settings of an evaluation."""

from pathlib import Path

import pytest
import yaml

from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.backends.base import SamplingSettings
from trl_credit.evaluation.presets import PRESETS
from trl_credit.evaluation.run import make_backend


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "`n` must be at least 1, got 0"),
        ({"n": True}, "`n` must be"),
        ({"limit": -1}, "`limit` must be"),
        ({"preset": "dapoo"}, "`preset`: unknown value 'dapoo'. Did you mean 'dapo'"),
        ({"backend": "vlm"}, "`backend`: unknown value 'vlm'. Did you mean 'vllm'"),
        ({"temperature": -0.1}, "`temperature` must be non-negative, got -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1"),
        ({"top_k": 1.5}, "`top_k` must be a whole number"),
        ({"min_p": 2.0}, "`min_p` must be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be positive"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, got 0"),
        ({"stop": [""]}, "`stop` must be"),
        ({"tasks": []}, "`tasks` must be"),
        ({"prompt_template": "Solve it."}, r"`prompt_template` must contain the slot \{problem\}"),
        ({"answer_pattern": "("}, "`answer_pattern` '\\(' is no regular expression"),
        ({"answer_pattern": "#"}, "must have one group"),
        ({"answer_pattern": "gsm8"}, "`answer_pattern`: unknown name 'gsm8'. Did you mean 'gsm8k'"),
        ({"plain_prompts": True, "system_prompt": "x"}, "no effect with `plain_prompts`"),
        ({"base_url": "http://x", "backend": "vllm"}, "`base_url` has no effect"),
        ({"backend": "server"}, "`backend: server` needs `base_url`"),
        ({"base_url": []}, "`base_url` is an empty list"),
        ({"chat_template_kwargs": "{"}, "`chat_template_kwargs` is not valid YAML"),
        ({"vllm_kwargs": "[1]"}, "`vllm_kwargs` must be a mapping"),
        ({"recipe": "no.yaml"}, "`recipe`: cannot read 'no.yaml'"),
        ({"model": 5}, "`model` must be text, got 5"),
        ({"tasks": 5}, "`tasks` must be a list of texts, got 5"),
        ({"stop": 3}, "`stop` must be a list of texts, got 3"),
        ({"seed": "abc"}, "`seed` must be a whole number, got 'abc'"),
        ({"max_retries": "x"}, "`max_retries` must be a whole number, at least 0, got 'x'"),
        ({"request_timeout": 0.0}, "`request_timeout` must be positive, got 0.0"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig(**{"model": "m", **settings})


def test_defaults_are_the_published_ones():
    sampling = EvalConfig(model="m").sampling()
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 0.7, 20_480)
    assert EvalConfig(model="m", preset="qwen3-thinking", top_k=5).sampling() == SamplingSettings(
        temperature=0.6, top_p=0.95, top_k=5, max_tokens=38_912
    )
    assert EvalConfig(model="m").n == 32
    assert all(preset.source for preset in PRESETS.values())


def test_the_folder_has_the_models_name():
    assert EvalConfig(model="Qwen/Qwen3-8B").run_folder() == Path("outputs/eval/Qwen-Qwen3-8B")
    assert EvalConfig(model="./out/x/").run_folder() == Path("outputs/eval/out-x")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"concurrency": 3}, "concurrency"),
        ({"backend": "transformers", "vllm_kwargs": {"a": 1}}, "vllm_kwargs"),
        ({"base_url": "http://127.0.0.1:1/v1", "dtype": "bfloat16"}, "dtype"),
        ({"backend": "server", "base_url": "http://127.0.0.1:1/v1", "batch_size": 3}, "batch_size"),
        ({"backend": "vllm", "request_timeout": 3.0}, "request_timeout"),
    ],
)
def test_settings_of_other_backends_have_no_effect(settings, field):
    with pytest.raises(ValueError, match=f"`{field}` has no effect with the backend"):
        make_backend(EvalConfig(model="trl_credit:quickstart", **settings))


def test_a_recipe_gives_what_is_not_set(tmp_path, sums):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"output_dir": "out", "eval": {"tasks": [sums], "n": 4, "every": 5, "top_p": 0.9}})
    )
    found = EvalConfig(recipe=str(recipe), n=6)
    assert (found.model, found.tasks, found.n, found.top_p) == ("out", [sums], 6, 0.9)
