"""Methods that score completions after a second prompt or under another model, in training."""

import json
import math

import pytest
import qwen_vision
import torch
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts, save_tiny_model
from support.resumed import assert_same_run, make, outcome
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_credit import CreditGRPOTrainer, HasSecondPrompt, HintLogps, OtherModelLogps, ThoughtTokens
from trl_credit.batching import token_counts
from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.methods.registry import build_credit
from trl_credit.signals.second_prompt import SecondPromptSource


TEMPERATURE = 0.8
RLSD = {"method": "rlsd", "column": "answer", "template": "{answer}!{prompt}"}
RLCSD = {"method": "rlcsd", "template": "[{solution}]{prompt}", "wrong_siblings": 2}


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def parity_reward(completion_ids, **kwargs) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", seed=5)


def trained(model, path, credit, **settings):
    """A trainer after its run, and what each credit pass saw."""
    seen = []
    settings = {"max_steps": 3, "temperature": TEMPERATURE} | settings
    trainer = CreditGRPOTrainer(
        model=model,
        reward_funcs=parity_reward,
        rollout_func=fixed_rollout,
        args=config(path, credit=credit, **settings),
        train_dataset=prompts(),
    )
    trainer.credit_observers.append(lambda batch, result: seen.append(result))
    trainer.train()
    return trainer, seen


def direct(model, prompt_ids, completion_ids):
    """Log-probs of a completion's tokens by a plain forward of one row, in float64."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].double() / TEMPERATURE
    return torch.log_softmax(logits, -1)[torch.arange(len(completion_ids)), torch.tensor(completion_ids)]


def rows_of(result):
    """(row, prompt's token ids, completion's token ids) of each completion that needed credit."""
    view = result.view
    for row in range(len(view["advantages"])):
        prompt, completion = (
            view[f"{name}_ids"][row][view[f"{name}_mask"][row].bool()].tolist() for name in ("prompt", "completion")
        )
        yield row, prompt, completion


def assert_direct(found, row, expected):
    torch.testing.assert_close(found[row, : len(expected)].double(), expected, rtol=1e-4, atol=1e-4)


def initial(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def test_hints_are_those_of_the_row(tiny_model, tmp_path):
    trainer, seen = trained(tiny_model, tmp_path, RLSD)
    answers = {row["prompt"]: row["answer"] for row in prompts()}
    model, tokenizer = initial(tiny_model), trainer.tokenizer
    signal = HintLogps(RLSD["template"], "answer")
    count = 0
    for row, prompt, completion in rows_of(seen[0]):
        text = tokenizer.decode(prompt)
        hinted = tokenizer(f"{answers[text]}!{text}")["input_ids"]
        assert_direct(seen[0].inputs.signals[signal], row, direct(model, hinted, completion))
        count += 1
    assert count
    entry = trainer.state.log_history[0]
    assert entry["credit/hint_fraction"] > 0.5
    assert 0.9 - 1e-6 <= entry["credit/weight_mean"] <= entry["credit/weight_max"] <= 1.1 + 1e-6
    assert entry["credit/weight_std"] > 0.01
    assert entry["credit/nonfinite_tokens"] == 0


def test_streamed_rows_without_an_answer_are_counted(tiny_model, tmp_path, caplog):
    """Rows that cannot be looked at beforehand do not stop the run: their completions get GRPO's credit."""
    empty = dict.fromkeys([row["prompt"] for row in prompts()][::3])
    data = prompts().map(lambda row: {"answer": None if row["prompt"] in empty else row["answer"]})
    column = {"method": "gcpo", "negative_prompt": "column"}
    data = data.map(lambda row: {"negative_prompt": " " if row["prompt"] in empty else "wrong" + row["prompt"]})
    for credit in (RLSD, column):
        seen = []
        trainer = CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            rollout_func=fixed_rollout,
            args=config(tmp_path, credit=credit, max_steps=4),
            train_dataset=data.to_iterable_dataset(),
        )
        trainer.credit_observers.append(lambda batch, result, seen=seen: seen.append(result))
        caplog.clear()
        trainer.train()
        noun = "hint" if credit is RLSD else "negative prompt"
        warned = [text for text in caplog.messages if f"{noun}s are missing, because the row's column is empty" in text]
        assert len(warned) == 1
        bad = good = 0
        for result in seen:
            for row, prompt, completion in rows_of(result):
                weights = result.weights[row, : len(completion)]
                if trainer.tokenizer.decode(prompt) in empty:
                    assert weights.tolist() == [1.0] * len(completion)
                    assert result.inputs.nonfinite[row].sum() == len(completion)
                    bad += len(completion)
                else:
                    assert not result.inputs.nonfinite[row].any()
                    good += bool((weights != 1).any())
        assert bad
        assert good
        counted = sum(entry.get("credit/nonfinite_tokens") or 0 for entry in trainer.state.log_history)
        assert counted > 0
        assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_a_stream_without_the_column_is_refused(tiny_model, tmp_path):
    data = prompts().to_iterable_dataset().map(lambda row: {"prompt": row["prompt"]}, remove_columns=["answer"])
    assert data.column_names is None
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=RLSD, max_steps=1),
        train_dataset=data,
    )
    message = r"A hint needs a column 'answer', but the rows have only: prompt\. Name the column"
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_the_teacher_scores_the_students_tokens(tiny_model, teacher, tmp_path):
    trainer, seen = trained(tiny_model, tmp_path, {"method": "teacher", "model": teacher}, num_iterations=2)
    other, student = initial(teacher), initial(tiny_model)
    gaps = [direct(other, *ids) - direct(student, *ids) for _, *ids in rows_of(seen[0])]
    for result in seen:  # it does not move, and the second iteration reuses the first's
        for row, prompt, completion in rows_of(result):
            assert_direct(result.inputs.signals[OtherModelLogps(teacher)], row, direct(other, prompt, completion))
        assert result.inputs.old_logps is not None
    assert sum(len(result.view["advantages"]) for result in seen) == 8 * len(seen)  # also those without an advantage
    assert trainer.state.log_history[0]["credit/teacher_gap"] == pytest.approx(torch.cat(gaps).mean().item(), abs=1e-4)
    assert trainer.state.log_history[0]["credit/advantage_change"] > 0.1


