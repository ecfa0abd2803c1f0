"""Scoring given completions, their records, and where completions come from."""

import json
import math

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from helpers import config, letter_reward, prompts, save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import CreditGRPOTrainer
from trl_credit._util.files import to_line
from trl_credit.evaluation.store import checksum
from trl_credit.inspection import cli
from trl_credit.inspection.config import InspectConfig
from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.inspection.sources import read_completions
from trl_credit.methods.compose import labelled
from trl_credit.records.record import (
    CompletionCredit,
    from_table,
    read_parquet,
    to_json,
    to_table,
    token_pieces,
    write_parquet,
)
from trl_credit.toy.build_model import build_tokenizer


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}
FULL = {**GCPO, "divergence": "full"}
SHARP = {"method": "dgpo", "temperature": 0.01}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def scorer(tiny_model, other_model):
    methods = labelled(["uniform", GCPO, FULL, SHARP | {"reference": other_model}])
    return CreditScorer(tiny_model, methods, temperature=0.7)


def distributions(path, prompt, ids, temperature):
    """(T, V) float64 log-probs of the tokens after a prompt, one completion at a time."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    prompt_ids = AutoTokenizer.from_pretrained(path)(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).numpy()


def test_scores_are_those_of_the_definitions(scorer, tiny_model, other_model):
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 90, size=length).tolist() for length in (1, 2, 9, 17)]
    masks = [None, [False, True], None, [i % 3 != 1 for i in range(17)]]
    completions = [
        Completion(prompt, token_ids=row, mask=mask, advantage=advantage)
        for prompt, row, mask, advantage in zip(
            ("ab=", "1+2=", "c=", "abcdef="), rows, masks, (1, -1, 0, 2), strict=True
        )
    ]
    records = scorer.score(completions)
    for completion, record in zip(completions, records, strict=True):
        row, mask = completion.token_ids, completion.mask or [True] * len(completion.token_ids)
        places = np.arange(len(row))
        policy = distributions(tiny_model, completion.prompt, row, 0.7)
        negative = distributions(tiny_model, "wrong! " + completion.prompt, row, 0.7)
        reference = distributions(other_model, completion.prompt, row, 0.7)
        logps, negative_logps = policy[places, row], negative[places, row]
        entropy = -(np.exp(policy) * policy).sum(-1)
        distance = 1 - np.exp((policy + reference) / 2).sum(-1)
        kl = (np.exp(policy) * (policy - negative)).sum(-1)
        np.testing.assert_allclose(record.logps, logps, atol=2e-5)
        np.testing.assert_allclose(record.entropy, entropy, atol=2e-5)
        np.testing.assert_allclose(record.signals["negative-prompt log-prob"], negative_logps, atol=2e-5)
        # Signals over the vocabulary are computed where the loss is
        on = np.array(mask)
        np.testing.assert_allclose(record.signals["squared Hellinger distance"][on], distance[on], atol=1e-5)
        np.testing.assert_allclose(record.signals["KL to the negative prompt"][on], kl[on], atol=2e-5)
        expected = {
            "uniform": np.array(mask, float),
            "gcpo divergence=sampled": oracles.gcpo_row(logps, negative_logps, mask, noise_floor=1e-4),
            "gcpo divergence=full": oracles.rank_row(kl, mask),
            "dgpo": oracles.dgpo_row(distance, entropy, mask, policy.shape[1], temperature=0.01),
        }
        assert list(record.weights) == list(expected)
        for label, weights in expected.items():
            np.testing.assert_allclose(record.weights[label], weights, rtol=5e-3, atol=1e-3, err_msg=label)
            np.testing.assert_allclose(
                record.token_advantages[label], completion.advantage * record.weights[label], rtol=1e-6
            )
        assert record.mask.tolist() == mask
        assert record.prompt == completion.prompt
        assert "".join(record.tokens) == scorer.tokenizer.decode(row)


def test_a_batch_scores_as_its_completions_alone(scorer):
    rng = np.random.default_rng(1)
    completions = [
        Completion("ab=" * (i % 3 + 1), token_ids=rng.integers(3, 90, size=i % 7 + 1).tolist(), advantage=1.0)
        for i in range(9)
    ]
    together = scorer.score(completions)
    for completion, record in zip(completions, together, strict=True):
        (alone,) = scorer.score([completion])
        assert record.token_ids.tolist() == alone.token_ids.tolist()
        np.testing.assert_allclose(record.logps, alone.logps, atol=1e-5)
        np.testing.assert_allclose(record.weights["dgpo"], alone.weights["dgpo"], rtol=1e-3)


def test_scores_are_those_of_training(tiny_model, tmp_path):
    """What a training run logs of its first update is what scoring its completions with the initial model gives."""
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=GCPO, max_steps=1, credit_log_steps=1, credit_log_completions=6),
        train_dataset=prompts(),
    )
    trainer.train()
    logged, about = read_parquet(tmp_path / "credit" / "step-000001.parquet")
    assert len(logged) == 6
    completions, written = read_completions(str(tmp_path), 100)
    assert len(written[0]) == len(read_completions(str(tmp_path / "credit"), 100)[0]) == 6
    scored = CreditScorer(tiny_model, labelled([about["methods"]["gcpo"]])).score(completions)
    for ours, theirs in zip(scored, logged, strict=True):
        assert (ours.prompt, ours.completion, ours.tokens) == (theirs.prompt, theirs.completion, theirs.tokens)
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
        np.testing.assert_allclose(ours.weights["gcpo"], theirs.weights["gcpo"], atol=1e-3)
        np.testing.assert_allclose(ours.token_advantages["gcpo"], theirs.token_advantages["gcpo"], atol=1e-3)


def test_nothing_to_score(scorer):
    records = scorer.score(
        [
            Completion("ab=", text="", finished=False),
            Completion("ab=", token_ids=[4, 5], mask=[False, False]),
            Completion("ab=", text="1"),
        ]
    )
    assert [len(record.tokens) for record in records] == [0, 2, 2]
    assert records[2].tokens == ["1", "<eos>"]
    assert np.isnan(records[1].logps).all()
    assert not records[0].weights
    assert not records[1].weights
    assert scorer.score([]) == []


def test_messages_and_text_together(scorer):
    messages = [{"role": "user", "content": "hi"}]
    first, second, third = scorer.score([Completion(p, text="1") for p in ("user:hi;assistant:", messages, "a=")])
    assert first.prompt == second.prompt == "user:hi;assistant:"
    np.testing.assert_array_equal(first.logps, second.logps)
    assert third.prompt == "a="


def test_scorer_errors(scorer):
    with pytest.raises(ValueError, match="Completion 2: the mask has 1 entries for 2 tokens"):
        scorer.score([Completion("a=", text="1"), Completion("a=", token_ids=[4, 5], mask=[True])])
    with pytest.raises(ValueError, match="more than the model's context of 256"):
        scorer.score([Completion("a=", token_ids=[4] * 300)])
    with pytest.raises(ValueError, match="Completion 2 has an empty prompt"):
        scorer.score([Completion("a=", text="1"), Completion("", text="1")])
    with pytest.raises(ValueError, match="Prompt 2 is empty"):
        scorer.generate([{"prompt": "a"}, {"prompt": ""}], 2)
    with pytest.raises(ValueError, match="needs `token_ids` or `text`"):
        scorer.score([Completion("a=")])
    for token in (-1, scorer.vocab_size):
        with pytest.raises(
            ValueError, match=rf"Completion 2 has the token id {token}, but the model's vocabulary ends at"
        ):
            scorer.score([Completion("a=", text="1"), Completion("a=", token_ids=[4, token])])


def test_labels():
    assert list(labelled(["uniform", "dgpo"])) == ["uniform", "dgpo"]
    assert list(labelled([GCPO, FULL, "uniform"])) == ["gcpo divergence=sampled", "gcpo divergence=full", "uniform"]
    with pytest.raises(ValueError, match="'gcpo' is there twice"):
        labelled(["gcpo", "gcpo"])


def test_generate(tiny_model):
    methods = labelled(["uniform", GCPO])
    scorer = CreditScorer(tiny_model, methods, reward_funcs=[letter_reward], max_completion_length=6)
    torch.manual_seed(0)
    completions = scorer.generate(prompts(5).to_list(), 3, max_rows=6)
    assert len(completions) == 15
    assert [c.group for c in completions] == [i // 3 for i in range(15)]
    for group in range(5):
        rewards = np.array([c.reward for c in completions if c.group == group])
        advantages = [c.advantage for c in completions if c.group == group]
        np.testing.assert_allclose(advantages, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), atol=1e-4)
    for completion, record in zip(completions, scorer.score(completions), strict=True):
        assert completion.reward == pytest.approx(letter_reward([record.completion])[0])
        assert 1 <= len(record.tokens) <= 6
    assert CreditScorer(tiny_model, methods).generate(prompts(1).to_list(), 2)[0].reward is None
    silent = CreditScorer(tiny_model, methods, reward_funcs=[lambda completions, **kwargs: [None] * len(completions)])
    assert silent.generate(prompts(1).to_list(), 2)[0].reward is None


def test_advice_is_for_methods_that_are_uniform(tiny_model, scorer):
    """By the method's own judgement, and on everything that was scored."""
    same = CreditScorer(
        tiny_model, labelled(["uniform", "dgpo", GCPO, {"method": "gcpo", "negative_prompt": "{prompt}"}])
    )
    same.score([Completion("ab=", text="cd"), Completion("ab=", text="cd" * 9)])
    assert set(same.advice) == {"dgpo", "gcpo negative_prompt={prompt}"}
    assert "`reference`" in same.advice["dgpo"]
    scorer.score([Completion("ab=", text="cdef")])
    assert not scorer.advice


