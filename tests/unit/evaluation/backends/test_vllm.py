"""Requests to vLLM, with a fake in its place."""

import pytest
from peft import LoraConfig, get_peft_model
from support.generation import requests_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.evaluation.backends.base import BackendError, SamplingSettings
from trl_credit.evaluation.backends.vllm import VLLMBackend
from trl_credit.model_files import LocalModel


SAMPLING = SamplingSettings(temperature=1.0, max_tokens=12)


def test_vllm_takes_the_next_rank(tmp_path, tiny_model, fake_vllm):
    config = LoraConfig(r=12, target_modules=["q_proj"], rank_pattern={"layers.0.self_attn.q_proj": 24})
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    VLLMBackend(LocalModel.find(str(tmp_path))).generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[0]["max_lora_rank"] == 32


def test_what_vllm_is_asked(tiny_model, fake_vllm):
    backend = VLLMBackend(
        LocalModel.find(tiny_model), "bfloat16", None, {"tensor_parallel_size": 2, "max_model_len": 30}
    )
    requests = requests_for(["1=", "12+34="], n=2)
    sampling = SamplingSettings(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, max_tokens=500, stop=("x",))
    sampling = backend.prepare(requests, sampling)
    assert sampling.max_tokens == 30 - 6
    found = {}
    backend.generate(requests, sampling, lambda request, generation: found.update({request.key: generation}))
    assert {key: generation.text for key, generation in found.items()} == {
        r.key: f"\\boxed{{{r.seed}}}" for r in requests
    }
    assert {generation.finish for generation in found.values()} == {"stop", "length"}
    assert found["t", 0, 0].tokens == 3
    (arguments,) = fake_vllm.made
    assert (arguments["model"], arguments["tensor_parallel_size"], arguments["dtype"]) == (tiny_model, 2, "bfloat16")
    assert arguments["generation_config"] == "vllm"
    _, prompt, params, lora = fake_vllm.engine.added[-1]
    assert prompt == {"prompt_token_ids": AutoTokenizer.from_pretrained(tiny_model)("12+34=")["input_ids"]}
    assert lora is None
    asked = {name: getattr(params, name) for name in sampling.as_dict()}
    assert asked == {**sampling.as_dict(), "stop": ["x"]}
    assert params.seed == requests[-1].seed
    assert backend.identity()["vllm_kwargs"] == {"max_model_len": 30}


def test_vllm_takes_an_adapter(fake_vllm, lora_adapter):
    backend = VLLMBackend(LocalModel.find(lora_adapter[0]))
    backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[0]["enable_lora"]
    assert fake_vllm.made[0]["max_lora_rank"] == 8  # vLLM takes no 4
    assert fake_vllm.engine.added[0][3] == ("adapter", 1, lora_adapter[0])


def test_vllm_that_does_not_start(tiny_model, fake_vllm):
    backend = VLLMBackend(LocalModel.find(tiny_model), vllm_kwargs={"gpu_memory_utilization": 2})
    with pytest.raises(BackendError, match=r"vLLM cannot be started: Failed to infer device type. See `vllm_kwargs`"):
        backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
