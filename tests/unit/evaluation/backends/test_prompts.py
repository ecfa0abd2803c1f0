"""Prompts rendered for a backend."""

import pytest
from support.generation import requests_for

from trl_credit.evaluation.backends.base import SamplingSettings
from trl_credit.evaluation.backends.transformers import TransformersBackend
from trl_credit.model_files import LocalModel


SAMPLING = SamplingSettings(temperature=1.0, max_tokens=12)


def test_chat_prompts(tiny_model):
    message = ({"role": "user", "content": "1+1"},)
    backend = TransformersBackend(LocalModel.find(tiny_model), chat_template_kwargs={"loud": True})
    from trl_credit.evaluation.backends.prompts import render

    (item,) = render(requests_for([message]), backend.tokenizer, backend.chat_template_kwargs)
    assert backend.tokenizer.decode(item.ids) == backend.tokenizer.decode(
        backend.tokenizer("user:1+1;assistant:!", add_special_tokens=False)["input_ids"]
    )
    (item,) = render(requests_for([message]), backend.tokenizer, {})
    assert backend.tokenizer("assistant:")["input_ids"] == item.ids[-len("assistant:") :]


def test_prompts_that_differ_beside_their_texts(tiny_model):
    from trl_credit.evaluation.backends.prompts import render

    tokenizer = LocalModel.find(tiny_model).tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ m['tool_calls'] }}{% endfor %}"
    prompts = [({"role": "user", "content": "1", "tool_calls": city},) for city in ("ab", "cd")]
    first, second = render(requests_for(prompts), tokenizer, {})
    assert first.ids != second.ids


def test_messages_need_a_chat_template():
    backend = TransformersBackend(LocalModel.find("trl_credit:quickstart"))
    with pytest.raises(ValueError, match="no chat template: set `plain_prompts: true`"):
        backend.prepare(requests_for([({"role": "user", "content": "1+1"},)]), SAMPLING)
