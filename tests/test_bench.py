"""CreditBench: labels against the sums, scores and gradients against brute force, the command for real."""

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import CHAT_TEMPLATE, save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from test_methods import make_inputs, mapped
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trl_credit import CreditInputs, CreditMethod, build_credit
from trl_credit.bench import cli, report, run
from trl_credit.bench.baselines import BASELINES, baselines, is_trivial
from trl_credit.bench.gradients import (
    Comparison,
    Group,
    Moments,
    bias_cosine,
    compare_gradients,
    cosine,
    group_advantages,
    group_gradients,
    sample_groups,
    uniform_gradient,
)
from trl_credit.bench.own_errors import find_mistake, sample_own_errors
from trl_credit.bench.run import BenchSettings, build_methods
from trl_credit.bench.scores import (
    METRICS,
    compare_with_baselines,
    item_scores,
    paired_difference,
    position_profile,
    summary,
    verdict_sentence,
)
from trl_credit.bench.sweeps import drifted_policies, sweep_methods, with_reference
from trl_credit.bench.tasks import LENGTHS, OWN_ERRORS, RENDERINGS, make_items, prompt_for, tokens_and_labels, variants
from trl_credit.inspection.scoring import CreditScorer
from trl_credit.methods import DGPO, GCPO, Paper
from trl_credit.methods.ops import effective_token_fraction, mean_one
from trl_credit.methods.registry import METHODS
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import make_problem, solution_parts
from trl_credit.toy.build_model import build_tokenizer


every_variant = pytest.mark.parametrize("variant", [name for name in variants() if name not in OWN_ERRORS])
every_own_error = pytest.mark.parametrize("variant", OWN_ERRORS)
every_rendering = pytest.mark.parametrize("rendering", RENDERINGS)
every_baseline = pytest.mark.parametrize("method", list(baselines().values()), ids=list(baselines()))
SEEDED = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model"
    save_tiny_model(path, scale=2.0)
    return str(path)


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


def test_own_errors_are_seeded_and_leave_the_generator(embedded_scorer):
    state = torch.get_rng_state()
    found = sample_own_errors(embedded_scorer, "own_error", 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = sample_own_errors(embedded_scorer, "own_error", 3, seed=1)
    assert (again.items, again.counts) == (found.items, found.counts)
    assert sample_own_errors(embedded_scorer, "own_error", 3, seed=2).items != found.items
    torch.set_rng_state(state)


@SEEDED
@given(seed=st.integers(0, 10_000), num_terms=st.integers(2, 5), style=st.sampled_from(["plain", "letters"]))
def test_judged_as_written(seed, num_terms, style):
    rng = random.Random(seed)
    terms = make_problem(rng, num_terms)
    right = "".join(text for text, _ in solution_parts(terms, rng, style=style))
    assert find_mistake(terms, right, style) == ("right", None)
    parts = solution_parts(terms, rng, {rng.randrange(num_terms - 1)}, style)
    wrong = "".join(text for text, _ in parts)
    start = sum(len(text) for text, _ in parts[: [role for _, role in parts].index("error")])
    assert find_mistake(terms, wrong, style) == ("usable", (start, start + 1))
    for broken in (wrong[:-1] + "x", wrong + ";", wrong.replace("#", ""), wrong.replace("+", "+0", 1), ""):
        assert find_mistake(terms, broken, style) == ("malformed", None)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("83+48=131;131+14=145;#145", ("right", None)),
        ("83+48=132;132+14=145;#145", ("right", None)),  # two mistakes that cancel
        ("83+48=132;132+14=146;#146", ("usable", (8, 9))),
        ("83+48=191;191+14=205;#205", ("usable", (7, 8))),
        ("83+48=119;119+14=133;#133", ("usable", (7, 8))),  # the first of two digits
        ("83+49=132;132+14=146;#146", ("usable", (4, 5))),  # a term
        ("83+48=131;137+14=151;#151", ("usable", (12, 13))),  # the result before
        ("83+48=131;131+14=145;#146", ("usable", (24, 25))),  # the answer
        ("83+48=13;13+14=27;#27", ("usable", (8, 9))),  # a digit is missing
        ("83+48=1311;1311+14=1325;#1325", ("usable", (9, 10))),  # there is one more
        ("83+48=131;131+14=145;#14", ("usable", (24, 24))),  # the end came too early
        ("83+48=132;132+14=147;#147", ("several_mistakes", None)),
        ("83+48=132;131+14=145;#146", ("several_mistakes", None)),
        ("83+48=131;#131", ("malformed", None)),
        ("83+48=131;131+14=145;0+0=0;#145", ("malformed", None)),
        ("83+48=131;131+14=0145;#145", ("malformed", None)),
        ("83+48=131;131+14=145;#145 ", ("malformed", None)),
        ("83+48=131;131+14=145;#145\n", ("malformed", None)),
        ("83+48=131;131+14=14\u0665;#145", ("malformed", None)),
    ],
)
def test_judge(completion, expected):
    assert find_mistake([83, 48, 14], completion) == expected


