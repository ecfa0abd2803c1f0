"""The model's own errors, sampled from the embedded model."""

import re

import pytest
import torch

from trl_credit.bench.own_errors import find_mistake, sample_own_errors
from trl_credit.bench.tasks import OWN_ERRORS
from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.methods.registry import METHODS
from trl_credit.model_files import embedded_model_path


every_own_error = pytest.mark.parametrize("variant", OWN_ERRORS)


# The policy's own errors


@pytest.fixture(scope="module")
def embedded_scorer():
    return CreditScorer(embedded_model_path(), {"uniform": METHODS["uniform"]()}, max_completion_length=60)


def written_with(terms: list[int], noise: list[str], changed: int | None = None, value: int = 0) -> str:
    """The solution whose number at the place `changed` is `value`, from which the rest follows."""
    numbers: list[int] = []

    def number(follows: int) -> int:
        numbers.append(value if len(numbers) == changed else follows)
        return numbers[-1]

    text, total = "", terms[0]
    for term, letters in zip(terms[1:], noise, strict=True):
        left, right = number(total), number(term)
        total = number(left + right)
        text += f"{letters}{left}+{right}={total};"
    return f"{text}#{number(total)}"


@every_own_error
def test_own_errors_against_every_single_mistake(variant, embedded_scorer):
    tokenizer = embedded_scorer.tokenizer
    found = sample_own_errors(embedded_scorer, variant, 12)
    assert len(found.items) == len({item.prompt for item in found.items}) == 12
    assert sum(found.counts.values()) == 2 * found.counts["sampled"]
    for item, (ids, labels) in zip(found.items, found.encoded, strict=True):
        terms = [int(term) for term in re.findall(r"\d+", item.prompt)]
        noise = re.findall(r"[a-z]+", item.completion) or [""] * (len(terms) - 1)
        assert all(len(letters) == (6 if variant == "own_error_style" else 0) for letters in noise)
        values = {int(value) for value in re.findall(r"\d+", item.completion)}
        places = 3 * (len(terms) - 1) + 1
        causes = {(i, v) for i in range(places) for v in values if written_with(terms, noise, i, v) == item.completion}
        assert len(causes) == 1
        right = written_with(terms, noise)
        (place,) = [i for i, label in enumerate(labels) if label]
        assert right.startswith(item.completion[:place])
        assert not right.startswith(item.completion[: place + 1]) or place == len(item.completion)
        assert tokenizer.decode(ids) == item.completion + tokenizer.eos_token
        assert item.completion.rpartition("#")[2] != str(sum(terms))
        assert item.prompt.startswith("~") == (variant == "own_error_style")


@every_own_error
def test_siblings_of_own_errors(variant, embedded_scorer):
    """Seven samples of the item's prompt, at least one of them right: if need be, a written one."""
    tokenizer = embedded_scorer.tokenizer
    found = sample_own_errors(embedded_scorer, variant, 24)
    written = 0
    for item, siblings in zip(found.items, found.siblings, strict=True):
        assert len(siblings) == 7
        total = sum(map(int, re.findall(r"\d+", item.prompt)))
        assert item.columns["answer"] == str(total)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in siblings]
        assert [reward for _, reward in siblings] == [float(text.endswith(f"#{total}")) for text in texts]
        assert any(reward for _, reward in siblings)
        written += texts[-1] == item.columns["solution"] and not any(reward for _, reward in siblings[:-1])
        style = "letters" if variant == "own_error_style" else "plain"
        terms = [int(term) for term in re.findall(r"\d+", item.prompt)]
        assert find_mistake(terms, item.columns["solution"], style)[0] == "right"
    assert found.written <= written


def test_own_errors_are_seeded_and_leave_the_generator(embedded_scorer):
    state = torch.get_rng_state()
    found = sample_own_errors(embedded_scorer, "own_error", 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = sample_own_errors(embedded_scorer, "own_error", 3, seed=1)
    assert (again.items, again.counts) == (found.items, found.counts)
    assert sample_own_errors(embedded_scorer, "own_error", 3, seed=2).items != found.items
    torch.set_rng_state(state)


def test_an_end_that_came_too_early(embedded_scorer, monkeypatch):
    tokenizer = embedded_scorer.tokenizer
    eos = tokenizer.eos_token_id

    def generate(examples, num_generations, **kwargs):
        texts = []
        for example in examples:
            terms = [int(term) for term in re.findall(r"\d+", example["prompt"])]
            texts += [written_with(terms, [""] * (len(terms) - 1))[:-1]] * num_generations
        return [
            Completion(prompt=example["prompt"], token_ids=[*tokenizer(text)["input_ids"], eos])
            for text, example in zip(texts, [e for e in examples for _ in range(num_generations)], strict=True)
        ]

    monkeypatch.setattr(embedded_scorer, "generate", generate)
    found = sample_own_errors(embedded_scorer, "own_error", 4)
    assert len(found.items) == 4
    for ids, labels in found.encoded:
        assert [token for token, label in zip(ids, labels, strict=True) if label] == [eos]
