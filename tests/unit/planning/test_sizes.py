"""A model's sizes against models that are built."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.planning import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, MixtralConfig, Qwen2Config, Qwen2VLConfig

from trl_credit.planning.sizes import Model, adapter_parameters, model_of


TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize("tied", [True, False])
def test_counts(tied):
    config = Qwen2Config(**TINY, num_key_value_heads=2, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    found = model_of(config, "tiny")
    assert found.parameters == sum(p.numel() for p in model.parameters())
    matrices = [
        m.weight.numel()
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and "lm_head" not in name
    ]
    assert found.backbone == found.linear == sum(matrices)
    assert found.head == model.get_output_embeddings().weight.numel()
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (3, 4, 2, 16)


@pytest.mark.parametrize(
    ("folder", "published"),
    [
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("smollm2", 134_515_008),
    ],
)
def test_published_counts(folder, published):
    """The numbers of parameters that the hub shows."""
    assert model_of(AutoConfig.from_pretrained(CONFIGS / folder), folder).parameters == published


def test_dense_formula():
    config = AutoConfig.from_pretrained(CONFIGS / "qwen2.5-7b")
    found, dense = model_of(config, "7b"), Model.dense("7b", 28, 3584, 18944, 28, 4, 152064)
    assert found.backbone == dense.backbone
    assert found.parameters == pytest.approx(dense.parameters, rel=1e-3)  # norms and biases


def test_mixture_of_experts():
    """A token meets 2 of 8 experts. bitsandbytes packs `nn.Linear`, and experts are parameters of their own."""
    config = MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2)
    found = model_of(config, "moe")
    attention, expert, router = 2 * 64 * 16 * (4 + 2), 3 * 64 * 160, 64 * 8
    assert found.linear == 3 * attention
    assert found.backbone == 3 * (attention + router + 2 * expert)
    assert found.intermediate == 2 * 160
    built = AutoModelForCausalLM.from_config(config)
    packed = [m for n, m in built.named_modules() if type(m) is torch.nn.Linear and n != "lm_head"]
    assert found.linear == sum(m.weight.numel() for m in packed)


def test_vision_language_model():
    """The image tower is held, but no text token meets it."""
    config = Qwen2VLConfig(
        text_config=TINY | {"num_key_value_heads": 2}, vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64}
    )
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    found, text = model_of(config, "vlm"), model_of(Qwen2Config(**TINY, num_key_value_heads=2), "text")
    assert found.layers == 3
    assert found.backbone == text.backbone
    assert found.parameters > text.parameters
    assert "images" in found.odd[0]
    assert text.odd == ()


def test_embeddings_of_positions_are_no_products():
    """GPT-2's matrices are `Conv1D`, which bitsandbytes packs too."""
    found = model_of(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=1000), "gpt2")
    assert found.backbone == found.linear == 2 * 12 * 64 * 64
    assert found.context == 1000


def test_windows():
    config = Qwen2Config(**TINY, num_key_value_heads=2, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    assert "sliding window" in model_of(config, "windows").odd[0]


def test_other_architecture():
    assert model_of(GPT2Config(n_embd=64, n_layer=2, n_head=4), "gpt2").intermediate == 256


def test_no_attention():
    from transformers import MambaConfig

    with pytest.raises(ValueError, match="no layers of attention"):
        model_of(MambaConfig(), "mamba")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapter(targets):
    config = Qwen2Config(**TINY, num_key_value_heads=2)
    peft_config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    real = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    assert adapter_parameters(config, peft_config) == sum(p.numel() for p in real.parameters() if p.requires_grad)