def test_letters_are_six():
    assert find_mistake([8, 1], "abcdef8+1=7;#7", "letters") == ("usable", (10, 11))
    for text in ("8+1=7;#7", "abcde8+1=7;#7", "abcdefg8+1=7;#7", "abcdeF8+1=7;#7"):
        assert find_mistake([8, 1], text, "letters") == ("malformed", None)


def test_an_end_that_came_too_early(embedded_scorer, monkeypatch):
    tokenizer = embedded_scorer.tokenizer
    eos = tokenizer.eos_token_id

    def generate(examples, num_generations, **kwargs):
        texts = []
        for example in examples:
            terms = [int(term) for term in re.findall(r"\d+", example["prompt"])]
            texts += [written_with(terms, [""] * (len(terms) - 1))[:-1]] * num_generations
        return [
            run.Completion(prompt=example["prompt"], token_ids=[*tokenizer(text)["input_ids"], eos])
            for text, example in zip(texts, [e for e in examples for _ in range(num_generations)], strict=True)
        ]

    monkeypatch.setattr(embedded_scorer, "generate", generate)
    found = sample_own_errors(embedded_scorer, "own_error", 4)
    assert len(found.items) == 4
    for ids, labels in found.encoded:
        assert [token for token, label in zip(ids, labels, strict=True) if label] == [eos]


# Baselines: held to what every method is held to

shapes = given(seed=st.integers(0, 10_000), batch=st.integers(2, 6), length=st.integers(1, 40))


