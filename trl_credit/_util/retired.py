"""Recipe fields of older releases and other projects, with today's replacements.

A recipe with such a field is rejected with the line that replaces it. Dropping the field silently would lose its
setting, and reading it silently as another field might change its meaning.
"""

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .values import is_false


_LIGER = "it no longer exists: TRL's loss does not materialize full logits anyway, so remove it"
_TRACKER = "trackers read it from the environment: write it under `env`, such as `env: {{{{{0}: ...}}}}`"
_LAUNCH = "it belongs to the launch: give {0} on the command line of `trl-credit train`, or an accelerate config"
_TASK = "it is an argument of a reward function: write `reward_funcs: [{{{{name: {0}, {1}: ...}}}}]`"
_OTHER_TRAINER = (
    "it belongs to another trainer, such as SFT or DPO, and this trains with GRPO: start from a recipe of ours"
)
_VERL = "verl's sections have no counterpart: each field stands at the top level (docs/recipes.md)"

# Fields replaced by one field with the same value
RENAMED: dict[str, str] = {
    # TRL
    "torch_dtype": "dtype",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "vllm_max_model_len": "vllm_max_model_length",
    "wandb_log_unique_prompts": "log_unique_prompts",
    # transformers
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    # open-r1
    "dataset_id_or_path": "dataset_name",
    "dataset_prompt_column": "problem_column",
    "dataset_solution_column": "answer_column",
    "hub_model_revision": "hub_revision",
    # OpenRLHF, LLaMA-Factory, axolotl, Unsloth, and PPO's names
    "actor_learning_rate": "learning_rate",
    "base_model": "model_name_or_path",
    "cliprange": "epsilon",
    "generate_max_len": "max_completion_length",
    "init_kl_coef": "beta",
    "input_key": "problem_column",
    "kl_coef": "beta",
    "label_key": "answer_column",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "micro_batch_size": "per_device_train_batch_size",
    "n_samples_per_prompt": "num_generations",
    "num_epochs": "num_train_epochs",
    "num_ppo_epochs": "num_iterations",
    "prompt_data": "dataset_name",
    "random_state": "seed",
    "response_length": "max_completion_length",
}

