"""The embedded model and its tokenizer."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import (
    NEGATIVE_MARK,
    correct_answer,
    make_dataset,
    make_problem,
    prompt_of,
    written_solution,
)
from trl_credit.toy.build_model import build_model, build_tokenizer, save


def test_tokenizer_is_one_token_per_character():
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    text = "83+48=131;#!\nNote: {a} b"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert ids == build_tokenizer()(text)["input_ids"]


def accuracy(model, tokenizer, prefix, size=256):
    dataset = make_dataset(size, seed=12345)
    inputs = tokenizer([prefix + prompt for prompt in dataset["prompt"]], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    ids = model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=True, top_k=0, max_new_tokens=40
    )
    texts = tokenizer.batch_decode(ids[:, inputs.input_ids.size(1) :], skip_special_tokens=True)
    return sum(correct_answer(texts, dataset["answer"])) / size


def test_embedded_model_starts_where_it_should():
    """Between 50 and 70 % as asked; asked for a wrong answer, it mostly gives one."""
    model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    assert 0.5 < accuracy(model, tokenizer, "") < 0.72
    assert accuracy(model, tokenizer, NEGATIVE_MARK) < 0.25
    assert 0.5e6 < model.num_parameters() < 2e6


@pytest.mark.slow
def test_a_smaller_model_builds_the_same_way(tmp_path):
    def build():
        return build_model(num_batches=300, batch_size=32, hidden_size=32, num_layers=1, num_terms=2, log_every=0)

    model, tokenizer = build()
    again, _ = build()
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    # it has learned the format: a written-out solution is likelier than one with its steps' digits shuffled
    rng = random.Random(0)
    terms = make_problem(rng, 2)
    text = written_solution(terms, rng)

    def loss(completion):
        ids = tokenizer(prompt_of(terms) + completion, return_tensors="pt").input_ids
        return model(ids, labels=ids).loss.item()

    assert loss(text) < loss("".join(rng.sample(text, len(text)))) - 1.0
    save(model, tokenizer, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.bfloat16