@every_baseline
@SEEDED
@shapes
def test_baselines_are_weights(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights = method.weights(inputs)
    assert weights.dtype == torch.float32
    assert (torch.isfinite(weights) & (weights >= 0)).all()
    assert (weights[~inputs.mask] == 0).all()
    torch.testing.assert_close(weights.sum(-1), inputs.mask.sum(-1).float(), rtol=1e-5, atol=1e-6)
    fraction = effective_token_fraction(weights, inputs.mask)[inputs.mask.any(-1)]
    assert ((fraction > 0) & (fraction <= 1 + 1e-5)).all()


@every_baseline
@SEEDED
@shapes
def test_baselines_depend_on_the_completion_only(method, seed, batch, length):
    inputs = make_inputs(method, seed, batch, length)
    weights = method.weights(inputs)
    assert torch.equal(weights, method.weights(inputs))
    padded = mapped(inputs, lambda x: torch.nn.functional.pad(x, (0, 5), value=False if x.dtype == torch.bool else 9.0))
    torch.testing.assert_close(method.weights(padded)[:, :length], weights, rtol=1e-6, atol=1e-7)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(method.weights(mapped(inputs, lambda x: x[order])), weights[order], rtol=1e-6, atol=1e-7)


@every_baseline
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_baselines_do_not_depend_on_the_dtype(method, dtype):
    inputs = make_inputs(method, 0, 4, 33, dtype)
    wide = mapped(inputs, lambda x: x if x.dtype == torch.bool else x.double())
    torch.testing.assert_close(method.weights(inputs), method.weights(wide), rtol=1e-4, atol=1e-5)


@every_baseline
def test_baselines_round_trip(method):
    assert build_credit(method.to_dict()) == method
    assert method.paper.id in method.paper.citation
    assert method.paper.title in method.paper.citation
    assert is_trivial(method)


def test_what_baselines_follow():
    inputs = CreditInputs(
        mask=torch.tensor([[True, True, False, True]]),
        policy_logps=torch.tensor([[-1.0, -3.0, -9.0, 0.0]]),
        policy_entropy=torch.tensor([[0.0, 0.5, 9.0, 1.5]]),
        vocab_size=9,
    )
    methods = baselines()
    expected = {
        "surprisal": [0.75, 2.25, 0, 0],
        "entropy": [0, 0.75, 0, 2.25],
        "position late": [0.5, 1, 0, 1.5],
        "position early": [1.5, 1, 0, 0.5],
        "uniform": [1, 1, 0, 1],
    }
    for name, row in expected.items():
        torch.testing.assert_close(methods[name].weights(inputs), torch.tensor([row], dtype=torch.float32))
    for broken in (math.nan, -math.inf):
        bad = dataclasses.replace(inputs, policy_logps=torch.tensor([[-1.0, broken, -9.0, 0.0]]))
        assert torch.equal(methods["surprisal"].weights(bad), inputs.mask.float())
    with pytest.raises(ValueError, match="Did you mean 'early'"):
        BASELINES["position"]("earl")


def test_random_is_random():
    inputs = make_inputs(METHODS["uniform"](), 0, 200, 50)
    inputs = dataclasses.replace(inputs, mask=torch.ones_like(inputs.mask))
    scores = [BASELINES["random"](seed).weights(inputs) for seed in (0, 1)]
    assert abs(np.corrcoef(scores[0].flatten(), scores[1].flatten())[0, 1]) < 0.05
    for values in (inputs.policy_logps, inputs.policy_entropy, torch.arange(50).expand(200, 50)):
        assert abs(np.corrcoef(scores[0].flatten(), values.flatten())[0, 1]) < 0.05
    assert scores[0].mean(0).std() < 0.1  # every place gets the same on average
    assert scores[0].std() == pytest.approx(1 / math.sqrt(3), rel=0.05)


# Scores


def slow_auroc(weights, labels) -> float:
    pairs = [
        (a, b) for a, x in zip(weights, labels, strict=True) if x for b, y in zip(weights, labels, strict=True) if not y
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def slow_average_precision(weights, labels) -> float:
    """Sum over thresholds of precision times the step in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(weights), reverse=True):
        taken = [y for w, y in zip(weights, labels, strict=True) if w >= threshold]
        recall = sum(taken) / sum(labels)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


@SEEDED
@given(seed=st.integers(0, 10_000), length=st.integers(2, 30))
def test_scores(seed, length):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 6, length).astype(float) + 0.1  # ties
    labels = rng.random(length) < 0.3
    labels[rng.integers(length)] = True
    scores = item_scores(weights, labels)
    assert scores["mass"] == pytest.approx(sum(w for w, y in zip(weights, labels, strict=True) if y) / weights.sum())
    assert scores["ratio"] == pytest.approx(scores["mass"] / (labels.sum() / length))
    if labels.all():
        assert all(math.isnan(scores[name]) for name in ("auroc", "ap", "rank"))
        return
    assert scores["auroc"] == pytest.approx(slow_auroc(weights, labels), abs=1e-12)
    assert scores["ap"] == pytest.approx(slow_average_precision(weights, labels), abs=1e-12)
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, weights), abs=1e-12)
    assert scores["ap"] == pytest.approx(average_precision_score(labels, weights), abs=1e-12)
    first = int(np.flatnonzero(labels)[0])
    assert scores["rank"] == pytest.approx(slow_auroc(weights, [i == first for i in range(length)]), abs=1e-12)


@given(length=st.integers(2, 20), place=st.integers(0, 19))
def test_constant_weights_score_at_chance(length, place):
    labels = [i == place % length for i in range(length)]
    scores = item_scores([0.7] * length, labels)
    assert scores == pytest.approx({"auroc": 0.5, "ap": 1 / length, "mass": 1 / length, "ratio": 1.0, "rank": 0.5})


def test_scores_that_are_not_defined():
    single = item_scores([1.0], [True])
    assert (single["mass"], single["ratio"]) == (1.0, 1.0)
    assert all(math.isnan(single[name]) for name in ("auroc", "ap", "rank"))
    assert all(math.isnan(value) for value in item_scores([1.0, 1.0], [False, False]).values())
    assert math.isnan(item_scores([0.0, 0.0], [True, False])["mass"])
    with pytest.raises(ValueError, match="weights for"):
        item_scores([1.0], [True, False])
    assert summary([math.nan])["n"] == 0
    one = summary([2.0, math.nan])
    assert (one["mean"], one["n"]) == (2.0, 1)
    assert math.isnan(one["stderr"])


def test_scores_see_the_mask():
    assert item_scores([9, 1, 2], [True, False, True], [False, True, True]) == item_scores([1, 2], [False, True])


def test_paired_differences():
    a, b = [0.9, 0.8, 0.7, 0.9], [0.5, 0.6, 0.7, 0.4]
    result = paired_difference(a, b)
    difference = np.subtract(a, b)
    half = 3.182446305284263 * difference.std(ddof=1) / 2  # Student's t at 3 degrees of freedom
    assert result["difference"] == pytest.approx(difference.mean())
    assert (result["low"], result["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert paired_difference(a, a) == {"difference": 0, "low": 0, "high": 0, "n": 4}
    assert paired_difference([1.0], [0.0])["low"] == -math.inf


def test_verdicts():
    rng = np.random.default_rng(0)
    base = rng.random(50)
    scores = {
        "good": {"auroc": base + 0.2 + 0.05 * rng.random(50)},
        "same": {"auroc": base + 0.01 * rng.standard_normal(50)},
        "weak": {"auroc": base - 0.3},
        "strong": {"auroc": base},
    }
    good = compare_with_baselines(scores, "good", ["weak", "strong"])
    same = compare_with_baselines(scores, "same", ["weak", "strong"])
    assert (good["baseline"], good["beats"], same["beats"]) == ("strong", True, False)
    assert "does not beat the best trivial baseline on any task" in verdict_sentence("m", {"x": same})
    assert "beats the best trivial baseline on every task" in verdict_sentence("m", {"x": good})
    none = paired_difference([math.nan], [math.nan]) | {"baseline": "strong", "beats": False}
    assert verdict_sentence("m", {"x": good, "y": none}) == verdict_sentence("m", {"x": good})
    assert verdict_sentence("m", {"y": none}) == "m: too few items to tell."
    both = verdict_sentence("m", {"x": good, "y": same}, "After 3 updates")
    assert both.startswith("After 3 updates, m beats the best trivial baseline, in AUROC, on x (+0.2")
    assert "it does not on y (" in both


def test_position_profile_leaves_the_completion_out():
    labels = [[i == 7 for i in range(10)]] * 5
    assert position_profile(labels) == [1.0] * 5
    labels = [[i == place for i in range(10)] for place in range(10)]
    # The others never have it where this one has it
    assert max(position_profile(labels)) == 0.0


# Gradients


def naive_gradient(model, group: Group, weights) -> torch.Tensor:
    """-(1/N) sum_i sum_t A_i w_it log pi(y_it), token by token."""
    loss = torch.zeros(())
    for completion, advantage, row in zip(group.completions, group.advantages, weights, strict=True):
        ids = torch.tensor([group.prompt + completion])
        logps = model(ids).logits[0].double().log_softmax(-1)
        for t, token in enumerate(completion):
            loss = loss - advantage * row[t] * logps[len(group.prompt) + t - 1, token] / len(group.completions)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).float()


def random_groups(number: int, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(number):
        completions = [rng.integers(3, 60, rng.integers(1, 6)).tolist() for _ in range(4)]
        rewards = torch.tensor(rng.integers(0, 2, 4), dtype=torch.float32)
        groups.append(Group(rng.integers(3, 60, 4).tolist(), completions, rewards, group_advantages(rewards)))
    return groups


def random_weights(groups: list[Group], seed: int = 1):
    rng = np.random.default_rng(seed)
    return [
        {
            "uniform": [np.ones(len(c)) for c in group.completions],
            "other": [w * len(c) / w.sum() for c in group.completions for w in [rng.random(len(c))]],
        }
        for group in groups
    ]


def test_advantages_are_trl_s():
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(advantages, torch.tensor([0.5, -0.5, -0.5, 0.5]) / (math.sqrt(1 / 3) + 1e-4))
    assert (group_advantages(torch.ones(4)) == 0).all()


def test_gradients(model_path):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    groups = random_groups(9)
    weights = random_weights(groups)
    naive = {
        label: torch.stack([naive_gradient(model, g, w[label]) for g, w in zip(groups, weights, strict=True)])
        for label in ("uniform", "other")
    }
    place = next(i for i, group in enumerate(groups) if (group.advantages != 0).any())
    for label, gradient in group_gradients(model, groups[place], weights[place], pad=0):
        torch.testing.assert_close(gradient, naive[label][place], rtol=1e-3, atol=1e-5)

    target_groups = random_groups(12, seed=5)
    target, halves = uniform_gradient(model, target_groups, pad=0)
    own = torch.stack([naive_gradient(model, g, [np.ones(len(c)) for c in g.completions]) for g in target_groups])
    torch.testing.assert_close(target, own.mean(0), rtol=1e-3, atol=1e-5)
    assert halves == pytest.approx(cosine(own[::2].sum(0), own[1::2].sum(0)), abs=1e-4)

    results = compare_gradients(model, groups, weights, target, pad=0, batch_sizes=(1, 4, 99))
    for label, gradients in naive.items():
        gradients = gradients.double()
        result, t = results[label], target.double()
        trace = gradients.var(0, unbiased=True).sum()
        mean = gradients.mean(0)
        squared = mean.square().sum() - trace / 9
        assert result["variance"] == pytest.approx(trace.item(), rel=1e-4)
        if squared > 0:
            assert result["relative_variance"] == pytest.approx((trace / squared).item(), rel=1e-2)
        assert result["mean_cosine"] == pytest.approx(cosine(mean, t), abs=1e-4)
        assert set(result["cosine"]) == {"1", "4"}
        batches = [gradients[i : i + 4].mean(0) for i in (0, 4)]
        cosines = [cosine(batch, t) for batch in batches]
        assert result["cosine"]["4"]["mean"] == pytest.approx(np.mean(cosines), abs=1e-4)
        assert result["cosine"]["4"]["stderr"] == pytest.approx(np.std(cosines, ddof=1) / math.sqrt(2), abs=1e-4)
        nonzero = [g for g in gradients if g.any()]
        assert result["cosine"]["1"]["n"] == len(nonzero)  # a group without an advantage has no direction
        assert result["cosine"]["1"]["mean"] == pytest.approx(np.mean([cosine(g, t) for g in nonzero]), abs=1e-4)
        uniform_trace = naive["uniform"].double().var(0, unbiased=True).sum()
        assert result["variance_over_uniform"] == pytest.approx((trace / uniform_trace).item(), rel=1e-4)


def test_moments_and_the_cosine_without_noise():
    """About 1 for noisy estimates in the direction of uniform's, about 0 for those in another one."""
    generator = torch.Generator().manual_seed(0)
    direction, other = torch.zeros(300), torch.zeros(300)
    direction[0] = other[1] = 1.0
    target = direction + torch.randn(300, generator=generator) / math.sqrt(1000)
    uniform = Comparison(target, (), block=80)
    for row in direction + torch.randn(640, 300, generator=generator):
        uniform.add(row)
    assert bias_cosine(uniform, uniform) == (1.0, 0.0)
    for mean, expected in ((4 * direction, 1.0), (other, 0.0), ((direction + other) / 2, math.sqrt(0.5))):
        comparison = Comparison(target, (1, 64), block=80)
        rows = mean + torch.randn(640, 300, generator=generator)
        for row in rows:
            comparison.add(row)
        result = comparison.result()
        assert result["variance"] == pytest.approx(rows.double().var(0).sum().item(), rel=1e-5)
        assert result["cosine"]["64"]["n"] == 10
        cosine_, error = bias_cosine(comparison, uniform)
        assert cosine_ == pytest.approx(expected, abs=0.12)
        assert 0 < error < 0.2
    assert math.isnan(Moments(3).trace)
    assert math.isnan(cosine(torch.zeros(2), torch.ones(2)))


def test_sampled_groups(model_path):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    arguments = (model, tokenizer, ["1+2=", "10+20="], ["3", "30"])
    state = torch.get_rng_state()
    groups = sample_groups(*arguments, seed=0, group_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(group.completions) for group in groups] == [3, 3]
    assert groups[1].prompt == tokenizer("10+20=")["input_ids"]
    assert [g.completions for g in groups] == [g.completions for g in sample_groups(*arguments, 0, 3)]
    assert [g.completions for g in groups] != [g.completions for g in sample_groups(*arguments, 1, 3)]
    eos = tokenizer.eos_token_id
    assert all(eos not in completion[:-1] for group in groups for completion in group.completions)


def test_no_gradient_without_different_rewards(model_path):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    same = [dataclasses.replace(group, advantages=torch.zeros(4)) for group in random_groups(4)]
    with pytest.raises(ValueError, match="no gradient"):
        uniform_gradient(model, same, pad=0)


# Methods, sweeps, settings


@dataclasses.dataclass(frozen=True)
class Favourite(CreditMethod):
    """Your own method: all credit to one token.

    Args:
        token: Its place.
    """

    token: int = 0

    name = "favourite"
    paper = Paper(title="none", id="none", citation="none")

    def weights(self, inputs):
        scores = torch.zeros_like(inputs.policy_logps)
        scores[:, self.token] = 1.0
        return mean_one(scores, inputs.mask)


FAVOURITE = f"{__name__}.Favourite"


def test_methods_by_label():
    methods = build_methods(
        ["gcpo", '{"method": "dgpo", "temperature": 0.01}', "surprisal", FAVOURITE, "examples.custom_method.Surprisal"],
        compact=True,
    )
    assert list(methods)[:3] == ["gcpo", "dgpo", "favourite"]
    assert methods["gcpo"].negative_prompt == "!{prompt}"
    assert methods["dgpo"].temperature == 0.01
    assert list(methods)[4:] == list(baselines())  # those given are not there twice
    assert "examples.custom_method.surprisal" in methods
    assert build_methods(["gcpo"], compact=False)["gcpo"].negative_prompt == GCPO().negative_prompt
    with pytest.raises(ValueError, match="Did you mean 'surprisal'"):
        build_methods(["surprisl"], compact=True)
    with pytest.raises(ValueError, match="Did you mean 'temperature'"):
        build_methods(['{"method": "dgpo", "temperatur": 1}'], compact=True)


def test_sweeps_change_one_parameter():
    found = sweep_methods({"g": GCPO(negative_prompt="!{prompt}"), "d": DGPO(reference="x"), "other": DGPO()})
    assert {key[0] for key in found} == {"g", "d"}
    for (label, parameter, value), method in found.items():
        assert getattr(method, parameter) == value
        assert method.reference == "x" if label == "d" else method.negative_prompt == "!{prompt}"
    # Fractions above the mass are not allowed
    narrow = sweep_methods({"g": GCPO(top_fraction=0.3, top_mass=0.3)})
    assert [value for _, name, value in narrow if name == "top_fraction"] == [0.05, 0.1, 0.2]
    assert sweep_methods(baselines()) == {}


def test_references():
    assert with_reference(DGPO(), "x").reference == "x"
    assert with_reference(DGPO(reference="y"), "x").reference == "y"
    assert with_reference(GCPO(), "x") == GCPO()
    assert with_reference(DGPO(), None) == DGPO()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("styl",)}, "Did you mean 'style'"),
        ({"rendering": "compct"}, "Did you mean 'compact'"),
        ({"num_items": 1}, "`num_items` must be at least 2"),
        ({"groups": -1}, "`groups` must be at least 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        BenchSettings(**changes)


# The whole


def tiny(folder, model_path, **changes) -> BenchSettings:
    chosen = {
        "model": model_path,
        "reference": model_path,
        "methods": ("gcpo", "dgpo", FAVOURITE),
        "tasks": ("style", "length_1x"),
        "num_items": 6,
        "groups": 0,
        "output_dir": folder,
    }
    return BenchSettings(**(chosen | changes))


def test_runs_are_equal(tmp_path, model_path):
    first, second = tmp_path / "a", tmp_path / "b"
    results = run.run(tiny(first, model_path))
    run.run(tiny(second, model_path))
    names = {"bench.json", "bench.md", "auroc.png", "auroc.svg", "sweeps.png", "sweeps.svg"}
    assert {path.name for path in first.iterdir()} == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert json.loads((first / "bench.json").read_text()) == results
    assert results["settings"]["rendering"] == "compact"
    assert set(results["scores"]) == {"gcpo", "dgpo", "favourite", *baselines()}
    for tasks in results["scores"].values():
        assert set(tasks) == {"style", "length_1x"}
        assert set(tasks["style"]) == set(METRICS)
    assert results["scores"]["uniform"]["style"]["auroc"] == {"mean": 0.5, "stderr": 0.0, "median": 0.5, "n": 6}
    assert results["scores"]["dgpo"]["style"]["auroc"]["mean"] == 0.5  # the reference is the model itself
    # All credit on the first token, which never decides
    assert results["scores"]["favourite"]["style"]["mass"]["mean"] == 0.0
    assert set(results["verdicts"]) == {"gcpo", "dgpo", "favourite"}
    assert any(sentence.startswith("favourite does not beat") for sentence in results["sentences"])
    swept = {(entry["method"], entry["parameter"]) for entry in results["sweeps"]}
    assert ("gcpo", "top_mass") in swept
    assert ("dgpo", "temperature") in swept


def test_a_policy_without_own_errors(tmp_path, model_path, capsys, monkeypatch):
    """Random weights write no solutions: no items, which is said, and everything else is there."""
    monkeypatch.setattr(run, "MAX_COMPLETION_TOKENS", 8)
    results = run.run(tiny(tmp_path, model_path, tasks=("own_error", "style"), num_items=2))
    assert results["tasks"]["own_error"]["items"] == 0
    assert results["tasks"]["own_error"]["completions"]["malformed"] == 64
    assert results["scores"]["gcpo"]["own_error"]["auroc"] == {"mean": None, "stderr": None, "median": None, "n": 0}
    assert any(note.startswith("own_error has no items instead of 2: of 64 completions") for note in results["notes"])
    told = [sentence for sentence in results["sentences"] if sentence.startswith(("gcpo", "A rule"))]
    assert told
    assert not any("own_error" in sentence or "nan" in sentence for sentence in told)
    report.show(results)
    assert "Completions sampled for own errors" in capsys.readouterr().out
    alone = run.run(tiny(tmp_path, model_path, tasks=("own_error",), num_items=2))
    assert "gcpo: too few items to tell." in alone["sentences"]


def test_own_errors_of_the_embedded_model(tmp_path):
    results = run.run(
        tiny(tmp_path, None, reference=None, tasks=("own_error_style",), num_items=4, drift=(0,), methods=("gcpo",))
    )
    task = results["tasks"]["own_error_style"]
    assert task["items"] == 4
    assert task == results["drift"]["0"]["tasks"]["own_error_style"]
    assert results["scores"]["surprisal"]["own_error_style"]["auroc"]["n"] == 4
    assert results["scores"]["surprisal"]["own_error_style"]["mass"]["mean"] < 0.6
    assert not any("instead of" in note for note in results["notes"])


def test_own_errors_need_the_compact_rendering(tmp_path, model_path):
    results = run.run(tiny(tmp_path / "a", model_path, rendering="text", tasks=("own_error", "style"), num_items=2))
    assert list(results["tasks"]) == results["settings"]["variants"] == ["style"]
    assert "No own_error: the policy's own errors can be checked in the compact rendering only." in results["notes"]
    with pytest.raises(ValueError, match="No task is left"):
        run.run(tiny(tmp_path / "b", model_path, rendering="text", tasks=("own_error",)))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--groups", "8", "--target_groups", "9"], (8, 9)),
        (["--quick"], (16, 64)),
        (["--quick", "--groups", "8"], (8, 64)),
        (["--no_gradients"], (0, 1024)),
        ([], (256, 1024)),
    ],
)
def test_numbers_of_groups(arguments, expected, monkeypatch):
    seen = []

    def stop(settings, **kwargs):
        seen.append(settings)
        raise ValueError("seen")

    monkeypatch.setattr(run, "run", stop)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert (seen[0].groups, seen[0].target_groups) == expected