# Fields whose replacement takes a sentence; `{value}` is the recipe's value
ADVICE: dict[str, str] = {
    # TRL
    "max_prompt_length": (
        "it no longer exists: TRL does not truncate prompts; leave longer ones out of the data, and bound prompt and "
        "completion together with `vllm_max_model_length`"
    ),
    "use_liger_loss": _LIGER,
    "vllm_device": (
        "it no longer exists: vLLM shares the training's devices (`vllm_mode: colocate`) or runs as a server "
        "(`vllm_mode: server`)"
    ),
    "vllm_dtype": "it no longer exists: vLLM loads the model in `dtype`",
    "vllm_enable_prefix_caching": "it no longer exists: vLLM caches prefixes by default; remove it",
    "token_entropy_percentile_threshold": "it is now `top_entropy_quantile`, which is 1 minus it",
    "gradient_checkpointing_use_reentrant": "write `gradient_checkpointing_kwargs: {{use_reentrant: {value}}}`",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "epsilon_low": "it is `epsilon`: write `epsilon: {value}`",
    "ref_model_init_kwargs": "it no longer exists: the reference is loaded like the policy (`model_init_kwargs`)",
    # transformers
    "overwrite_output_dir": (
        "it no longer exists, and nothing in `output_dir` is deleted: name another folder, or set "
        "`resume_from_checkpoint: auto` to continue"
    ),
    "warmup_ratio": "it is `warmup_steps`, which below 1 is a share of the run: write `warmup_steps: {value}`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "adafactor": "write `optim: adafactor`",
    "logging_dir": _TRACKER.format("TENSORBOARD_LOGGING_DIR"),
    "save_safetensors": "it no longer exists: weights are always saved as safetensors; remove it",
    "include_inputs_for_metrics": "write `include_for_metrics: [inputs]`",
    "half_precision_backend": "it no longer exists; remove it",
    "fp16_backend": "it no longer exists; remove it",
    "fp16_opt_level": "it no longer exists; remove it",
    "use_mps_device": "it no longer exists: an available device is used; remove it",
    "xpu_backend": "it is `ddp_backend`: write `ddp_backend: {value}`",
    "sharded_ddp": "it no longer exists: write `fsdp: true`, or launch with an accelerate config",
    "fsdp_min_num_params": "write `fsdp_config: {{min_num_params: {value}}}`",
    "fsdp_transformer_layer_cls_to_wrap": "write `fsdp_config: {{transformer_layer_cls_to_wrap: {value}}}`",
    "dispatch_batches": "write `accelerator_config: {{dispatch_batches: {value}}}`",
    "split_batches": "write `accelerator_config: {{split_batches: {value}}}`",
    "push_to_hub_organization": "it is part of `hub_model_id`: write `hub_model_id: {value}/NAME`",
    "include_tokens_per_second": "it no longer exists; remove it",
    "tokenizer": "it is the model's own: `model_name_or_path` names both",
    "tokenizer_name": "it is the model's own: `model_name_or_path` names both",
    "tokenizer_name_or_path": "it is the model's own: `model_name_or_path` names both",
    "processing_class": "it is the model's own: `model_name_or_path` names both",
    # The launch
    "num_processes": _LAUNCH.format("`--num_processes N`"),
    "num_machines": _LAUNCH.format("`--accelerate_config FILE`"),
    "mixed_precision": "write `bf16: true`, `fp16: true` or, for neither, `bf16: false`",
    **dict.fromkeys(
        ("accelerate_config", "config_file", "use_deepspeed", "use_fsdp", "gpu_ids"),
        _LAUNCH.format("`--accelerate_config FILE`"),
    ),
    "compute_environment": "this is a file for `--accelerate_config`, not a recipe",
    "distributed_type": "this is a file for `--accelerate_config`, not a recipe",
    "deepspeed_config": "it is `deepspeed`, or part of an accelerate config",
    "zero_stage": _LAUNCH.format("`--accelerate_config zero3` or `zero2`"),
    # open-r1
    "dataset_mixture": (
        "write `datasets: [{{path: ..., name: ..., split: ..., columns: [...]}}]`, one entry for each dataset, and "
        "`test_split_size` beside it; a `weight` is a slice of the split, such as `split: train[:50%]`"
    ),
    "dataset_configs": "it is `dataset_config`, one name: write `dataset_config: {first}`",
    "dataset_splits": "write `dataset_train_split` and `dataset_test_split`",
    "chat_template": "it is the tokenizer's own: save the model's folder with it",
    "benchmarks": "write `eval: {{tasks: [...]}}`",
    "wandb_entity": _TRACKER.format("WANDB_ENTITY"),
    "wandb_project": _TRACKER.format("WANDB_PROJECT"),
    "wandb_run_group": _TRACKER.format("WANDB_RUN_GROUP"),
    "wandb_run_name": "write `run_name: {value}`",
    **{
        f"cosine_{name}": _TASK.format("cosine_scaled", name)
        for name in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct")
    },
    "cosine_max_len": _TASK.format("cosine_scaled", "max_len"),
    "repetition_n_grams": _TASK.format("repetition_penalty", "ngram_size"),
    "repetition_max_penalty": _TASK.format("repetition_penalty", "max_penalty"),
    "max_completion_len": _TASK.format("soft_overlong_punishment", "max_completion_len"),
    "soft_punish_cache": _TASK.format("soft_overlong_punishment", "soft_punish_cache"),
    # verl
    **dict.fromkeys(("actor_rollout_ref", "algorithm", "critic", "data", "custom_reward_function"), _VERL),
    # TRL's other trainers
    **dict.fromkeys(
        (
            *("assistant_only_loss", "completion_only_loss", "dataset_text_field", "max_length", "packing"),
            *("padding_free", "desirable_weight", "label_smoothing", "precompute_ref_log_probs", "reference_free"),
            "rpo_alpha",
        ),
        _OTHER_TRAINER,
    ),
    # The rest
    "adapter": "write `use_peft: true` (and `lora_r`, `lora_alpha`)",
    "finetuning_type": "write `use_peft: true` (and `lora_r`, `lora_alpha`)",
    "recipe": "the recipe is named with `--config FILE`",
    "batch_size": "write `per_device_train_batch_size`, and `gradient_accumulation_steps` for a larger batch",
    "train_batch_size": "write `per_device_train_batch_size`, and `gradient_accumulation_steps` for a larger batch",
    "max_seq_length": (
        "it no longer exists: `max_completion_length` bounds the completion, `vllm_max_model_length` the whole sequence"
    ),
    "model": "write `model_name_or_path: {value}`",
    "dataset": "write `dataset_name: {value}`",
    "reward_model": "write `reward_model_name_or_path`, or `reward_funcs` for functions",
}


