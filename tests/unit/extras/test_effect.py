"""Checks for runs that would train nothing."""

import pytest
import torch
from helpers import config
from peft import LoraConfig, PeftModel, get_peft_model
from support.effect import load

from trl_credit import CreditGRPOConfig
from trl_credit.extras.effect import NothingTrainedError, check_rows, check_trainable
from trl_credit.extras.nonfinite import nonfinite_names


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("rows", "processes"), [(0, 1), (7, 1), (8, 1), (8, 2), (15, 2), (16, 2)])
def test_rows_of_all_processes(rows, processes, tmp_path, monkeypatch):
    monkeypatch.setattr(CreditGRPOConfig, "world_size", processes)
    args = config(tmp_path, steps_per_generation=4)
    needed = 8 * processes
    assert args.generation_batch_size == 4 * needed
    if rows >= needed:
        check_rows(range(rows), args)
        return
    with pytest.raises(ValueError, match=rf"has {rows} rows, but a generation batch needs {needed} "):
        check_rows(range(rows), args)


def test_another_adapter_than_the_active_one(tiny_model, other_adapter, tmp_path):
    model = PeftModel.from_pretrained(load(tiny_model), other_adapter)
    model.load_adapter(other_adapter, "other", is_trainable=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".other." in name)
    with pytest.raises(NothingTrainedError, match=r"adapter 'default' is trainable; other is not active"):
        check_trainable(model)
    model.set_adapter("other")
    check_trainable(model)


def test_what_is_trainable_is_let_be(tiny_model):
    saved = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(load(tiny_model), saved)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("modules_to_save" in name)
    check_trainable(model)
    part = load(tiny_model).requires_grad_(False)
    part.model.layers[1].requires_grad_(True)  # a frozen vision tower is the same
    check_trainable(part)
    for parameter in part.parameters():  # as ZeRO-3 leaves them
        parameter.data = torch.empty(0)
    check_trainable(part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_not_finite_is_what_is_found(dtype):
    largest = torch.finfo(dtype).max
    model = torch.nn.ParameterDict({name: torch.full((500, 3), largest, dtype=dtype) for name in "abcd"})
    model["empty"] = torch.nn.Parameter(torch.zeros(0))
    model["integers"] = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert nonfinite_names(model.named_parameters()) == []
    for value, name in ((NAN, "b"), (INF, "c"), (-INF, "d")):
        model[name].data[77, 1] = value
    assert nonfinite_names(model.named_parameters()) == ["b", "c", "d"]