def test_text_rendering(tmp_path, model_path, capsys):
    results = run.run(tiny(tmp_path, model_path, rendering="text", reference=None, tasks=("altered_copy",), groups=8))
    assert results["methods"]["gcpo"]["negative_prompt"] == GCPO().negative_prompt
    assert "gradients" not in results
    assert any("without a `reference`" in note for note in results["notes"])
    assert any("embedded model's problems only" in note for note in results["notes"])
    assert not any("dgpo" in entry["method"] for entry in results["sweeps"])
    assert "dgpo: uniform without a reference, so there is nothing to say of it here." in results["sentences"]
    report.show(results)
    assert "altered_copy" in capsys.readouterr().out


def test_scores_are_those_of_the_methods(tmp_path, model_path):
    """Against weights computed here from a plain forward."""
    results = run.run(tiny(tmp_path, model_path, tasks=("planted_error",), methods=("uniform",)))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    values = []
    for item in make_items("planted_error", 6):
        ids, labels = tokens_and_labels(item, tokenizer)
        prompt = tokenizer(item.prompt)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        surprisal = [-logps[len(prompt) + t - 1, token].item() for t, token in enumerate(ids)]
        values.append(slow_auroc(surprisal, labels))
    assert results["scores"]["surprisal"]["planted_error"]["auroc"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.slow
def test_drift_is_kept_and_deterministic(tmp_path):
    model_path = embedded_model_path()  # a random one earns no reward, and nothing would be trained
    first = drifted_policies(model_path, (0, 1, 2), tmp_path / "a", seed=0, num_completions=8)
    assert first[0] == {"path": model_path, "reward": None}
    assert drifted_policies(model_path, (0, 1, 2), tmp_path / "b", 0, 8)[2]["reward"] == first[2]["reward"]
    weights = [(tmp_path / folder / "after-2" / "model.safetensors").read_bytes() for folder in "ab"]
    assert weights[0] == weights[1]
    written = (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns
    assert drifted_policies(model_path, (0, 1, 2), tmp_path / "a", 0, 8) == first
    assert (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns == written
    drifted_policies(model_path, (0, 1, 2), tmp_path / "a", 1, 8)
    assert (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns != written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "plantederror"], "Did you mean 'planted_error'"),
        (["--methods", "gpco"], "Did you mean 'gcpo'"),
        (["--methods", '{"method": "gcpo", "top_mas": 1}'], "Did you mean 'top_mass'"),
        (["--methods", "no.such.Method"], "Cannot load the credit method"),
        (["--num_items", "0"], "at least 2"),
        (["--num_items", "x"], "invalid int value"),
        (["--groups", "-1"], "`groups` must be at least 0"),
        (["--target_groups", "1"], "`target_groups` must be at least 2"),
        (["--modle", "x"], "unrecognized arguments"),
        (["--model", "/no/such/model"], "cannot load the model"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("trl-credit bench: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer(tmp_path, model_path, capsys):
    AutoModelForCausalLM.from_pretrained(model_path).save_pretrained(tmp_path / "bare")
    with pytest.raises(SystemExit):
        cli.main(["--model", str(tmp_path / "bare"), "--output_dir", str(tmp_path / "out")])
    assert "has no tokenizer" in capsys.readouterr().err


def test_missing_packages(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(SystemExit):
        cli.main([])
    assert "CreditBench needs scipy: pip install 'trl-credit[analysis]'" in capsys.readouterr().err


@pytest.mark.slow
def test_quick(tmp_path):
    command = [sys.executable, "-m", "trl_credit.cli", "bench", "--quick", "--num_items", "12"]
    done = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Reweighted gradients are biased estimates" in " ".join(done.stdout.split())
    results = json.loads((tmp_path / "bench.json").read_text())
    assert set(results["drift"]) == {"0", "3"}
    assert set(results["tasks"]) == set(variants())
    assert results["gradients"]["groups"] == 16
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "auroc.png",
        "drift.png",
        "gradients.png",
        "sweeps.png",
    }
    assert results["scores"]["gcpo"]["planted_error"]["auroc"]["mean"] > 0.6
