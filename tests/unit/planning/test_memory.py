"""Bytes against torch's on a small model, accelerate's estimate and DeepSpeed's arithmetic."""

from dataclasses import replace

import pytest
import torch
from accelerate.commands.estimate import estimate_training_usage
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_credit.planning.layouts import LAYOUTS, candidates, check_layout
from trl_credit.planning.memory import (
    Batch,
    Trained,
    activation_bytes,
    buffer_bytes,
    frozen_bytes,
    kept_bytes,
    state_bytes,
    step_bytes,
    waiting_bytes,
)
from trl_credit.planning.sizes import model_of


CONFIG = Qwen2Config(
    hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2, vocab_size=500
)  # fmt: skip
MODEL = model_of(CONFIG, "small")


def full(weight_bytes: int, compute_bytes: int) -> Trained:
    return Trained(MODEL.parameters, weight_bytes, compute_bytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_of_one_process(dtype):
    """Exactly the bytes of parameters, gradients and Adam's moments."""
    model = Qwen2ForCausalLM(CONFIG).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found = state_bytes(MODEL, full(dtype.itemsize, dtype.itemsize), LAYOUTS["one"], 1)
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert found["optimizer"] == sum(value.nbytes for value in moments)


def saved_bytes(dtype: torch.dtype, autocast: bool, checkpointing: bool, rows: int, length: int) -> int:
    """Bytes that the backbone's forward keeps for the backward, without the weights and autocast's copies of them."""
    model = Qwen2ForCausalLM._from_config(CONFIG, attn_implementation="sdpa").to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(shape) for p in model.parameters() if p.dim() > 1 for shape in (p.shape, p.shape[::-1])}
    seen, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its address might be used again
        return tensor

    ids = torch.randint(0, 500, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize(("rows", "length"), [(4, 160), (1, 300)])
def test_activations(dtype, autocast, checkpointing, rows, length):
    trained = full(dtype.itemsize, 2 if autocast else 4)
    found = kept_bytes(MODEL, trained, Batch(rows, length - 20, 20, checkpointing))
    assert found == pytest.approx(saved_bytes(dtype, autocast, checkpointing, rows, length), rel=0.02)


def test_activations_in_a_layout_that_casts():
    batch = Batch(4, 100, 60)
    assert kept_bytes(MODEL, full(4, 2), batch, half=True) == kept_bytes(MODEL, full(2, 2), batch)


def test_activations_grow_with_attention():
    sizes = [
        activation_bytes(MODEL, full(2, 2), Batch(1, 100, 4000, attention=name)) for name in ("flash", "sdpa", "eager")
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] > 2 * sizes[1]


def test_accelerate_agrees():
    """On weights and optimizer; it counts gradients in both precisions with mixed precision, where torch has them in one."""
    theirs = estimate_training_usage(4 * MODEL.parameters, "float32")
    ours = state_bytes(MODEL, full(4, 4), LAYOUTS["one"], 1)
    assert (ours["weights"], ours["gradients"], ours["optimizer"]) == (
        theirs["model"],
        theirs["gradients"],
        theirs["optimizer"],
    )
    theirs = estimate_training_usage(4 * MODEL.parameters, "bfloat16")
    ours = state_bytes(MODEL, full(4, 2), LAYOUTS["one"], 1)
    assert (ours["weights"], ours["optimizer"]) == (theirs["model"], theirs["optimizer"])


@pytest.mark.parametrize("gpus", [2, 8])
def test_deepspeed_agrees(gpus):
    """2 bytes of weights, and 18 partitioned: gradients twice, master weights and moments."""
    zero = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    trained, layout = full(2, 2), LAYOUTS["zero2"]
    _, theirs = zero.estimate_zero2_model_states_mem_needs(MODEL.parameters, gpus, 1, cpu_offload=False)
    ours = sum(state_bytes(MODEL, trained, layout, gpus).values()) + step_bytes(trained, layout, gpus)
    assert ours == pytest.approx(theirs, abs=2)


@pytest.mark.parametrize(
    ("name", "per_parameter"), [("one", 16), ("ddp", 16), ("zero2", 2 + 14 / 8), ("zero3", 2), ("fsdp2", 2)]
)
def test_states_by_layout(name, per_parameter):
    layout = LAYOUTS[name]
    found = sum(state_bytes(MODEL, full(2 if layout.master else 4, 2), layout, 8).values())
    assert found == pytest.approx(per_parameter * MODEL.parameters)


def test_adapters():
    trained = Trained(1000, 2, 2, adapters=True)
    found = state_bytes(MODEL, trained, LAYOUTS["ddp"], 8)
    assert found == {"weights": 2 * MODEL.parameters + 4000, "gradients": 4000, "optimizer": 8000}
    packed = state_bytes(MODEL, Trained(1000, 2, 2, adapters=True, bits=4), LAYOUTS["one"], 1)["weights"]
    # TRL casts their adapters to bfloat16
    assert packed == 2 * (MODEL.parameters - MODEL.linear) + 0.5625 * MODEL.linear + 2000


def test_frozen_models_are_split_like_the_policy():
    assert frozen_bytes(MODEL, 2, LAYOUTS["zero3"], 8) == MODEL.parameters / 4
    assert frozen_bytes(MODEL, 2, LAYOUTS["zero2"], 8) == 2 * MODEL.parameters


def test_a_frozen_model_is_quantized_like_the_policy():
    assert frozen_bytes(MODEL, 2, LAYOUTS["ddp"], 8, bits=8) == 2 * (MODEL.parameters - MODEL.linear) + MODEL.linear


def test_gradients_that_wait():
    """FSDP2 keeps them whole until the last micro-batch; the others split them at once, or have them whole anyway."""
    trained = replace(full(4, 2), accumulates=True)
    waiting = {name: waiting_bytes(trained, layout, 8) for name, layout in LAYOUTS.items()}
    assert waiting.pop("fsdp2") == 2 * MODEL.parameters
    assert not any(waiting.values())
    assert waiting_bytes(full(4, 2), LAYOUTS["fsdp2"], 8) == 0


def test_buffers():
    assert buffer_bytes(MODEL, full(4, 2), LAYOUTS["one"], 1) == 2 * MODEL.parameters  # autocast's copies
    assert buffer_bytes(MODEL, full(4, 4), LAYOUTS["one"], 1) == 0
    packed = Trained(1000, 4, 2, adapters=True, bits=4)  # what is packed is not cast
    assert buffer_bytes(MODEL, packed, LAYOUTS["one"], 1) == 2 * (MODEL.parameters - MODEL.linear)
    assert buffer_bytes(MODEL, full(4, 2), LAYOUTS["ddp"], 2) == 6 * MODEL.parameters  # and buckets of gradients
    assert buffer_bytes(MODEL, full(2, 2), LAYOUTS["zero2"], 2) == 2 * MODEL.parameters


def test_layouts():
    assert [layout.name for layout in candidates(1, False, False)] == ["one"]
    assert candidates(8, False, False)[0].name == "zero2"
    assert candidates(8, True, False)[0].name == "ddp"
    assert [layout.name for layout in candidates(8, True, True)] == ["ddp"]
    for name, gpus, quantized in (("one", 2, False), ("zero3", 1, False), ("zero3", 8, True)):
        with pytest.raises(ValueError, match="`layout`"):
            check_layout(name, gpus, quantized)
    assert LAYOUTS["zero3"].file_for(4) == "zero3_multinode.yaml"
