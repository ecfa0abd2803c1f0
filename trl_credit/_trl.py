"""The interface to TRL: every TRL name used outside the trainer, and every private member that the trainer relies on.

Only this module, [`~trl_credit.extras`], [`~trl_credit.trainer`] and [`~trl_credit.recipe`] import `trl`, and so does
the script `rewards/_worker.py`, which runs in its own process. Names are imported on first use, so code that needs no
trainer loads none.

When a new minor release of TRL moves something, `tests/unit/test_contract.py` fails with the entry's reason.
CONTRIBUTING.md lists the steps.
"""

from typing import NamedTuple

from ._util.lazy import lazy_names


# Public and semi-public names, with their modules in the tested release
NAMES = {
    "GRPOTrainer": "trl",
    "SyncRefModelCallback": "trl.trainer.callbacks",
    "TrlParser": "trl",
    "create_model_from_path": "trl.trainer.utils",
    "get_callable_name": "trl.trainer.utils",
    "get_config_model_id": "trl.trainer.utils",
    "get_cosine_scaled_reward": "trl.rewards",
    "get_repetition_penalty_reward": "trl.rewards",
    "get_soft_overlong_punishment": "trl.rewards",
    "is_vllm_available": "trl.import_utils",
    "maybe_gather_lm_head_ctx": "trl.trainer.utils",
    "pad": "trl.trainer.utils",
    "prepare_deepspeed": "trl.models",
    "prepare_fsdp": "trl.models",
    "prepare_multimodal_messages": "trl.data_utils",
    "split_pixel_values_by_grid": "trl.trainer.utils",
    "think_format_reward": "trl.rewards",
    "unsplit_pixel_values_by_grid": "trl.trainer.utils",
    "use_adapter": "trl.trainer.utils",
}

__getattr__, __dir__ = lazy_names(__name__, NAMES)


class Leaned(NamedTuple):
    """A private member of `GRPOTrainer` or `Trainer` that this package overrides, calls or reads.

    Args:
        why: What it is used for.
        mend: What to do when it moves.
        parameters: A method's parameter names in the tested release, without `self`; `None` for an attribute.
    """

    why: str
    mend: str
    parameters: tuple[str, ...] | None = None


_SAME = "Adapt the override to the new parameters; it only wraps `super()`."
# Batch entries that TRL's policy forward takes besides token ids and masks: images and token types
FORWARD_KEYS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
    "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
_FORWARD = (
    "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
    *FORWARD_KEYS,
)  # fmt: skip

