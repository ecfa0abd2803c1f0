"""Token advantages and gradients of a real update against full logits and a naive loss written out here."""

import copy
import math

import numpy as np
import oracles
import pytest
import torch
from helpers import CHAT_TEMPLATE, config, letter_reward, place_reward, prompts, save_tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import CreditGRPOTrainer, DGPOTrainer, GCPOTrainer


TEMPERATURE = 0.8

NEGATIVE = "wrong! {prompt}"


def full_logits(model, prompt_rows, completion_rows):
    """Per row, the (T, V) float64 logits of the completion's tokens, each row alone and without padding."""
    model = copy.deepcopy(model).double().eval()
    rows = []
    for prompt, completion in zip(prompt_rows, completion_rows, strict=True):
        ids = torch.tensor([prompt + completion])
        # the class's forward: TRL patches the instance's
        logits = type(model).forward(model, input_ids=ids).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    return rows


class Recorder:
    """Keeps what TRL's loss reads in each update, with the parameters at that moment and the gradients after it."""

    def __init__(self, trainer):
        self.updates = []
        self.trainer = trainer

        def record(batch, result):
            self.updates.append(
                {
                    "batch": dict(batch),
                    "state": {k: v.clone() for k, v in trainer.model.state_dict().items()},
                }
            )

        trainer.credit_observers.append(record)
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(self.gradients)

    def gradients(self, *_):
        named = {n: p.grad.clone() for n, p in self.trainer.model.named_parameters() if p.requires_grad}
        self.updates[-1]["gradients"] = named


def unpadded(batch):
    prompts_ = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    completions = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    return prompts_, completions


def padded(rows, width):
    return np.array([np.concatenate([row, np.zeros(width - len(row))]) for row in rows])


def logps_of(logits, completion):
    return torch.log_softmax(logits / TEMPERATURE, -1)[torch.arange(len(completion)), torch.tensor(completion)]


def negative_rows(tokenizer, prompt_rows):
    return [tokenizer(NEGATIVE.replace("{prompt}", tokenizer.decode(row)))["input_ids"] for row in prompt_rows]


def expected_weights(name, batch, policy, reference, tokenizer):
    prompt_rows, completion_rows = unpadded(batch)
    width = batch["completion_ids"].size(1)
    mask = batch["completion_mask"].bool().numpy()
    policy_logits = full_logits(policy, prompt_rows, completion_rows)
    if name.startswith("gcpo"):
        negative_logits = full_logits(policy, negative_rows(tokenizer, prompt_rows), completion_rows)
        if name == "gcpo_full":
            divergences = [
                oracles.kl(a.detach().numpy(), b.detach().numpy(), TEMPERATURE)
                for a, b in zip(policy_logits, negative_logits, strict=True)
            ]
            return np.array(
                [oracles.rank_row(row, on) for row, on in zip(padded(divergences, width), mask, strict=True)]
            )
        sides = [
            padded([logps_of(x, c).detach().numpy() for x, c in zip(logits, completion_rows, strict=True)], width)
            for logits in (policy_logits, negative_logits)
        ]
        return oracles.rows(oracles.gcpo_row, *sides, mask, noise_floor=1e-4)
    reference_logits = full_logits(reference, prompt_rows, completion_rows)
    p = [oracles.distribution(x.detach().numpy(), TEMPERATURE) for x in policy_logits]
    q = [oracles.distribution(x.detach().numpy(), TEMPERATURE) for x in reference_logits]
    distance = padded([oracles.squared_hellinger(a, b) for a, b in zip(p, q, strict=True)], width)
    entropy = padded([oracles.entropy(a) for a in p], width)
    return oracles.rows(oracles.dgpo_row, distance, entropy, mask, policy.config.vocab_size, temperature=0.002)


CREDIT = {
    "gcpo": {"method": "gcpo", "negative_prompt": NEGATIVE},
    "gcpo_full": {"method": "gcpo", "negative_prompt": NEGATIVE, "divergence": "full"},
    "dgpo": {"method": "dgpo", "temperature": 0.002},
}


