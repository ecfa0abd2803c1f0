"""The shipped recipes for image models, run on tiny pipelines of the same classes."""

import pytest
from helpers import ROOT
from support.pipelines import PIPELINES, SETTINGS
from support.train import ON_CPU, write

from trl_credit import train


RECIPES = {"sd15_pcpo_lora": "sd15", "sd35_pcpo_lora": "sd3", "flux_pcpo_lora": "flux"}
SMALL = [
    "--num_generations", "2", "--per_device_train_batch_size", "2", "--steps_per_generation", "2",
    "--gradient_accumulation_steps", "2", "--sampling_batch_size", "2", "--height", "16", "--width", "16",
    "--num_inference_steps", "5", "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--dtype", "float32",
    "--fp16", "false",
]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name, tmp_path):
    """With its LoRA settings, whose default task type is that of language models."""
    kind = RECIPES[name]
    PIPELINES[kind](tmp_path).save_pretrained(tmp_path / "pipeline")
    rows = [{"caption": prompt} for prompt in ("a red fox", "blue boat", "a boat", "fox in the snow")]
    words = [
        "--config", str(ROOT / "recipes" / "images" / f"{name}.yaml"), "--model_name_or_path", str(tmp_path / "pipeline"),
        "--dataset_name", write(tmp_path / "prompts.jsonl", rows), "--problem_column", "caption", "--reward_funcs",
        "incompressibility", "--output_dir", str(tmp_path / "out"), *SMALL, *ON_CPU,
    ]  # fmt: skip
    if kind == "flux":
        words += ["--train_steps_drawn", "3"]
    if "pipeline_kwargs" in SETTINGS[kind]:
        words += ["--pipeline_kwargs", '{"max_sequence_length": 12}']
    trainer = train.main(words)
    assert trainer.state.global_step == 2
    assert trainer.credit_method.name == "pcpo"
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()
    assert (tmp_path / "out" / "checkpoint-1" / "pytorch_lora_weights.safetensors").exists()
    assert any(log.get("grad_norm", 0) > 0 for log in trainer.state.log_history)