LEANED_ON: dict[str, Leaned] = {
    # TRL: the rollout
    "_generate": Leaned(
        "Signals need the prompts as generated from; dynamic sampling replaces groups here.",
        "Find where TRL has completions but no rewards yet.",
        ("prompts",),
    ),
    "_generate_and_score_completions": Leaned(
        "Signals add their entries to the batch that TRL buffers.",
        "Find where the batch is complete but not yet buffered.",
        ("inputs",),
    ),
    "_generate_single_turn": Leaned(
        "Evaluates with the trainer's engine; continues completions; replaced while dynamic sampling logs its final batch.",
        "Find the call to transformers or vLLM for one turn.",
        ("prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    ),
    "_tool_call_loop": Leaned(
        "Replaced while dynamic sampling logs its final batch.",
        "Log the generation metrics another way.",
        ("prompts", "prompt_ids", "completion_ids", "completions", "logprobs", "images", "multimodal_fields"),
    ),
    "_tokenize_prompts": Leaned(
        "Tokenizes negative prompts as TRL tokenizes prompts; replaced while completions are continued.",
        "Find TRL's tokenization of prompts.",
        ("prompts",),
    ),
    "_calculate_rewards": Leaned(
        "Rewards are guarded, kept for the scorer, and computed once per round of dynamic sampling.",
        "Find where TRL has all processes' rewards.",
        ("inputs", "prompts", "completions", "completion_ids_list"),
    ),
    "_get_train_sampler": Leaned("Prompts are drawn and resumed in its order.", _SAME, ("dataset",)),
    "_remove_unused_columns": Leaned("Drops the columns of fresh rows that TRL's dataloader would drop.", _SAME),
    "_batch_environments": Leaned("Environments of replaced groups.", "Find where TRL keeps them between calls."),
    "_pending_extra_logs": Leaned(
        "Holds what reward functions logged for replaced completions.", "Find what `log_extra` writes to."
    ),
    "_pending_metrics": Leaned(
        "Kept apart while completions are continued.", "Find what `log_metric` writes to."
    ),
    "_signature_columns": Leaned("Keeps the columns that signals and rewards read.", "Find which columns TRL keeps."),
    "_set_signature_columns_if_needed": Leaned("As `_signature_columns`.", _SAME, ()),
    # TRL: the update
    "_prepare_inputs": Leaned(
        "Plans a new generation batch once TRL has buffered it.",
        "Find where the buffer is replaced.",
        ("generation_batch",),
    ),
    "_buffered_inputs": Leaned("The micro-batches of a generation batch.", "Find the buffer."),
    "_step": Leaned("Says which micro-batch is next; saved in checkpoints.", "Find the buffer's counter."),
    "_compute_loss": Leaned(
        "Signals' forwards run before it; it reads the advantages from a copy of its batch.",
        "The loss must read `advantages` after the policy's forward, and take (B, T).",
        ("model", "inputs"),
    ),
    "_get_per_token_logps_and_entropies": Leaned(
        "The policy's forward, after which token advantages are known.", "Find the forward in the loss.", _FORWARD
    ),
    "_metrics": Leaned("Metrics until they are logged.", "Find where TRL collects them."),
    "_logs": Leaned("The table of completions.", "Find where TRL collects it."),
    "_last_world_entropy": Leaned("State of the adaptive entropy coefficient; saved in checkpoints.", "Find that state."),
    "_tokenizer": Leaned("The tokenizer, even inside a processor.", "Take it from `processing_class`."),
    "_is_vlm": Leaned("Says whether the policy takes images.", "Find how TRL decides."),
    "_dist": Leaned("Process group of vLLM.", "Find how TRL shares its engine."),
    "_name": Leaned("Used in the model card.", "See `create_model_card`."),
    "_paper": Leaned("Used in the model card and by `uniform`.", "See `create_model_card`."),
    "_tag_names": Leaned("Used in the model card.", "See `create_model_card`."),
    # transformers: the run
    "_get_grad_norm": Leaned("The last place where an update can be skipped.", _SAME, ("model", "grad_norm")),
    "_init_training_state": Leaned(
        "Where a resumed run finds its place in the data.",
        _SAME,
        ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    ),
    "_prepare_for_training": Leaned(
        "Model and optimizer exist, but nothing is trained yet.",
        _SAME,
        ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    ),
    "_run_epoch": Leaned(
        "Resuming a finished run ends at once.",
        _SAME,
        (
            "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
            "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
    ),
    "_maybe_log_save_evaluate": Leaned(
        "After each update: checks the parameters and saves what is due.",
        _SAME,
        (
            "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
        ),
    ),
    "_save_checkpoint": Leaned("The manifest is written last.", _SAME, ("model", "trial")),
    "_save": Leaned(
        "With `save_on_each_node`, weights are written on every machine, which `should_save_on_this_rank` prevents.",
        "Find who decides which process writes weights.",
        ("output_dir", "state_dict"),
    ),
    "_get_output_dir": Leaned("Where checkpoints go.", _SAME, ("trial",)),
    "_save_rng_state": Leaned("The rest of a resumed run's state is saved beside it.", _SAME, ("output_dir",)),
    "_load_rng_state": Leaned("Restores state once the run is back at its position.", _SAME, ("checkpoint",)),
    "_tr_loss": Leaned("The loss since the last log; saved in checkpoints.", "Find the sum that `log` divides."),
    "_globalstep_last_logged": Leaned("As `_tr_loss`.", "Find what `log` divides by."),
    "_initial_global_step": Leaned("Says whether a run made any update of its own.", "Find where `train` keeps it."),
}  # fmt: skip