@pytest.mark.parametrize("name", CREDIT)
def test_update_equals_the_naive_one(name, tiny_model, tmp_path):
    initial = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(
            tmp_path, credit=CREDIT[name], temperature=TEMPERATURE, num_iterations=2, max_steps=4, loss_type="grpo",
            max_grad_norm=0.0, optim="sgd", learning_rate=0.05,
        ),
        train_dataset=prompts(),
    )  # fmt: skip
    recorder = Recorder(trainer)
    trainer.train()
    assert len(recorder.updates) == 4
    spread = 0.0
    for step, update in enumerate(recorder.updates):
        batch = update["batch"]
        policy = copy.deepcopy(initial)
        policy.load_state_dict(update["state"])
        weights = expected_weights(name, batch, policy, initial, tokenizer)
        mask = batch["completion_mask"].bool()
        spread = max(spread, float(weights[mask.numpy()].std()))

        # TRL's buffer keeps the (B,) advantages: recover them from the rows' means
        sequence_advantages = batch["advantages"].sum(-1) / mask.sum(-1)
        np.testing.assert_allclose(
            batch["advantages"].double().numpy(),
            sequence_advantages.double().unsqueeze(1).numpy() * weights,
            rtol=2e-3,
            atol=2e-4,
            err_msg=f"update {step}",
        )

        policy = policy.double()
        prompt_rows, completion_rows = unpadded(batch)
        loss = 0.0
        for row, (prompt, completion) in enumerate(zip(prompt_rows, completion_rows, strict=True)):
            logits = policy(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logps = logps_of(logits, completion)
            old = batch["old_per_token_logps"][row, : len(completion)].double()
            ratio = torch.exp(logps - old)
            advantage = sequence_advantages[row].double() * torch.tensor(weights[row, : len(completion)])
            loss = loss - torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() / len(prompt_rows)
        loss.backward()
        ours = torch.cat([g.flatten() for g in update["gradients"].values()]).double()
        naive = torch.cat([p.grad.flatten() for p in policy.parameters()])
        assert naive.norm() > 1e-3
        assert (ours - naive).norm() / naive.norm() < 2e-3, f"update {step}"
    assert spread > 0.05, "weights so close to uniform prove nothing"


@pytest.mark.parametrize("name", CREDIT)
def test_forwards_are_as_few_as_stated(name, tiny_model, tmp_path):
    """GCPO adds one policy forward of each row, DGPO one reference forward and none of the policy."""

    def forwards(credit):
        trainer = CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=place_reward,
            args=config(tmp_path, credit=credit, max_steps=2),
            train_dataset=prompts(),
        )
        calls = {"policy": 0, "reference": 0}
        rollout = False

        def count(key):
            def hook(module, args, output):
                calls[key] += 0 if rollout else len(output[0])

            return hook

        generate = trainer._generate_and_score_completions

        def generate_uncounted(inputs):
            nonlocal rollout
            rollout = True
            try:
                return generate(inputs)
            finally:
                rollout = False

        trainer._generate_and_score_completions = generate_uncounted
        trainer.model.base_model.register_forward_hook(count("policy"))
        for source in trainer.credit_pass.sources.values():
            if getattr(source, "model", None) is not None:
                source.model.base_model.register_forward_hook(count("reference"))
        trainer.train()
        return calls

    assert forwards("uniform") == {"policy": 16, "reference": 0}
    expected = {"policy": 16, "reference": 16} if name == "dgpo" else {"policy": 32, "reference": 0}
    assert forwards(CREDIT[name]) == expected


@pytest.mark.parametrize("trainer_class", [CreditGRPOTrainer, GCPOTrainer, DGPOTrainer])
def test_buffered_inputs_are_not_changed(trainer_class, tiny_model, tmp_path):
    trainer = trainer_class(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, num_iterations=2, max_steps=4, per_device_train_batch_size=4, steps_per_generation=2),
        train_dataset=prompts(),
    )
    seen = []
    original = trainer._compute_loss

    def compute(model, inputs):
        before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        loss = original(model, inputs)
        assert inputs.keys() == before.keys()
        for key, value in before.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, inputs[key]), key
        assert inputs["advantages"].dim() == 1
        seen.append(loss)
        return loss

    trainer._compute_loss = compute
    trainer.train()
    assert len(seen) == 4


