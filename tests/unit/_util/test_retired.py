"""Retired and foreign field names."""

import dataclasses

import pytest
from support.settings import recipe

from trl_credit._util.retired import ADVICE, RENAMED, close_field, retired_hint
from trl_credit._util.yaml import dump
from trl_credit.recipe.recipe import RECIPE_TYPES, recipe_types


BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"

# Fields of other releases and projects


FOREIGN = {
    "torch_dtype": ("float32", "`torch_dtype`: write `dtype: float32`"),
    "max_prompt_length": (512, "`max_prompt_length`: it no longer exists: TRL does not truncate prompts"),
    "overwrite_output_dir": (
        True,
        "`overwrite_output_dir`: it no longer exists, and nothing in `output_dir` is deleted",
    ),
    "dataset_prompt_column": ("problem", "`dataset_prompt_column`: write `problem_column: problem`"),
    "vllm_device": ("auto", "`vllm_device`: it no longer exists: vLLM shares"),
    "num_processes": (8, "`num_processes`: it belongs to the launch"),
    "dataset_configs": (["all"], "`dataset_configs`: it is `dataset_config`, one name: write `dataset_config: all`"),
    "use_liger_loss": (True, "`use_liger_loss`: it no longer exists"),
    "evaluation_strategy": ("no", "`evaluation_strategy`: write `eval_strategy: no`"),
    "per_gpu_train_batch_size": (4, "write `per_device_train_batch_size: 4`"),
    "warmup_ratio": (0.1, "write `warmup_steps: 0.1`"),
    "actor_rollout_ref": ({"model": {}}, "verl's sections have no counterpart"),
    "tokenizer": ("x", "`model_name_or_path` names both"),
    "max_length": (512, "`max_length`: it belongs to another trainer, such as SFT or DPO"),
    "lerning_rate": (1e-6, "`lerning_rate`: Did you mean 'learning_rate'"),
}


def test_foreign_fields_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown fields") as raised:
        recipe(tmp_path, dump({name: value for name, (value, _) in FOREIGN.items()}))
    message = str(raised.value)
    assert message.startswith(f"{len(FOREIGN)} unknown fields in the recipe. ")
    for _, part in FOREIGN.values():
        assert part in message
    assert "\n" not in message


def test_retired_names_are_not_fields_and_their_successors_are():
    known = {f.name for kind in RECIPE_TYPES for f in dataclasses.fields(kind)}
    assert not (set(RENAMED) | set(ADVICE)) & known
    assert set(RENAMED.values()) <= known
    for name in (*RENAMED, *ADVICE):
        for value in (1, ["a"], None):
            assert "{{" not in retired_hint(name, value)
    assert retired_hint("learning_rate") is None


def test_what_is_off_is_removed():
    for name in ("group_by_length", "adafactor", "use_flash_attention_2", "use_deepspeed"):
        for off in (False, "false", "no"):
            assert retired_hint(name, off) == "it is off here: remove it"
        assert retired_hint(name, True) != "it is off here: remove it"
    assert "or, for neither, `bf16: false`" in retired_hint("mixed_precision", "no")
    assert "`--accelerate_config FILE` on the command line" in retired_hint("accelerate_config", "zero3")
    mixture = retired_hint("dataset_mixture", {"datasets": [{"id": "a/b", "weight": 0.5}]})
    assert "write `datasets: [{path: ..., name: ..." in mixture


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lerning_rate", "learning_rate"), ("learningrate", "learning_rate"), ("lora_alfa", "lora_alpha"),
        ("reward_func", "reward_funcs"), ("num_generation", "num_generations"), ("maxsteps", "max_steps"),
        # Alike, and of another meaning
        ("num_processes", None), ("max_prompt_length", None), ("dataset_prompt_column", None), ("min_steps", None),
        ("eval_batches", None), ("reward_scale", None), ("vllm_device", None), ("beta1", None), ("num_samples", None),
    ],
)  # fmt: skip
def test_a_nearest_field_is_really_near(name, meant):
    assert close_field(name, recipe_types()) == meant