def test_a_teacher_of_another_vocabulary_is_refused(tiny_model, tmp_path):
    other = initial(tiny_model)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has a vocabulary of \d+, the policy one of \d+: it cannot score"):
        trained(tiny_model, tmp_path, {"method": "teacher", "model": str(tmp_path / "other")})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "other")  # then the other logits are padding, as in some families
    trained(tiny_model, tmp_path, {"method": "teacher", "model": str(tmp_path / "other")}, max_steps=1)
    vocabulary = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    model = vocabulary["model"]["vocab"]
    model["a"], model["b"] = model["b"], model["a"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"another tokenizer than the policy: 2 tokens, such as '[ab]', have"):
        trained(tiny_model, tmp_path, {"method": "teacher", "model": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="no/such/teacher"):
        trained("no/such/model", tmp_path, {"method": "teacher", "model": "no/such/teacher"})


@pytest.mark.parametrize("credit", ["teacher", "dgpo"])
def test_a_text_model_beside_a_vision_policy(credit, tmp_path):
    """Refused if there are images, and used if there are none."""
    policy, processor = qwen_vision.tiny_model()
    processor.tokenizer.save_pretrained(tmp_path / "text")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = LlamaConfig(
        vocab_size=policy.config.get_text_config().vocab_size,
        max_position_embeddings=512,
        pad_token_id=processor.tokenizer.pad_token_id,
        **shape,
    )
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "text")
    name = "model" if credit == "teacher" else "reference"
    args = config(tmp_path, credit={"method": credit, name: str(tmp_path / "text")}, max_steps=1)
    common = {"reward_funcs": place_reward, "args": args, "processing_class": processor}
    data = qwen_vision.make_dataset()
    with pytest.raises(
        ValueError, match=r"text' is text-only \(LlamaForCausalLM\) .* have a column 'images'\. Name a vis"
    ):
        CreditGRPOTrainer(policy, train_dataset=data, **common)
    trainer = CreditGRPOTrainer(policy, train_dataset=data.remove_columns("images"), **common)
    trainer.train()
    if credit == "teacher":  # a tool or an environment may have shown one
        (source,) = trainer.credit_pass.sources.values()
        with pytest.raises(ValueError, match=r"text' is text-only .*: a prompt has images"):
            source.forward(trainer, trainer.model, {"pixel_values": torch.zeros(1)})


