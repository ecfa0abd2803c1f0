"""The embedded model's negative prompt finds wrong digits."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import quickstart
from trl_credit.methods.gcpo import gcpo_weights
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import (
    NEGATIVE_MARK,
    make_problem,
    prompt_of,
    written_solution,
)


def test_pictures_are_missed_before_the_training(tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise ValueError("pictures need matplotlib: pip install 'trl-credit[analysis]'")

    monkeypatch.setattr("trl_credit.report.figure.new_figure", missing)
    with pytest.raises(SystemExit):
        quickstart.main(["--output_dir", str(tmp_path)])
    assert "pictures need matplotlib" in capsys.readouterr().err


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