# Records


def record(length=3, **changes):
    arrays = {"mask": np.ones(length, bool), "logps": -np.arange(length, dtype=np.float32)}
    fields = {
        "prompt": "p",
        "completion": "c",
        "tokens": [f"t{i}" for i in range(length)],
        "token_ids": np.arange(length),
        "entropy": np.ones(length, np.float32),
        "weights": {"a": np.ones(length, np.float32)},
    }
    return CompletionCredit(**(arrays | fields | changes))


def test_records_survive_a_file(tmp_path):
    records = [
        record(signals={"s": np.array([0.5, math.nan, math.inf], np.float32)}, advantage=-1.5, reward=0.0, group=7),
        record(0, weights={"b": np.zeros(0, np.float32)}),
        record(
            1, weights={}, tokens=["\ud800"], prompt="é\u2028<b>", info={"step": 3, "source_prompt": [{"role": "user"}]}
        ),
    ]
    write_parquet(tmp_path / "x.parquet", records, {"step": 3})
    back, about = read_parquet(tmp_path / "x.parquet")
    assert about == {"step": 3}
    for old, new in zip(records, back, strict=True):
        assert (old.advantage, old.reward, old.group, dict(old.info)) == (
            new.advantage,
            new.reward,
            new.group,
            new.info,
        )
        assert set(old.weights) == set(new.weights)
        for name in old.weights:
            np.testing.assert_array_equal(old.weights[name], new.weights[name])
        for name in old.signals:
            np.testing.assert_array_equal(old.signals[name], new.signals[name])
    unscored = record(reward=math.nan, info={"rewards": {"f": math.nan}})
    json.dumps([to_json(r) for r in [*records, unscored]], allow_nan=False)
    write_parquet(tmp_path / "y.parquet", [unscored])
    assert read_parquet(tmp_path / "y.parquet")[0][0].info == {"rewards": {"f": None}}
    assert from_table(to_table([])) == ([], {})
    # Also for those who know nothing of this package
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["weight/a"][0].tolist() == [1.0, 1.0, 1.0]


