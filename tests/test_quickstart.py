"""The embedded model, its build, and training from it."""

import json
import random

import pytest
import torch
from helpers import config
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import METHODS, CreditGRPOTrainer
from trl_credit import quickstart as run
from trl_credit.methods.gcpo import gcpo_weights
from trl_credit.model_files import embedded_model_path
from trl_credit.recipe.toy import quickstart_credit
from trl_credit.toy.arithmetic import (
    NEGATIVE_MARK,
    correct_answer,
    make_dataset,
    make_problem,
    prompt_of,
    written_solution,
)
from trl_credit.toy.build_model import build_model, build_tokenizer, save


def test_task():
    assert prompt_of([83, 48, 14]) == "83+48+14="
    assert written_solution([83, 48, 14], random.Random(0)) == "83+48=131;131+14=145;#145"
    wrong = written_solution([83, 48, 14], random.Random(0), {0})
    first = wrong.split(";")[0]
    assert first.startswith("83+48=")
    assert first != "83+48=131"
    result = int(first.partition("=")[2])
    assert wrong == f"83+48={result};{result}+14={result + 14};#{result + 14}"  # the rest follows from the wrong step
    assert correct_answer(["#145", "1#2#145 ", "145", "#146", ""], ["145"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_datasets_are_seeded_and_disjoint():
    train = make_dataset(50, seed=1)
    assert train.to_list() == make_dataset(50, seed=1).to_list()
    held_out = make_dataset(50, seed=1, exclude=train)
    assert not set(train["prompt"]) & set(held_out["prompt"])
    for row in train:
        assert str(sum(map(int, row["prompt"].rstrip("=").split("+")))) == row["answer"]


def test_there_are_only_so_many_different_problems():
    every = make_dataset(8100, num_terms=2)
    assert len(set(every["prompt"])) == 8100
    with pytest.raises(ValueError, match="8101 different sums of 2 numbers are asked for, but there are 8100: ask for"):
        make_dataset(8101, num_terms=2)
    with pytest.raises(
        ValueError, match=r"1 different sums of 2 numbers .* there are 0 beside the 8100 that are excluded"
    ):
        make_dataset(1, num_terms=2, exclude=every)
    letters = make_dataset(5, num_terms=2, style="letters", exclude=every)  # other prompts
    assert len(letters) == 5


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


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_training_raises_the_reward(name, tmp_path):
    credit = quickstart_credit(name)
    trainer = CreditGRPOTrainer(
        model=embedded_model_path(),
        reward_funcs=correct_answer,
        args=config(
            tmp_path, credit=credit, per_device_train_batch_size=64, num_generations=8, max_completion_length=40,
            learning_rate=5e-5, max_steps=60, per_device_eval_batch_size=256, num_generations_eval=1, seed=0,
        ),
        train_dataset=make_dataset(1000, seed=0),
        eval_dataset=make_dataset(512, seed=1),
    )  # fmt: skip
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    assert after > before + 0.1
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-20:]) / 20 > sum(rewards[:10]) / 10 + 0.1
    if name == "gcpo":
        fractions = [entry.get("credit/contrast_fraction") for entry in trainer.state.log_history]
        fractions = [fraction for fraction in fractions if fraction is not None]
        assert len(fractions) > 50
        assert min(fractions) > 0.05, "the negative prompt must mean something to the embedded model"


def test_gcpo_finds_the_wrong_digit():
    """The contrast with the embedded model's negative prompt is largest at a planted wrong digit."""
    model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    rng = random.Random(7)
    found, total = 0, 100
    for _ in range(total):
        terms = make_problem(rng)
        step = rng.randrange(2)
        clean, wrong = written_solution(terms, rng), written_solution(terms, rng, {step})
        place = next(i for i, (a, b) in enumerate(zip(clean, wrong, strict=False)) if a != b)
        logps = []
        for prefix in ("", NEGATIVE_MARK):
            prompt = tokenizer(prefix + prompt_of(terms))["input_ids"]
            completion = tokenizer(wrong)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logps.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(completion).unsqueeze(1)).T)
        weights = gcpo_weights(*logps, torch.ones(1, len(wrong)))[0]
        found += int(weights.topk(3).indices.eq(place).any())
    assert found / total > 0.8


def test_quickstart_runs(tmp_path, capsys):
    run.main(["--output_dir", str(tmp_path), "--max_steps", "2", "--methods", "uniform", '{"method": "dgpo"}', "dgpo"])
    output = capsys.readouterr().out
    assert "Accuracy on held-out problems" in output
    assert "dgpo: the weights are uniform in all but name" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["uniform", "dgpo", "dgpo'"]
    assert results["dgpo"]["rewards"] == results["dgpo'"]["rewards"]  # same start, same seed
    assert (tmp_path / "reward_curves.png").stat().st_size > 10_000
    for name in results:
        AutoModelForCausalLM.from_pretrained(tmp_path / name)
