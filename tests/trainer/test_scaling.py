"""The formulas in benchmarks/scaling.py against torch's counts in real updates."""

import importlib.util
import sys

import pytest
import torch
from helpers import ROOT, config, prompts, save_tiny_model
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.planning.sizes import model_of


path = ROOT / "benchmarks" / "scaling.py"

specification = importlib.util.spec_from_file_location("scaling", path)

scaling = importlib.util.module_from_spec(specification)
sys.modules["scaling"] = scaling  # dataclasses look their module up
specification.loader.exec_module(scaling)

PROMPT, COMPLETION = 6, 20

CREDIT = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "not {prompt}"},
    "gcpo_full": {"method": "gcpo", "negative_prompt": "not {prompt}", "divergence": "full"},
    "dgpo": "dgpo",
    "forking": "forking",
    "random": "random",
    # The answers have one letter, so the hint has as many tokens as the note
    "rlsd": {"method": "rlsd", "column": "letter", "template": "{answer}no {prompt}"},
    # Of the four rewards that differ, two are above the threshold
    "rlcsd": {"method": "rlcsd", "template": "{solution}{prompt}", "wrong_siblings": 1, "reward_threshold": 5.5},
    "teacher": {"method": "teacher"},
    "otb": "otb",
    "delta": "delta",
}


def rollout(prompts_, trainer):
    return {
        "prompt_ids": [trainer._tokenizer(prompt)["input_ids"] for prompt in prompts_],
        "completion_ids": [[3 + (i + j) % 40 for j in range(COMPLETION)] for i in range(len(prompts_))],
        "logprobs": None,
    }


def half_constant(prompts, **kwargs):
    return [1.0 if i < len(prompts) // 2 else float(i) for i in range(len(prompts))]


def counted(name, model, output_dir, peft_config=None, **settings):
    """Matrix products' FLOPs of one optimizer step, without those of a generation."""
    theirs = name.startswith("trl")
    credit = CREDIT.get(name)
    if name == "teacher":
        credit = {**credit, "model": model}
    args = config(
        output_dir, kind=GRPOConfig if theirs else CreditGRPOConfig,
        max_completion_length=COMPLETION, **settings, **({"beta": 0.1} if name == "trl_kl" else {}),
        **({} if theirs else {"credit": credit}),
        # eager: torch counts no fused attention on a CPU
        model_init_kwargs={"attn_implementation": "eager", "dtype": "float32"},
    )  # fmt: skip
    trainer = (GRPOTrainer if theirs else CreditGRPOTrainer)(
        model=model,
        reward_funcs=half_constant,
        rollout_func=rollout,
        args=args,
        peft_config=peft_config,
        train_dataset=prompts(4).map(lambda row: {"prompt": ("abcdef" + row["prompt"])[:PROMPT], "letter": "x"}),
    )
    in_place = {torch.ops.aten.addmm_: lambda acc, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}  # torch does not count it
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        trainer.train()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 2, "gradient_checkpointing": True},
        *(
            pytest.param(setting, marks=pytest.mark.nightly)
            for setting in ({"num_iterations": 2}, {"gradient_checkpointing": True})
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", scaling.METHODS)
def test_flops(name, settings, model, tmp_path):
    config_ = AutoModelForCausalLM.from_pretrained(model).config
    shape = scaling.Model.dense(
        "tiny", config_.num_hidden_layers, config_.hidden_size, config_.intermediate_size, config_.num_attention_heads,
        config_.num_key_value_heads, config_.vocab_size, config_.hidden_size // config_.num_attention_heads, tied=True,
    )  # fmt: skip
    iterations = settings.get("num_iterations", 1)
    update = scaling.Update(
        prompt=PROMPT, completion=COMPLETION, completions=8, zero_advantage=0.5, iterations=iterations,
        checkpointing=settings.get("gradient_checkpointing", False), attention=1.0, scored=PROMPT + COMPLETION - 1,
    )  # fmt: skip
    second = scaling.Second(note=4, hint=4, sibling=COMPLETION, siblings=2)
    expected = sum(scaling.method_flops(shape, update, name, savings=name != "uniform", second=second).values())
    assert shape.parameters == pytest.approx(
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters()), rel=0.02
    )
    assert counted(name, model, tmp_path, max_steps=iterations, **settings) == pytest.approx(expected, rel=0.01)


def test_flops_of_adapters(model, tmp_path):
    """The backward leaves the gradients of the weights out, and none of attention's products."""
    rank = 2
    peft_config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config_ = AutoModelForCausalLM.from_pretrained(model).config
    shape = model_of(config_, "tiny")
    tokens = 8 * (PROMPT + COMPLETION)
    update = scaling.Update(
        prompt=PROMPT, completion=COMPLETION, completions=8, checkpointing=True, attention=1.0,
        scored=PROMPT + COMPLETION - 1, adapters=True,
    )  # fmt: skip
    # The adapters' own products: forward twice, gradients of inputs and of weights
    own = 4 * 2 * rank * (shape.hidden + shape.heads * shape.head_dim) * shape.layers * tokens
    found = counted("uniform", model, tmp_path, max_steps=1, gradient_checkpointing=True, peft_config=peft_config)
    assert found == pytest.approx(scaling.loss_flops(shape, update) + own, rel=0.02)


def test_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scaling.py"])
    scaling.main()
    printed = capsys.readouterr().out
    document = (path.parent.parent / "docs" / "scaling.md").read_text()
    for line in printed.splitlines():
        assert not line.startswith("|") or line in document, f"docs/scaling.md lacks {line}"
