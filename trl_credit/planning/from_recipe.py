"""Puts a recipe in numbers."""

import functools
from dataclasses import replace
from typing import Any

from ..methods.base import CreditMethod
from ..methods.registry import build_credit
from ..model_files import LocalModel
from ..recipe.recipe import Recipe
from ..trainer.exactness import check_policy, is_off_policy, skip_refusal
from ..trainer.grpo import DEFAULT_CACHE_GIB
from .config import PlanConfig
from .memory import Batch, Trained
from .passes import passes_of
from .run import Run, kept_signals
from .sizes import Model, adapter_parameters, model_of
from .uncounted import refuse, uncounted
from .work import Pass, Update, continued_tokens


# Steps of a completion, if nothing is said
DEFAULT_STEPS = 10


def read_run(recipe: Recipe, config: PlanConfig) -> Run:
    """A recipe in numbers, from its fields and its models' configs. Loads neither weights nor data.

    Raises:
        ValueError: It trains images, TRL would not start it, a model's config cannot be read, or a setting of the command
            has no effect.
    """
    script, args, model_args = recipe.script, recipe.training, recipe.model
    if script.trainer != "grpo":
        raise ValueError(
            f"`trainer: {script.trainer}` trains images, and the formulas here are for language models. The header of each "
            "recipe of recipes/images and recipes/janus-pro-* estimates its memory."
        )
    trust = args.trust_remote_code
    found = LocalModel.find(
        model_args.model_name_or_path, model_args.model_revision, trust, field="model_name_or_path", needs=None
    )
    config_ = found.config()

    @functools.cache
    def sizes(name: str) -> Model:
        if name == found.path:
            return model_of(config_, found.path, trust)
        other = LocalModel.find(name, trust_remote_code=trust, adapter=False, needs=None)
        return model_of(other.config(), name, trust)

    model, method = sizes(found.path), build_credit(args.credit or "uniform")
    check_policy(method, "tokens")
    peft_config = recipe.peft_config(found.adapter)
    adapters = peft_config is not None
    refuse(args, model_args, adapters, config.gpus)
    parameters = adapter_parameters(config_, peft_config, trust) if adapters else model.parameters
    weight_bytes = _weight_bytes(model_args.dtype, config_)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    compute_bytes = weight_bytes if precision == "no" else 2
    completion, mean = args.max_completion_length, config.mean_completion_tokens
    if mean is not None and mean > completion:
        raise ValueError(
            f"`mean_completion_tokens` ({mean}) is above the recipe's `max_completion_length` ({completion}). Lower it, or "
            "raise that."
        )
    batch = Batch(
        rows=args.per_device_train_batch_size,
        prompt=config.prompt_tokens,
        completion=completion,
        checkpointing=bool(args.gradient_checkpointing),
        attention=_attention(model_args.attn_implementation),
    )
    accumulation = args.gradient_accumulation_steps
    syncs = bool((args.accelerator_config.gradient_accumulation_kwargs or {}).get("sync_each_batch"))
    update = Update(
        prompt=config.prompt_tokens,
        completion=mean or completion,
        completions=args.generation_batch_size,
        zero_advantage=config.zero_advantage,
        iterations=args.num_iterations,
        steps=args.steps_per_generation / (1 if syncs else accumulation),
        checkpointing=batch.checkpointing,
        # A mask, which kernels but flash attention's take whole
        attention=0.5 if batch.attention == "flash" else 1.0,
        old_logps=is_off_policy(args) or (args.use_vllm and args.vllm_importance_sampling_correction),
        skipping=_skips(args, method),
        adapters=adapters,
    )
    follows = bool(args.sync_ref_model)
    passes = passes_of(method, found.path, adapters, update.completion, sizes, follows)
    penalty = None
    if args.beta:
        penalty = Pass("reference", every_row=True, fused=True, model=None if adapters else model)
    cache = 2**30 * (DEFAULT_CACHE_GIB if args.credit_cache_gib is None else args.credit_cache_gib)
    wanted = kept_signals(
        passes, model, compute_bytes, args.per_device_train_batch_size * args.steps_per_generation * update.completion
    ) * (1 - update.zero_advantage)
    colocate = args.use_vllm and args.vllm_mode == "colocate"
    return Run(
        method=method.name,
        model=model,
        trained=Trained(
            parameters, weight_bytes, compute_bytes, adapters, _bits(model_args), accumulation > 1 and not syncs
        ),
        precision=precision,
        batch=batch,
        accumulation=accumulation,
        steps=args.steps_per_generation,
        update=replace(update, kept=min(cache / wanted, 1.0) if wanted else 1.0),
        passes=tuple(passes),
        penalty=penalty,
        continued=_continued(method, update, config.steps, args.num_generations),
        rollout_states="hidden_states" in method.rollout_needs,
        cache=0.0 if args.credit_cache_device == "cpu" else cache,
        engine=args.vllm_mode if args.use_vllm else None,
        engine_share=args.vllm_gpu_memory_utilization,
        engine_split=args.vllm_tensor_parallel_size,
        engine_gpus=config.engine_gpus or config.gpus_per_machine,
        context=(colocate and (args.vllm_max_model_length or model.context)) or batch.length,
        sleeps=bool(args.vllm_enable_sleep_mode),
        gathers=bool(args.ds3_gather_for_generation),
        uncounted=(*model.odd, *uncounted(args, model_args)),
    )


def _weight_bytes(dtype: str | None, config: Any) -> int:
    if dtype == "auto":
        dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return 2 if dtype in ("bfloat16", "float16") else 4


def _attention(name: str | None) -> str:
    if name is not None and "flash" in name:
        return "flash"
    return "eager" if name == "eager" else "sdpa"


def _bits(model_args: Any) -> int | None:
    return 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None


def _skips(args: Any, method: CreditMethod) -> bool:
    if args.skip_zero_advantage is not None:
        return args.skip_zero_advantage
    return method.name != "uniform" and skip_refusal(args, method) is None


def _continued(method: CreditMethod, update: Update, steps: int | None, generations: int) -> float:
    found = list(method.continuations())
    if steps is not None and not any(not isinstance(asked.every, int) for asked in found):
        raise ValueError(
            f"`steps` ({steps}) has no effect: {method.name!r} does not continue completions from each step. Remove it."
        )
    return sum(
        continued_tokens(
            asked.count,
            update.completion / asked.every if isinstance(asked.every, int) else steps or DEFAULT_STEPS,
            generations,
        )
        for asked in found
    )