def test_records_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"weights\['a'\] has shape \(2,\), but there are 3 tokens"):
        record(weights={"a": np.ones(2)})
    pd.DataFrame({"prompt": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no table of token credit: it has no column 'completion'"):
        read_parquet(tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match="Cannot read"):
        read_parquet(tmp_path / "bad.parquet")


def test_pieces_of_characters():
    tokenizer = build_tokenizer()
    # This vocabulary has ASCII only; the bytes of é and 語 are unknown to it
    assert token_pieces(tokenizer, tokenizer("a b\n")["input_ids"]) == ["a", " ", "b", "\n"]
    assert token_pieces(tokenizer, [tokenizer.eos_token_id, 10]) == ["<eos>", tokenizer.decode([10])]
    assert token_pieces(tokenizer, []) == []


def byte_tokenizer():
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: i for i, character in enumerate(bytes_to_unicode().values())}
    return Qwen2Tokenizer(vocab=vocabulary | {"<eos>": 256}, merges=[], eos_token="<eos>", unk_token="<eos>")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=12))
def test_bytes_of_a_character_are_shown(text):
    """A token for each byte: the last byte's token shows the character, those before it their bytes."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    expected = []
    for character in tokenizer.decode(ids):  # its normaliser composes accents
        encoded = character.encode()
        expected += [*[f"<0x{byte:02X}>" for byte in encoded[:-1]], character]
    assert pieces == expected


# Sources


def test_completions_from_files(tmp_path):
    rows = [
        {"prompt": "1+1=", "completion": "2", "reward": 1.0, "advantage": 0.5},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]},
        {"prompt": "1+1=", "token_ids": [4, 5], "mask": [True, False], "group": 9},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        first, second, third = read_completions(str(tmp_path / name), 10)[0]
        assert (first.text, first.reward, first.advantage) == ("2", 1.0, 0.5)
        assert (second.text, second.prompt) == ("yo", rows[1]["prompt"])
        assert (third.token_ids, third.mask, third.group) == ([4, 5], [True, False], 9)
    assert len(read_completions(str(tmp_path / "a.json"), 2)[0]) == 2
    # TRL's table: rewards under their functions' names
    (tmp_path / "run" / "completions").mkdir(parents=True)
    table = {"step": [5], "prompt": ["a="], "completion": ["b"], "letters": [0.25], "advantage": [-1.0]}
    pd.DataFrame(table).to_parquet(tmp_path / "run" / "completions" / "completions_00005.parquet")
    (only,) = read_completions(str(tmp_path / "run"), 10)[0]
    assert (only.reward, only.advantage, only.info) == (0.25, -1.0, {"step": 5, "rewards": {"letters": 0.25}})
    table |= {"credit/effective_fraction": [0.5], "answer": [42.0]}
    order = ["step", "prompt", "completion", "letters", "credit/effective_fraction", "advantage", "answer"]
    pd.DataFrame(table)[order].to_parquet(tmp_path / "run" / "completions" / "completions_00006.parquet")
    for name in ("run", "run/completions"):
        (only,) = read_completions(str(tmp_path / name), 10)[0]
        assert (only.reward, only.info) == (0.25, {"step": 5, "rewards": {"letters": 0.25}})
    # Nothing was generated
    (tmp_path / "none.json").write_text(json.dumps([{"prompt": "a", "completion": "", "token_ids": [], "mask": []}]))
    (only,) = read_completions(str(tmp_path / "none.json"), 10)[0]
    assert (only.token_ids, only.text) == ([], None)
    # An evaluation
    (tmp_path / "eval").mkdir()
    sample = {"task": "t", "problem": 0, "index": 0, "seed": 1, "text": "4", "finish": "length", "correct": True}
    (tmp_path / "eval" / "samples.jsonl").write_text(to_line(sample))
    (tmp_path / "eval" / "problems.jsonl").write_text(to_line({"task": "t", "problem": 0, "prompt": "2+2="}))
    (only,) = read_completions(str(tmp_path / "eval"), 10)[0]
    assert (only.prompt, only.text, only.finished, only.reward) == ("2+2=", "4", False, 1.0)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "no.jsonl", "there is no file or folder"),
        ("", "x.csv", "must be a folder or end in"),
        ("", "x.jsonl", "holds no completions"),
        ("{", "x.json", "line 1, is no JSON"),
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt"', "x.jsonl", "line 3, is no JSON"),
        ("[1]", "x.json", "must hold a list of objects"),
        ('[{"completion": "a"}]', "x.json", "row 1 of .* has no `prompt`, but completion: rename"),
        ('[{"prompt": "a"}]', "x.json", "neither `completion` nor `token_ids`"),
        ('[{"prompt": "a", "completion": 3}]', "x.json", "neither text nor a message"),
        ("no", "x.parquet", "cannot read"),
        (
            '[{"prompt": "a", "token_ids": [3, -1]}]',
            "x.json",
            "row 1 .*`token_ids` must be whole numbers from 0; number 2 is -1",
        ),
        ('[{"prompt": "a", "token_ids": [1.5]}]', "x.json", r"number 1 is 1\.5"),
        ('[{"prompt": "a", "token_ids": [true]}]', "x.json", "number 1 is True"),
        ('[{"prompt": "a", "completion_ids": ["b"]}]', "x.json", "number 1 is 'b'"),
        ('[{"prompt": "a", "token_ids": 5}]', "x.json", "must be a list of token ids, got 5"),
        ('[{"prompt": "a", "token_ids": [1], "mask": [2]}]', "x.json", "`mask` must be a list of 0 and 1"),
        ('[{"prompt": 5, "completion": "b"}]', "x.json", "`prompt` holds a number"),
        ('[{"prompt": {"text": "a"}, "completion": "b"}]', "x.json", "such as prompt.text"),
        ('[{"prompt": [], "completion": "b"}]', "x.json", "has no `prompt`: it is an empty list"),
        ('[{"prompt": "a", "completion": "b", "advantage": "high"}]', "x.json", "`advantage` must be a finite number"),
        ('[{"prompt": "a", "completion": "b", "reward": Infinity}]', "x.json", "`reward` must be a finite number"),
        ('[{"prompt": "a", "completion": "b", "group": 1.5}]', "x.json", "`group` must be a whole number"),
        ('[{"prompt": "a", "completion": "b", "finished": "no"}]', "x.json", "`finished` must be a boolean"),
        ("[" * 100_000, "x.json", "cannot be read as JSON"),
        (b"\xff", "x.json", "is no UTF-8"),
    ],
)
def test_bad_files(content, name, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        read_completions(str(tmp_path / name), 10)
    with pytest.raises(ValueError, match=r"has no samples.jsonl"):
        read_completions(str(tmp_path), 10)


def test_damaged_samples_are_left_out(tmp_path, caplog):
    sample = {"task": "t", "problem": 0, "index": 0, "seed": 1, "text": "4", "finish": "stop", "tokens": 1}
    changed = {**sample, "index": 1, "checksum": checksum(sample)}
    (tmp_path / "problems.jsonl").write_text(to_line({"task": "t", "problem": 0, "prompt": "2+2="}) + '{"task": "t"}\n')
    (tmp_path / "samples.jsonl").write_text(to_line(changed) + "[" * 100_000 + "\n" + to_line({"task": "t"}))
    with pytest.raises(ValueError, match=r"holds no samples that are whole"):
        read_completions(str(tmp_path), 10)
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write(to_line(sample | {"checksum": checksum(sample)}))
    (only,) = read_completions(str(tmp_path), 1)[0]
    assert only.text == "4"
    assert "2 damaged sample(s) are left out" in caplog.text
    (tmp_path / "problems.jsonl").unlink()
    with pytest.raises(ValueError, match=r"problems.jsonl' has none of the samples' problems"):
        read_completions(str(tmp_path), 1)


# The command


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Say what to show"),
        ({"model": "m", "prompts": ["a"], "dataset_name": "d"}, r"Say what to show: one of .* got `prompts` and"),
        ({"prompts": ["a"]}, "`model` is not set"),
        ({"model": "m", "prompts": ["a"], "methods": ["gcpoo"]}, "Did you mean 'gcpo'"),
        ({"model": "m", "prompts": ["a"], "num_generations": 1}, "`num_generations` must be at least 2, got 1"),
        ({"model": "m", "prompts": ["a"], "temperature": 0.0}, "`temperature` must be positive"),
        ({"completions": "x", "reward_funcs": ["accuracy"]}, "`reward_funcs` has no effect with `completions`"),
        ({"model": "m", "recipe": "no.yaml"}, "cannot read 'no.yaml'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        InspectConfig(**settings)


def test_methods_of_the_settings(tmp_path):
    chosen = InspectConfig(model="trl_credit:quickstart", prompts=["a"]).credit_methods()
    assert chosen["gcpo"].negative_prompt == "!{prompt}"
    assert list(chosen) == ["uniform", "gcpo", "dgpo"]
    chosen = InspectConfig(model="m", prompts=["a"], methods=["dgpo", "gcpo"], reference="base").credit_methods()
    assert chosen["dgpo"].reference == "base"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model_name_or_path: m\ndataset_name: d\ntemperature: 0.5\nbf16: false\nuse_cpu: true\n"
        "credit: {method: dgpo, temperature: 0.1, reference: own}\n"
    )
    read = InspectConfig(recipe=str(recipe), reference="base")
    assert (read.model, read.dataset_name, read.temperature) == ("m", "d", 0.5)
    assert list(read.credit_methods()) == ["uniform", "dgpo"]
    assert read.credit_methods()["dgpo"].reference == "own"


def test_the_command(tiny_model, other_model, tmp_path, capsys):
    arguments = [
        "--model",
        tiny_model,
        "--prompts",
        "1+1=",
        "ab=",
        "--num_generations",
        "2",
        "--max_completion_length",
        "5",
    ]
    arguments += ["--methods", "uniform", json.dumps(SHARP), "--reference", other_model, "--plain_prompts", "true"]
    cli.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert "credit.html, credit.parquet, credit.json" in capsys.readouterr().out
    records, about = read_parquet(tmp_path / "out" / "credit.parquet")
    assert [record.prompt for record in records] == ["1+1=", "1+1=", "ab=", "ab="]
    assert about["methods"]["dgpo"]["reference"] == other_model
    assert json.loads((tmp_path / "out" / "credit.json").read_text())["completions"][0]["tokens"] == records[0].tokens
    assert "uniform" in (tmp_path / "out" / "credit.html").read_text()
    # What was written is shown again without a model, and scored again with one
    cli.main(["--completions", str(tmp_path / "out"), "--output_dir", str(tmp_path / "again"), "--show", "0"])
    again, _ = read_parquet(tmp_path / "again" / "credit.parquet")
    np.testing.assert_array_equal(again[0].weights["dgpo"], records[0].weights["dgpo"])
    arguments = ["--completions", str(tmp_path / "out"), "--model", tiny_model, "--methods", json.dumps(GCPO)]
    cli.main([*arguments, "--output_dir", str(tmp_path / "scored"), "--show", "0"])
    scored, _ = read_parquet(tmp_path / "scored" / "credit.parquet")
    assert list(scored[0].weights) == ["gcpo"]
    np.testing.assert_allclose(scored[0].logps, records[0].logps, atol=1e-5)


def test_messages_where_the_tokenizer_has_a_template(tiny_model, tmp_path):
    arguments = ["--model", tiny_model, "--prompts", "hi", "--num_generations", "2", "--max_completion_length", "3"]
    cli.main([*arguments, "--methods", "uniform", "--output_dir", str(tmp_path), "--show", "0"])
    records, _ = read_parquet(tmp_path / "credit.parquet")
    assert records[0].prompt == "user:hi;assistant:"
    assert records[0].info["source_prompt"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./none", "--prompts", "a"], "there is no folder"),
        (["--modell", "x"], "Did you mean 'model'"),
        (
            ["--model", "trl_credit:quickstart", "--prompts", "a", "--output_dir", __file__],
            "it is a file, not a folder",
        ),
        (["--completions", "none.jsonl"], "there is no file or folder 'none.jsonl'"),
        (
            ["--model", "trl_credit:quickstart", "--dataset_name", "trl_credit:arith"],
            "Did you mean 'trl_credit:arithmetic'",
        ),
        (
            ["--model", "trl_credit:quickstart", "--prompts", "a", "--reward_funcs", "accuracy"],
            "'accuracy' needs a column 'solution'",
        ),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("trl-credit inspect: error: ")
    assert message in line