def check_siblings(seen, tokenizer, model):
    """Siblings are others of the group, of the right kind; log-probs are a direct forward's. Returns what was found."""
    signals = build_credit(RLCSD).signals()[:3]
    completions = [(tokenizer.decode(p), tuple(c)) for result in seen for _, p, c in rows_of(result)]
    found = set()
    for result in seen:
        inputs, view = result.inputs, result.view
        for row, prompt, completion in rows_of(result):
            text = tokenizer.decode(prompt)
            group = [c for p, c in completions if p == text]
            group.remove(tuple(completion))
            for signal in signals:
                pool = [
                    tokenizer.decode(c, skip_special_tokens=True).strip()
                    for c in group
                    if sum(c) % 2 == (signal.kind == "right")
                ]
                both = len({sum(c) % 2 for c in group}) == 2  # a contrast needs both kinds
                has = inputs.signals[HasSecondPrompt(signal)][row]
                assert set(has.tolist()) == {float(len(pool) > signal.place and both)}
                key = f"sibling/{signal.kind}/{signal.place}/0.0/{RLCSD['template']}"
                hinted = view[f"{key}/ids"][row][view[f"{key}/mask"][row].bool()].tolist()
                if has[0]:
                    assert tokenizer.decode(hinted) in {f"[{one}]{text}" for one in pool}
                else:
                    assert hinted == prompt
                assert_direct(inputs.signals[signal], row, direct(model, hinted, completion))
                found.add((signal.kind, signal.place, bool(has[0])))
    return found


def test_siblings_are_others_of_the_group(tiny_model, tmp_path):
    # One update per generation batch, so that every sibling is seen; a group of one kind has no advantage
    trainer, seen = trained(tiny_model, tmp_path, RLCSD, max_steps=1, per_device_train_batch_size=16)
    found = check_siblings(seen, trainer.tokenizer, initial(tiny_model))
    assert {("right", 0, True), ("wrong", 0, True), ("wrong", 1, True), ("wrong", 1, False)} <= found
    entry = trainer.state.log_history[0]
    assert 0 < entry["credit/without_siblings"] < 1
    assert entry["credit/selected"] > 0.5
    assert entry["credit/nonfinite_tokens"] == 0
    assert not any(key.startswith("rollout/") for key in trainer._buffered_inputs[0])


@pytest.mark.parametrize("credit", [RLCSD, GCPO], ids=["rlcsd", "gcpo"])
def test_only_rows_with_a_second_prompt_are_forwarded(credit, tiny_model, tmp_path, monkeypatch):
    """The others would be forwarded for nothing: token advantages are the same."""
    rows = {}

    def run(name):
        rows[name], forward = [], SecondPromptSource.forward

        def counting(self, context, model, batch):
            own = batch["completion_mask"].any(-1) & ~batch[f"{self.key}/overlong"]
            own &= batch.get(f"{self.key}/present", torch.tensor(True))
            rows[name].append((len(own), int(own.sum())))
            return forward(self, context, model, batch)

        with monkeypatch.context() as patch:
            patch.setattr(SecondPromptSource, "forward", counting)
            if credit is GCPO:  # some negative prompts do not fit
                patch.setattr(CreditGRPOTrainer, "context_length", 26)
            return trained(tiny_model, tmp_path, credit, max_completion_length=6, per_device_train_batch_size=16)

    trainer, seen = run("chosen")
    monkeypatch.setattr(SecondPromptSource, "lengths", lambda self, batch: token_counts(batch))
    every, seen_by_every = run("every")
    for one, other in zip(seen, seen_by_every, strict=True):
        torch.testing.assert_close(one.row_advantages, other.row_advantages, rtol=1e-4, atol=1e-4)
        assert one.row_advantages.any()
    assert (
        trainer.state.log_history[0]["credit/nonfinite_tokens"] == every.state.log_history[0]["credit/nonfinite_tokens"]
    )
    ran, needed = map(sum, zip(*rows["chosen"], strict=True))
    assert ran == needed
    assert sum(row for row, _ in rows["every"]) > needed == sum(needed for _, needed in rows["every"])


