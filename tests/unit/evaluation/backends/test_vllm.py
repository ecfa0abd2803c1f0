"""Requests to vLLM, with a fake in its place."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, field_validator, model_validator
from support.generation import requests_for
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

from trl_credit.evaluation.backends.base import BackendError, SamplingSettings
from trl_credit.evaluation.backends.vllm import VLLMBackend, checkpoint_dtype
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


def test_vllm_takes_an_adapter(fake_vllm, lora_adapter):
    backend = VLLMBackend(LocalModel.find(lora_adapter[0]))
    backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[0]["enable_lora"]
    assert fake_vllm.made[0]["max_lora_rank"] == 8  # vLLM takes no 4
    assert fake_vllm.engine.added[0][3] == ("adapter", 1, lora_adapter[0])


def test_what_changes_speed_only_is_not_part_of_a_run(tiny_model, fake_vllm):
    """So that a start that failed for want of memory may be tried with other settings, and a run go on with them."""

    def identity(**kwargs):
        return VLLMBackend(LocalModel.find(tiny_model), "auto", None, kwargs).identity()

    faster = {"max_model_len": 30, "max_num_seqs": 4, "max_num_batched_tokens": 64, "enforce_eager": True}
    layout = {"kv_cache_memory_bytes": 2**30, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}
    assert identity() == identity(**faster, **layout)
    assert identity(quantization="fp8")["vllm_kwargs"] == {"quantization": "fp8"}
    assert identity(dtype="bfloat16")["dtype"] == "bfloat16"


def checkpoint(path, tiny_model, dtype) -> LocalModel:
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return LocalModel.find(str(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_on_a_cpu_is_the_checkpoint_s_dtype(tmp_path, tiny_model, fake_vllm, dtype):
    """By itself, vLLM makes a float32 checkpoint bfloat16."""
    fake_vllm.is_cpu = True
    backend = VLLMBackend(checkpoint(tmp_path, tiny_model, dtype))
    assert backend.identity()["dtype"] == dtype
    backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[0]["dtype"] == dtype
    assert backend.notes() == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_on_a_gpu_is_vllm_s(tmp_path, tiny_model, fake_vllm, dtype, caplog):
    """It knows what the card and its kernels can do. What it took is noted if it is not the checkpoint's."""
    backend = VLLMBackend(checkpoint(tmp_path, tiny_model, dtype))
    assert backend.identity()["dtype"] == "auto"
    backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[0]["dtype"] == "auto"
    noted = [] if dtype == "bfloat16" else [f"vLLM's `dtype: auto` made the {dtype} checkpoint bfloat16"]
    assert backend.notes() == noted
    assert len(caplog.records) == len(noted)
    chosen = VLLMBackend(backend.files, vllm_kwargs={"dtype": "float32"})
    assert chosen.identity()["dtype"] == "float32"
    chosen.generate(requests_for(["1="]), SAMPLING, lambda *_: None)
    assert fake_vllm.made[1]["dtype"] == "float32"
    assert chosen.notes() == []


@pytest.mark.parametrize(
    ("is_cpu", "dtype", "kwargs", "expected"),
    [
        (False, "auto", {"max_model_len": 30, "max_num_seqs": 4}, "auto"),
        (False, "bfloat16", {}, "bfloat16"),
        (True, "auto", {"enforce_eager": True}, "bfloat16"),  # vLLM's choice for float32
        (True, "float32", {}, "float32"),
        (True, "auto", {"dtype": "float32", "quantization": "fp8"}, "float32"),
    ],
)
def test_runs_of_an_earlier_release_go_on(tiny_model, fake_vllm, is_cpu, dtype, kwargs, expected):
    """It wrote `dtype` as it was set, and all of `vllm_kwargs` but the layout over GPUs."""
    fake_vllm.is_cpu = is_cpu
    files = LocalModel.find(tiny_model)
    old = {**files.fingerprint(), "dtype": dtype, "vllm_kwargs": kwargs}
    assert (
        VLLMBackend(files).upgraded(old) == VLLMBackend(files, expected, None, kwargs | {"dtype": expected}).identity()
    )


def test_with_longrope_max_model_len_is_part_of_a_run(tmp_path, tiny_model, fake_vllm):
    """From a length on, vLLM scales all positions by other factors."""
    config = Phi3Config(
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    )
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    kwargs = {"max_model_len": 64, "max_num_seqs": 4}
    backend = VLLMBackend(LocalModel(str(tmp_path)), "auto", None, kwargs)
    assert backend._identifying(kwargs) == {"max_model_len": 64}


def test_a_checkpoint_that_states_no_dtype(tmp_path, tiny_model):
    files = LocalModel.find(tiny_model)
    files.config().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(LocalModel(str(tmp_path))) == "auto"


def test_vllm_that_does_not_start(tiny_model, fake_vllm):
    backend = VLLMBackend(LocalModel.find(tiny_model), vllm_kwargs={"gpu_memory_utilization": 2})
    with pytest.raises(BackendError, match=r"started: Failed to infer device type more. See `dtype`"):
        backend.generate(requests_for(["1="]), SAMPLING, lambda *_: None)


def test_the_cause_of_a_setting_that_vllm_refuses(tiny_model, fake_vllm, monkeypatch):
    """Its first line is `1 validation error for ModelConfig`."""

    class Fields(BaseModel):
        seed: int
        max_model_len: int

        @field_validator("max_model_len")
        @classmethod
        def fits(cls, value):
            raise ValueError(f"{value} is greater than the derived one\n(128). " + "x" * 900)

    class Whole(BaseModel):
        @model_validator(mode="after")
        def fits(self):
            raise ValueError("no room\nfor it")

    def message(engine):
        monkeypatch.setattr(fake_vllm, "LLM", engine)
        with pytest.raises(BackendError, match="vLLM cannot be started") as error:
            VLLMBackend(LocalModel.find(tiny_model)).generate(requests_for(["1="]), SAMPLING, lambda *_: None)
        return str(error.value)

    said = message(lambda **_: Fields(max_model_len=4096, seed="x"))
    assert "started: seed: Input should be a valid integer" in said
    assert "; max_model_len: 4096 is greater than the derived one (128). x" in said
    assert len(said) < 1100
    assert "vLLM cannot be started: no room for it. See" in message(lambda **_: Whole())
