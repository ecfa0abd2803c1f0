"""Models and rewards that cannot train anything."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def never(*args, **kwargs):
    raise AssertionError("a completion was generated")


def none(completions, **kwargs):
    return [None] * len(completions)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


# Nothing trainable


@pytest.fixture(scope="module")
def other_adapter(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load(tiny_model), lora).save_pretrained(path)
    return path


# The command


def arguments(path, *more):
    rows = "".join(json.dumps({"prompt": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(3))
    (path / "data.jsonl").write_text(rows)
    return [
        "--model_name_or_path", "trl_credit:quickstart", "--dataset_name", str(path / "data.jsonl"), "--dtype", "float32",
        "--reward_funcs", "support.rewards.constant", "--output_dir", str(path / "out"), "--use_cpu", "true",
        "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "2",
        "--max_completion_length", "4", "--num_generations", "4", "--gradient_accumulation_steps", "1", *more,
    ]  # fmt: skip