def test_own_forwards_run_in_eval_mode_and_dropout_is_warned_about(tmp_path, caplog):
    path = save_tiny_model(tmp_path / "dropout", attention_dropout=0.5)
    trainer = GCPOTrainer(
        model=path,
        reward_funcs=letter_reward,
        # a text that tokenises like the prompt itself: without dropout in the forwards the contrast would be nothing
        args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "{prompt}"}, max_steps=1),
        train_dataset=prompts(),
    )
    assert sum("active dropout" in message for message in caplog.messages) == 1
    trainer.train()
    assert trainer.state.log_history[0]["credit/contrast"] > 1e-3

    clean = GCPOTrainer(
        model=save_tiny_model(tmp_path / "clean"),
        reward_funcs=letter_reward,
        args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "{prompt}"}, max_steps=1),
        train_dataset=prompts(),
    )
    assert sum("active dropout" in message for message in caplog.messages) == 1
    clean.train()
    assert clean.state.log_history[0]["credit/contrast"] == 0.0


@pytest.mark.parametrize("bf16", [False, True])
def test_the_prompt_as_its_own_negative_is_uniform(bf16, tiny_model, tmp_path):
    """More left padding (here: of the negative side only) must not become credit."""
    trainer = GCPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "{prompt}"}, bf16=bf16, max_steps=3),
        train_dataset=prompts(),
    )
    source = next(iter(trainer.credit_pass.sources.values()))
    forward = source.forward

    def padded_forward(trainer, model, batch):
        for key, value in (("ids", trainer._tokenizer.pad_token_id), ("mask", 0)):
            name = f"{source.key}/{key}"
            batch[name] = torch.nn.functional.pad(batch[name], (37, 0), value=value)
        return forward(trainer, model, batch)

    source.forward = padded_forward
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        assert entry["credit/contrast_fraction"] == 0.0
        assert entry["credit/weight_std"] < 1e-6


def test_left_padding_of_prompts_changes_weights_within_rounding(tiny_model, tmp_path):
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": NEGATIVE}, max_steps=1),
        train_dataset=prompts(),
    )
    trainer.train()
    recorded = {}
    trainer.credit_observers.append(lambda batch, result: recorded.update(batch))
    trainer.model.eval()
    batch = trainer._buffered_inputs[0]
    weights = []
    for extra in (0, 21):
        inputs = dict(batch)
        inputs["prompt_ids"] = torch.nn.functional.pad(batch["prompt_ids"], (extra, 0), value=0)
        inputs["prompt_mask"] = torch.nn.functional.pad(batch["prompt_mask"], (extra, 0), value=0)
        inputs["advantages"] = torch.ones_like(batch["advantages"])
        trainer._compute_loss(trainer.model, inputs)
        weights.append(recorded["advantages"])
    # ranks of contrasts that differ by less than rounding may swap; all others stay
    assert (weights[0] - weights[1]).abs().gt(1e-3).float().mean() < 0.02


@pytest.mark.parametrize("path", [True, False])
def test_reference_is_the_initial_policy(path, tiny_model, tmp_path):
    """Also for a model object whose weights are not those on disk."""
    model = tiny_model
    if not path:
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        model.config._name_or_path = ""
    trainer = DGPOTrainer(
        model=model,
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=3),
        train_dataset=prompts(),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    assert trainer.beta == 0.0
    assert trainer.ref_model is None
    initial = {name: p.clone() for name, p in trainer.model.named_parameters()}
    reference = next(iter(trainer.credit_pass.sources.values())).model
    trainer.train()
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, initial[name]), name
    history = trainer.state.log_history
    assert history[0]["credit/hellinger"] == pytest.approx(0.0, abs=1e-9)
    assert history[0]["credit/weight_std"] < 1e-6
    assert history[2]["credit/hellinger"] > 1e-4
    assert "kl" not in history[0]


