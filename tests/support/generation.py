"""Requests for a backend, an adapter, and a fake vLLM."""

import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.evaluation.backends.base import Request


def requests_for(prompts, n=1, seed=0):
    return [
        Request("t", number, index, seed + 1000 * number + index, prompt)
        for number, prompt in enumerate(prompts)
        for index in range(n)
    ]


@pytest.fixture(scope="module")
def lora_adapter(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "lora"
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    model.save_pretrained(path)
    merged = tmp_path_factory.mktemp("merged") / "m"
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(merged)
    return str(path), str(merged)


# ---- vLLM: the engine's interface as in vLLM 0.31, without its engine


class FakeEngine:
    def __init__(self):
        self.added, self.waiting = [], []

    def add_request(self, request_id, prompt, params, lora_request=None):
        self.added.append((request_id, prompt, params, lora_request))
        self.waiting.append(request_id)

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        request_id = self.waiting.pop()  # another order
        seed = self.added[int(request_id)][2].seed
        output = types.SimpleNamespace(
            text=f"\\boxed{{{seed}}}", token_ids=[1, 2, 3], finish_reason="stop" if seed % 2 else "length"
        )
        return [types.SimpleNamespace(finished=True, request_id=request_id, outputs=[output])]


@pytest.fixture
def fake_vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.made = []

    class LLM:
        def __init__(self, **arguments):
            module.made.append(arguments)
            if arguments.get("max_lora_rank", 8) not in (1, 8, 16, 32, 64, 128, 256, 320, 512):
                raise ValueError("Input should be 1, 8, 16, ...")
            if arguments.get("gpu_memory_utilization") == 2:
                raise RuntimeError("Failed to infer device type\nmore")
            self.llm_engine = module.engine = FakeEngine()
            module.engine.model_config = types.SimpleNamespace(dtype=torch.bfloat16)

    module.LLM = LLM
    module.SamplingParams = lambda **arguments: types.SimpleNamespace(**arguments)
    sampling = types.ModuleType("vllm.sampling_params")
    sampling.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY=2)
    lora = types.ModuleType("vllm.lora.request")
    lora.LoRARequest = lambda *arguments: arguments
    module.is_cpu = False
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: module.is_cpu)
    modules = {
        "vllm": module,
        "vllm.platforms": platforms,
        "vllm.sampling_params": sampling,
        "vllm.lora": types.ModuleType("x"),
        "vllm.lora.request": lora,
    }
    for name, value in modules.items():
        monkeypatch.setitem(sys.modules, name, value)
    return module