def test_scoring_gives_siblings(tiny_model, tmp_path):
    """The scorer knows groups and rewards, too."""
    scorer = CreditScorer(
        tiny_model, {"rlcsd": build_credit(RLCSD), "rlsd": build_credit(RLSD)}, temperature=TEMPERATURE
    )
    rows = [("1+1=", "2", 1.0), ("1+1=", "22", 1.0), ("1+1=", "7", 0.0), ("2+2=", "4", 1.0)]
    completions = [
        Completion(
            prompt=p,
            text=c,
            reward=r,
            advantage=1.0 if r else -1.0,
            group=i // 3,
            finished=False,
            example={"answer": "x"},
        )
        for i, (p, c, r) in enumerate(rows)
    ]
    records = scorer.score(completions)
    model = initial(tiny_model)

    def logps(prompt, completion):
        return direct(model, *(scorer.tokenizer(text)["input_ids"] for text in (prompt, completion)))

    values = records[0].signals["log-prob after a right sibling"]
    torch.testing.assert_close(torch.from_numpy(values).double(), logps("[22]1+1=", "2"), rtol=1e-4, atol=1e-4)
    [hint] = [values for title, values in records[3].signals.items() if title == HintLogps.title]
    torch.testing.assert_close(torch.from_numpy(hint).double(), logps("x!2+2=", "4"), rtol=1e-4, atol=1e-4)
    assert records[3].token_advantages["rlcsd"].tolist() == [1.0]  # no siblings
    assert records[0].token_advantages["rlcsd"].tolist() != [1.0]


def test_thoughts_are_found_in_training(tiny_model, tmp_path):
    signal = ThoughtTokens("a", "b")
    credit = RLSD | {"thought_only": True, "thought_start": "a", "thought_end": "b"}
    trainer, seen = trained(tiny_model, tmp_path, credit)
    inside = 0
    for result in seen:
        for row, prompt, completion in rows_of(result):
            thinking, expected = trainer.tokenizer.decode(prompt).endswith("a"), []
            for token in completion:
                piece = trainer.tokenizer.decode([token])
                expected.append(float(thinking and piece != "b"))
                thinking = (thinking or piece == "a") and piece != "b"
            assert result.inputs.signals[signal][row, : len(expected)].tolist() == expected
            plain = result.weights[row, : len(expected)][torch.tensor(expected) == 0]
            assert (plain == 1).all()
            inside += sum(expected)
    assert inside


def test_a_list_trains(tiny_model, teacher, tmp_path):
    credit = [RLSD, {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}, {"method": "teacher", "model": teacher}]
    trainer, seen = trained(tiny_model, tmp_path, credit)
    entry = trainer.state.log_history[0]
    assert math.isfinite(entry["loss"])
    assert entry["grad_norm"] > 0
    assert entry["credit/teacher/advantage_change"] > 0
    assert entry["credit/rlsd/hint_fraction"] > 0
    result = seen[0]
    method = trainer.credit_method
    rlsd, gcpo, distilled = method.labels.values()
    parts = [rlsd.weights(result.inputs), gcpo.weights(result.inputs), distilled.term(result.inputs)]
    expected = result.inputs.advantages.unsqueeze(1) * parts[0] * parts[1] + parts[2]
    torch.testing.assert_close(result.row_advantages, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["rlsd", "rlcsd", "teacher"])
def test_resumed(name, tiny_model, teacher, tmp_path):
    credit = {
        "rlsd": RLSD | {"strength": {"from": 0.5, "to": 0, "updates": 6}},
        "rlcsd": RLCSD,
        "teacher": {"method": "teacher", "model": teacher, "coefficient": 0.1},
    }[name]
    settings = {"credit": credit, "reward": parity_reward, "max_steps": 7}
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    for stop in (3, 4):  # within a generation batch, and between two
        resumed = make(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(resumed), outcome(whole), f"{name}, stopped after {stop}")


def test_lengths_are_watched(tiny_model, tmp_path):
    trainer, _ = trained(tiny_model, tmp_path, RLSD)
    assert len(trainer._length.state_dict()["first"]) == 3
    assert trainer._extra_state()["length"]["first"] == trainer._length.state_dict()["first"]
    plain = CreditGRPOTrainer(
        model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, credit="gcpo"), train_dataset=prompts()
    )
    assert "length" not in plain._extra_state()