def test_named_reference(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    trainer = DGPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=1, credit={"method": "dgpo", "reference": other}),
        train_dataset=prompts(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["credit/hellinger"] > 0.01


def test_reference_of_another_vocabulary_is_refused(tiny_model, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    other.resize_token_embeddings(70)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="vocabulary of 70, the policy one of"):
        DGPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, credit={"method": "dgpo", "reference": str(tmp_path / "other")}),
            train_dataset=prompts(),
        )


def test_reference_follows_the_policy_without_a_kl_term(tiny_model, tmp_path):
    args = config(tmp_path, max_steps=2, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.25)
    trainer = DGPOTrainer(model=tiny_model, reward_funcs=letter_reward, args=args, train_dataset=prompts())
    assert trainer.args.sync_ref_model
    source = next(iter(trainer.credit_pass.sources.values()))
    states = [{n: p.clone() for n, p in source.model.named_parameters()}]
    trainer.train()
    final = dict(trainer.model.named_parameters())
    for name, parameter in source.model.named_parameters():
        moved = (parameter - states[0][name]).norm()
        if (final[name] - states[0][name]).norm() > 0:
            assert 0 < moved < (final[name] - states[0][name]).norm()
    with pytest.raises(ValueError, match=r"sync_ref_model=True` while `beta=0\.0"):
        GCPOTrainer(model=tiny_model, reward_funcs=letter_reward, args=args, train_dataset=prompts())


def test_reference_is_shared_with_trls_kl_penalty(tiny_model, tmp_path):
    trainer = DGPOTrainer(
        model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, beta=0.1), train_dataset=prompts()
    )
    assert next(iter(trainer.credit_pass.sources.values())).model is trainer.ref_model
    trainer.train()
    assert trainer.state.log_history[1]["kl"] > 0
    assert trainer.state.log_history[1]["credit/hellinger"] > 0


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")


@pytest.mark.parametrize("kind", ["fresh", "pretrained"])
def test_peft_reference(kind, tiny_model, tmp_path):
    """A fresh adapter's reference is the base model, a pretrained adapter's is its frozen copy; no second model."""
    model, peft_config = tiny_model, LORA
    if kind == "pretrained":
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), LORA)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        peft_config = None
    trainer = DGPOTrainer(
        model=model,
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=3),
        train_dataset=prompts(),
        peft_config=peft_config,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    assert next(iter(trainer.credit_pass.sources.values())).model is None
    if kind == "pretrained":
        copies = {n: p.clone() for n, p in trainer.model.named_parameters() if ".ref." in n}
        assert copies
    trainer.train()
    history = trainer.state.log_history
    assert history[0]["credit/hellinger"] == pytest.approx(0.0, abs=1e-9)
    assert history[2]["credit/hellinger"] > 1e-5
    if kind == "pretrained":
        for name, parameter in trainer.model.named_parameters():
            if name in copies:
                assert torch.equal(parameter, copies[name])
                assert not parameter.requires_grad


def test_nonfinite_reference_is_counted_and_harmless(tiny_model, tmp_path):
    trainer = DGPOTrainer(
        model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, max_steps=2), train_dataset=prompts()
    )
    source = next(iter(trainer.credit_pass.sources.values()))
    with torch.no_grad():
        source.model.model.norm.weight.fill_(math.nan)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["credit/nonfinite_tokens"] == 8 * entry["completions/mean_length"]
    assert entry["credit/weight_std"] == 0.0
    assert entry["credit/hellinger"] is None
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_metrics_in_training_and_evaluation(tiny_model, tmp_path):
    for cls, own in ((GCPOTrainer, ["contrast", "contrast_fraction"]), (DGPOTrainer, ["hellinger"])):
        trainer = cls(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4),
            train_dataset=prompts(),
            eval_dataset=prompts(4, seed=1),
        )
        trainer.train()
        train, evaluation = trainer.state.log_history[0], trainer.state.log_history[1]
        for name in ["weight_std", "weight_max", "effective_fraction", "nonfinite_tokens", *own]:
            assert math.isfinite(train[f"credit/{name}"]), name
            assert math.isfinite(evaluation[f"eval_credit/{name}"]), name


