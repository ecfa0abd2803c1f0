"""Items of the benchmark and their labels."""

import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers import CHAT_TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_credit.bench.scores import (
    item_scores,
)
from trl_credit.bench.tasks import LENGTHS, OWN_ERRORS, RENDERINGS, make_items, prompt_for, tokens_and_labels, variants
from trl_credit.toy.build_model import build_tokenizer


every_variant = pytest.mark.parametrize("variant", [name for name in variants() if name not in OWN_ERRORS])

every_rendering = pytest.mark.parametrize("rendering", RENDERINGS)


# Tasks


def wrong_characters(item) -> list[int]:
    """Places of the characters of the first wrong result that differ from the right one, recomputed from the text."""
    for match in re.finditer(r"(\d+) ?\+ ?(\d+) ?= ?(\d+)", item.completion):
        right = str(int(match[1]) + int(match[2]))
        if match[3] != right:
            assert len(right) == len(match[3])
            return [match.start(3) + i for i, (a, b) in enumerate(zip(right, match[3], strict=True)) if a != b]
    return []


@every_rendering
@every_variant
def test_spans_are_what_is_wrong(variant, rendering):
    for item in make_items(variant, 50, seed=3, rendering=rendering):
        ((start, stop),) = item.spans
        if variant != "altered_copy":
            assert wrong_characters(item) == [start]
            assert stop == start + 1
            stated = int(re.findall(r"\d+", item.completion)[-1])
            assert stated != sum(map(int, re.findall(r"\d+", item.prompt)))
            continue
        source = item.prompt[1:-1] if rendering == "compact" else item.prompt.partition(": ")[2]
        assert source != item.completion
        altered = item.completion[start:stop]
        before, after = item.completion[:start], item.completion[stop:]
        assert source.startswith(before)
        assert source.endswith(after)
        assert source[len(before) : len(source) - len(after)] != altered


@every_rendering
def test_every_other_step_follows(rendering):
    """One mistake, from which the rest is computed."""
    for item in make_items("planted_error", 50, seed=1, rendering=rendering):
        steps = re.findall(r"(\d+) ?\+ ?(\d+) ?= ?(\d+)", item.completion)
        assert sum(int(a) + int(b) != int(c) for a, b, c in steps) == 1
        assert all(before[2] == after[0] for before, after in pairwise(steps))
        assert steps[-1][2] == re.findall(r"\d+", item.completion)[-1]


@every_rendering
@every_variant
def test_items_are_seeded(variant, rendering):
    items = make_items(variant, 5, seed=1, rendering=rendering)
    assert items == make_items(variant, 5, seed=1, rendering=rendering)
    assert items == make_items(variant, 9, seed=1, rendering=rendering)[:5]
    assert items != make_items(variant, 5, seed=2, rendering=rendering)


@every_rendering
@every_variant
def test_siblings_are_right_or_wrong(variant, rendering):
    """Three right and four wrong completions of the item's own prompt, and a right solution for hints."""
    for item in make_items(variant, 20, seed=5, rendering=rendering):
        assert [right for _, right in item.siblings] == [True] * 3 + [False] * 4
        assert set(item.columns) == {"answer", "solution"}
        for text, right in [*item.siblings, (item.columns["solution"], True)]:
            if variant != "altered_copy":
                total = sum(map(int, re.findall(r"\d+", item.prompt)))
                assert (int(re.findall(r"\d+", text)[-1]) == total) == right
                assert bool(wrong_characters(dataclasses.replace(item, completion=text))) != right
                assert item.columns["answer"] == str(total)
                continue
            source = item.prompt[1:-1] if rendering == "compact" else item.prompt.partition(": ")[2]
            assert (text == source) == right
            assert len(text.split()) == len(source.split())


@every_rendering
@every_variant
def test_position_tells_nothing_on_average(variant, rendering):
    tokenizer = build_tokenizer()
    places = []
    for item in make_items(variant, 600, seed=7, rendering=rendering):
        _, labels = tokens_and_labels(item, tokenizer)
        places.append(item_scores(np.arange(len(labels)), labels)["auroc"])
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)


@every_rendering
def test_lengths_are_of_the_same_item(rendering):
    items = {name: make_items(name, 20, rendering=rendering) for name in LENGTHS}
    lengths = {name: np.mean([len(item.completion) for item in rows]) for name, rows in items.items()}
    assert lengths["length_2x"] > 1.6 * lengths["length_1x"]
    assert lengths["length_4x"] > 3 * lengths["length_1x"]
    for short, long in zip(items["length_1x"], items["length_4x"], strict=True):
        terms = re.findall(r"\d+", short.prompt)
        assert re.findall(r"\d+", long.prompt)[: len(terms)] == terms


def word_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges, as SmolLM2's: digits one by one, a space belongs to the word after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({piece for text in pieces for piece in re.findall(r" ?[A-Za-z]+", text)})
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    merges = []
    for word in words:
        token = word.replace(" ", "Ġ")
        for end in range(2, len(token) + 1):
            if token[:end] not in vocabulary:
                vocabulary[token[:end]] = len(vocabulary)
                merges.append((token[: end - 1], token[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@every_variant
def test_labels_with_tokens_of_several_characters(variant):
    items = make_items(variant, 20, rendering="text")
    tokenizer = word_tokenizer([item.completion for item in items])
    for item in items:
        ids, labels = tokens_and_labels(item, tokenizer)
        assert len(ids) == len(labels) < len(item.completion)
        deciding = tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label])
        ((start, stop),) = item.spans
        assert deciding.strip() == item.completion[start:stop]
        assert tokenizer.decode(ids[:-1]) == item.completion
        assert (ids[-1], labels[-1]) == (tokenizer.eos_token_id, False)


def test_a_token_that_overlaps_decides():
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "12": 1, "+": 2, "30": 3, "=": 4, "43": 5}))
    tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    item = dataclasses.replace(
        make_items("planted_error", 1)[0], completion="12+30=43", spans=((7, 8),), finished=False
    )
    assert tokens_and_labels(item, tokenizer) == ([1, 2, 3, 4, 5], [False] * 4 + [True])


def test_prompts():
    tokenizer = build_tokenizer()
    item = make_items("planted_error", 1, rendering="text")[0]
    assert prompt_for(item, tokenizer, "text") == item.prompt + "\n\n"
    tokenizer.chat_template = CHAT_TEMPLATE
    assert prompt_for(item, tokenizer, "text") == [{"role": "user", "content": item.prompt}]
    compact = make_items("style", 1)[0]
    assert prompt_for(compact, tokenizer, "compact") == compact.prompt
    assert compact.prompt.startswith("~")


def test_unknown_tasks():
    assert variants(["length", "length_2x", "style"]) == [*LENGTHS, "style"]
    for function, arguments, message in [
        (variants, [["planted_eror"]], "Did you mean 'planted_error'"),
        (make_items, ["styl", 1], "Did you mean 'style'"),
        (make_items, ["style", 1, 0, "txt"], "Did you mean 'text'"),
        (make_items, ["style", 0], "at least 1"),
        (make_items, ["own_error", 1], "sampled from a policy"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    with pytest.raises(ValueError, match="SlowTokenizer does not tell"):
        tokens_and_labels(make_items("style", 1)[0], slow)