# Fields whose replacement switches something on
_SWITCHES = ("group_by_length", "adafactor", "use_flash_attention_2", "sharded_ddp", "use_deepspeed", "use_fsdp")


def retired_hint(name: str, value: Any = None) -> str | None:
    """How to replace a field of an older release or another project, as the end of a sentence; `None` if unknown."""
    shown = _flow(value)
    if name in _SWITCHES and (is_false(value) or value == ""):
        return "it is off here: remove it"
    if name in RENAMED:
        return f"write `{RENAMED[name]}: {shown}`"
    if name in ADVICE:
        return ADVICE[name].format(value=shown, first=_flow(value[0] if isinstance(value, list) and value else value))
    return None


def _flow(value: Any) -> str:
    """A value as a recipe would write it, on one line."""
    if value is None:
        return "..."
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)


def unknown_fields(
    found: Mapping[str, Any], known: Collection[str], where: str, more: Callable[[str], str | None] = lambda name: None
) -> str | None:
    """A message about all unknown fields, each with what was probably meant, or `None` if all are known.

    Args:
        found: Fields that are set, and their values.
        known: All existing fields.
        where: Where they are set, such as `in the recipe`.
        more: Says what to write instead of a field that this table lacks.
    """
    hints = []
    for name, value in found.items():
        if name in known:
            continue
        hint = retired_hint(name, value) or more(name)
        if hint is None:
            close = close_field(name, known)
            hint = f"Did you mean {close!r}?" if close else None
        hints.append((name, hint))
    if not hints:
        return None
    if len(hints) == 1:
        ((name, hint),) = hints
        if hint is None:
            return f"Unknown field `{name}` {where}. See --help."
        end = hint if hint.endswith("?") else f"{hint[0].upper()}{hint[1:]}."
        return f"Unknown field `{name}` {where}. {end}"
    parts = "; ".join(f"`{name}`" + (f": {hint.rstrip('?')}" if hint else "") for name, hint in hints)
    end = "" if all(hint for _, hint in hints) else " See --help."
    return f"{len(hints)} unknown fields {where}. {parts}.{end}"


def close_field(name: str, known: Collection[str]) -> str | None:
    """The field that a misspelt name means: it differs in few letters, and does not just look alike."""
    text = name.lower().replace("-", "_")
    for candidate in difflib.get_close_matches(text, sorted(known), n=5, cutoff=0.8):
        # `num_processes` does not mean `num_iterations`, but `dataset_configs` may mean `dataset_config`: each word
        # must agree up to a letter or two
        ours, theirs = text.split("_"), candidate.split("_")
        if (
            _digits(text) == _digits(candidate)
            and len(ours) == len(theirs)
            and all(
                a == b or difflib.SequenceMatcher(None, a, b).ratio() >= 0.65 for a, b in zip(ours, theirs, strict=True)
            )
        ):
            return candidate
        if text.replace("_", "") == candidate.replace("_", ""):
            return candidate
    return None


def _digits(text: str) -> str:
    """Digits of a name, which must agree: `beta1` is not `beta`, nor is `load_in_2bit` `load_in_4bit`."""
    return "".join(character for character in text if character.isdigit())