def test_conversational_prompts(tiny_model, tmp_path):
    note = "\n\nNote: Intentionally generate an incorrect answer."
    chats = prompts().map(
        lambda row: {"prompt": [{"role": "system", "content": "be"}, {"role": "user", "content": row["prompt"]}]}
    )
    trainer = GCPOTrainer(
        model=tiny_model,
        reward_funcs=place_reward,
        args=config(
            tmp_path,
            credit={"method": "gcpo", "negative_prompt": "{prompt}" + note},
            max_steps=1,
            chat_template_kwargs={"loud": True},
        ),
        train_dataset=chats,
    )
    assert trainer.processing_class.chat_template == CHAT_TEMPLATE
    recorder = Recorder(trainer)
    trainer.train()
    batch = recorder.updates[0]["batch"]
    key = f"negative_prompt/{{prompt}}{note}"
    assert len(batch["prompt_ids"]) == 8
    for row in range(len(batch["prompt_ids"])):
        real = trainer._tokenizer.decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
        negative = trainer._tokenizer.decode(batch[f"{key}/ids"][row][batch[f"{key}/mask"][row].bool()])
        assert real.startswith("system:be;user:")
        assert real.endswith(";assistant:!")
        assert negative == real.removesuffix(";assistant:!") + note + ";assistant:!"


@pytest.mark.parametrize("name", CREDIT)
def test_own_forwards_have_no_dropout(name, tmp_path):
    """Twice the same in the middle of a training step, where the policy's own dropout is active."""
    path = save_tiny_model(tmp_path / "dropout", attention_dropout=0.5)
    trainer = CreditGRPOTrainer(
        model=path,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=CREDIT[name], max_steps=1),
        train_dataset=prompts(),
    )
    source = next(iter(trainer.credit_pass.sources.values()))
    own_model = getattr(source, "model", trainer.model)
    forward, results = source.forward, []

    def twice(trainer, model, batch):
        own_model.train()
        assert model.training
        results.extend(forward(trainer, model, batch) for _ in range(2))
        assert model.training  # as TRL left it: the loss's forward comes next
        return results[-1]

    source.forward = twice
    trainer.train()
    assert torch.equal(*results)


@pytest.mark.parametrize("cast", [False, True])
def test_reference_computes_as_the_policy_does(cast, tiny_model, tmp_path):
    """Under bf16 autocast and with a float32 head: equal weights are at distance 0, rounding included."""
    trainer = DGPOTrainer(
        model=save_tiny_model(tmp_path / "untied", tie=False) if cast else tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, bf16=True, cast_lm_head_to_fp32=cast, max_steps=1),
        train_dataset=prompts(),
    )
    assert trainer.forward_dtype == torch.bfloat16
    assert trainer.head_dtype == (torch.float32 if cast else torch.bfloat16)
    trainer.train()
    assert trainer.state.log_history[0]["credit/hellinger"] == pytest.approx(0.0, abs=1e-10)


def test_revision_of_the_policy_is_not_asked_of_a_named_reference(tiny_model, tmp_path, monkeypatch):
    from trl_credit.signals import frozen

    asked = {}
    create = frozen.create_model_from_path

    def record(path, **kwargs):
        asked.update(kwargs, path=path)
        kwargs.pop("quantization_config", None)
        return create(path, **kwargs)

    monkeypatch.setattr(frozen, "create_model_from_path", record)
    other = save_tiny_model(tmp_path / "other", seed=1)
    DGPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(
            tmp_path,
            credit={"method": "dgpo", "reference": other},
            model_init_kwargs={"revision": "main", "attn_implementation": "eager"},
        ),
        train_dataset=prompts(),
    )
    assert asked["path"] == other
    assert "revision" not in asked
    assert asked["attn_implementation"] == "eager"
    assert asked["dtype"] == torch.float32


