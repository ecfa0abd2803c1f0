"""Perfect credit in training, against values computed prefix by prefix."""

import math
from pathlib import Path

import pytest
import torch
from helpers import config, letter_reward, prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_credit.toy
from trl_credit import CreditGRPOTrainer
from trl_credit.bench.oracle import Oracle
from trl_credit.extras.effect import NothingTrainedError
from trl_credit.toy.arithmetic import correct_answer, make_dataset
from trl_credit.values.bookkeeping import canonical_rest


TOY = str(Path(trl_credit.toy.__file__).parent / "model")
TEMPERATURE = 1.3


def trained(path, form, style="plain", reward=correct_answer, data=None, **overrides):
    settings = {
        "credit": Oracle(form).to_dict(), "max_completion_length": 48, "max_steps": 1, "temperature": TEMPERATURE,
        "per_device_train_batch_size": 16, "num_generations": 8,
    }  # fmt: skip
    trainer = CreditGRPOTrainer(
        model=TOY,
        reward_funcs=reward,
        args=config(path, **settings | overrides),
        train_dataset=make_dataset(20, style=style) if data is None else data,
    )
    updates = []
    trainer.credit_observers.append(lambda batch, result: updates.append((batch, result)))
    trainer.train()
    return trainer, updates[0]


def value(model, tokenizer, prompt, written, eos):
    """The probability of the canonical rest, token by token."""
    rest = canonical_rest(prompt, tokenizer.decode(written))
    if rest is None:
        return 0.0
    ids, start = [*tokenizer(rest)["input_ids"], eos] if rest else [eos], tokenizer(prompt)["input_ids"] + written
    logits = model(torch.tensor([start + ids])).logits[0].double() / TEMPERATURE
    logps = torch.log_softmax(logits, -1)
    return math.exp(sum(logps[len(start) - 1 + i, token].item() for i, token in enumerate(ids)))


def test_true_advantages_of_each_token(tmp_path):
    _, (batch, result) = trained(tmp_path, "additive")
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    model, eos = AutoModelForCausalLM.from_pretrained(TOY).double().eval(), tokenizer.eos_token_id
    found = result.inputs.signals[Oracle().signals()[0]]
    right, wrong = 0, 0
    with torch.no_grad():
        for row, mask in enumerate(result.inputs.mask):
            prompt = tokenizer.decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
            ids = result.inputs.token_ids[row][mask].tolist()
            body = ids[:-1] if ids[-1] == eos else ids
            if found[row][mask].isnan().any():
                continue  # lucky
            values = [value(model, tokenizer, prompt, body[:place], eos) for place in range(len(body) + 1)]
            complete = canonical_rest(prompt, tokenizer.decode(body)) == ""
            values += [float(complete)] if ids[-1] == eos else []
            expected = torch.tensor(values).diff()
            torch.testing.assert_close(found[row][mask].double(), expected.double(), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(expected.sum().item() + values[0], float(complete), rtol=1e-5, atol=1e-5)
            right, wrong = right + complete, wrong + (not complete)
    assert min(right, wrong) >= 2
    assert torch.equal(result.token_advantages[result.inputs.mask], found[result.inputs.mask])


@pytest.mark.parametrize("form", ["reweight", "deciding"])
@pytest.mark.parametrize("style", ["plain", "letters", "words", "copy"])
def test_weights_lie_where_the_outcome_was_decided(form, style, tmp_path):
    _, (batch, result) = trained(tmp_path, form, style)
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    rows = 0
    for row, mask in enumerate(result.inputs.mask):
        weights, text = result.weights[row][mask], tokenizer.decode(result.inputs.token_ids[row][mask])
        if result.inputs.advantages[row] == 0 or torch.equal(weights, torch.ones_like(weights)):
            continue
        rows += 1
        assert weights.mean().item() == pytest.approx(1, abs=1e-5)
        assert all(
            weight == 0 for weight, token in zip(weights, text, strict=False) if style == "letters" and token.isalpha()
        )
        if result.inputs.advantages[row] < 0:
            place = int(weights.argmax())
            prompt = tokenizer.decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
            assert canonical_rest(prompt, text[:place]) is not None
            if form == "deciding":
                assert weights[place] == mask.sum()
                assert place >= len(text.removesuffix("<eos>")) or canonical_rest(prompt, text[: place + 1]) is None
    assert rows >= 4


def test_a_completion_that_cannot_end_in_time_has_no_value(tmp_path):
    with pytest.raises(NothingTrainedError, match="none of the 16 completions has an advantage"):
        trained(tmp_path, "additive", max_completion_length=20)


def test_other_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="knows the values of sums only"):
        trained(tmp_path, "additive", reward=letter_reward, data=prompts())