def test_a_trained_head_has_its_own_reference(tmp_path):
    """LoRA with a fully trained output head: the reference's is the original one."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0, modules_to_save=["lm_head"])
    trainer = DGPOTrainer(
        model=save_tiny_model(tmp_path / "untied", tie=False),
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=3, temperature=TEMPERATURE),
        train_dataset=prompts(),
        peft_config=lora,
    )
    measured = []

    def compare(batch, result):
        prompt_rows, completion_rows = unpadded(batch)
        model, distances = trainer.model, []
        for prompt, completion in zip(prompt_rows, completion_rows, strict=True):
            ids = torch.tensor([prompt + completion])
            logits = [model(input_ids=ids).logits]
            with model.disable_adapter():
                logits.append(model(input_ids=ids).logits)
            p, q = (oracles.distribution(x[0, len(prompt) - 1 : -1].double().numpy(), TEMPERATURE) for x in logits)
            distances.extend(oracles.squared_hellinger(p, q))
        measured.append((sum(distances) / len(distances), trainer._metrics["train"]["credit/hellinger"][-1]))

    trainer.credit_observers.append(compare)
    trainer.train()
    assert measured[-1][0] > 1e-4
    for expected, ours in measured:
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("bf16", [False, True])
def test_rounding_noise_is_not_sharpened(bf16, tiny_model, tmp_path):
    """With a target effective fraction, a reference that differs by padding noise only gives uniform weights."""
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, bf16=bf16, max_steps=1, credit={"method": "dgpo", "temperature": "adaptive"}),
        train_dataset=prompts(),
    )
    source = next(iter(trainer.credit_pass.sources.values()))
    forward = source.forward

    def padded_forward(trainer, model, batch):
        pads = {name: torch.nn.functional.pad(batch[name], (5, 0), value=0) for name in ("prompt_ids", "prompt_mask")}
        return forward(trainer, model, {**batch, **pads})

    source.forward = padded_forward
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["credit/hellinger"] > 0  # the noise is there
    assert entry["credit/hellinger_fraction"] == 0.0
    assert entry["credit/weight_std"] < 1e-6


@pytest.mark.parametrize("peft", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_torch_compile(peft, tiny_model, tmp_path):
    history = []
    for compiled in (False, True):
        settings = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        trainer = DGPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, max_steps=3, **settings),
            train_dataset=prompts(),
            peft_config=LORA if peft else None,
        )
        trainer.train()
        history.append([entry["credit/hellinger"] for entry in trainer.state.log_history[:-1]])
    assert history[1] == pytest.approx(history[0], rel=1e-3, abs=1e-8)
    assert history[0][2] > 1e-6


def test_a_second_run_takes_the_adapter_as_it_then_is(tiny_model, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), LORA)
    for _ in range(2):
        trainer = DGPOTrainer(
            model=model,
            reward_funcs=letter_reward,
            args=config(tmp_path, max_steps=2),
            train_dataset=prompts(),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )
        trainer.train()
        assert trainer.state.log_history[0]["credit/hellinger"] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_second_run_on_the_same_model_object(bf16, tiny_model, tmp_path):
    """The first trainer has patched the object's forward; the second's reference is the weights as they then are."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for _ in range(2):
        trainer = DGPOTrainer(
            model=model,
            reward_funcs=letter_reward,
            args=config(tmp_path, max_steps=3, bf16=bf16),
            train_dataset=prompts(),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )
        trainer.train()
        assert trainer.state.log_history[0]["credit/hellinger"] == pytest.approx(0.0, abs=1e-10)
        assert trainer.state.log_history[2]["credit/hellinger"] > 1e-4


def test_following_reference_of_another_architecture_is_refused(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", tie=False)
    with pytest.raises(ValueError, match="needs a reference of the policy's architecture"):
        DGPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, sync_ref_model=True, credit={"method": "dgpo", "reference": other}),
            train_dataset=prompts(),
        )


def test_the_embedded_model_has_its_name_in_python_too(tmp_path):
    trainer = CreditGRPOTrainer(
        model="trl_credit:quickstart", reward_funcs=letter_reward, args=config(tmp_path), train_dataset=prompts()
    )
    assert trainer.model.config.model_type == "qwen2"
    with pytest.raises(
        ValueError, match=r"`model`: unknown 'trl_credit:quikstart'\. Did you mean 'trl_credit:quickstart'"
    ):
        CreditGRPOTrainer(
            model="trl_credit:quikstart", reward_funcs=letter_reward, args=config(tmp_path), train_dataset=prompts()
        )
