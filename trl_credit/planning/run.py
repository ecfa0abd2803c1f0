"""A recipe in numbers."""

import functools
from dataclasses import dataclass, replace
from typing import Any

from ..methods.base import CreditMethod
from ..methods.registry import build_credit
from ..model_files import LocalModel
from ..recipe.recipe import Recipe
from ..trainer.exactness import check_policy, is_off_policy, skip_refusal
from .config import PlanConfig
from .layouts import Layout
from .memory import Batch, Trained
from .passes import passes_of
from .sizes import Model, adapter_parameters, model_of
from .work import Pass, Update, continued_tokens


@dataclass(frozen=True)
class Run:
    """A recipe in numbers.

    Args:
        method: Name of the credit method.
        model: The policy.
        trained: What is trained, at the precision of the recipe.
        batch: A micro-batch, of the greatest lengths.
        update: The updates on a generation batch, of mean lengths.
        updates: How many they are.
        passes: What credit adds.
        penalty: The forward of TRL's KL penalty, if there is one.
        continued: Tokens that credit generates for each token of the rollout.
        rollout_states: Whether credit reads the hidden states of a whole generation batch at once.
        cache: Bytes at most of signals that iterations share.
        engine: `colocate`, `server`, or `None` if transformers generates.
        engine_share: vLLM's share of the GPU's memory, beside training.
        engine_split: GPUs that share a copy of the engine's weights.
        sleeps: Whether vLLM frees its memory in the updates.
        gathers: Whether transformers generates with gathered weights where they are split.
        rows: Completions of a generation batch, for each GPU.
    """

    method: str
    model: Model
    trained: Trained
    batch: Batch
    update: Update
    updates: float
    passes: tuple[Pass, ...]
    penalty: Pass | None
    continued: float
    rollout_states: bool
    cache: float
    engine: str | None
    engine_share: float
    engine_split: int
    sleeps: bool
    gathers: bool
    rows: int

    def trained_in(self, layout: Layout) -> Trained:
        """What is trained, at the precision in which a layout needs the weights: in float32 where they are their own
        master."""
        if self.trained.adapters or layout.master:
            return self.trained
        return replace(self.trained, weight_bytes=4)

    def frozen(self) -> dict[str, Model]:
        """The models beside the policy, by what they are for. A reference that the KL penalty and a method share is one."""
        found = {} if self.penalty is None or self.penalty.model is None else {self.penalty.title: self.penalty.model}
        for extra in self.passes:
            if extra.model is not None and extra.model not in found.values():
                found[extra.title] = extra.model
        return found


def read_run(recipe: Recipe, config: PlanConfig) -> Run:
    """A recipe in numbers, from its fields and its models' configs. Loads neither weights nor data.

    Raises:
        ValueError: It trains images, or a model's config cannot be read.
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
    parameters = adapter_parameters(config_, peft_config, trust) if adapters else model.parameters
    weight_bytes = _weight_bytes(model_args.dtype, config_)
    compute_bytes = 2 if args.bf16 or args.fp16 else weight_bytes
    completion = args.max_completion_length
    batch = Batch(
        rows=args.per_device_train_batch_size,
        prompt=config.prompt_tokens,
        completion=completion,
        checkpointing=bool(args.gradient_checkpointing),
        attention=_attention(model_args.attn_implementation),
    )
    update = Update(
        prompt=config.prompt_tokens,
        completion=min(config.mean_completion_tokens or completion, completion),
        completions=args.generation_batch_size,
        zero_advantage=config.zero_advantage,
        iterations=args.num_iterations,
        checkpointing=batch.checkpointing,
        old_logps=is_off_policy(args) or (args.use_vllm and args.vllm_importance_sampling_correction),
        skipping=_skips(args, method),
        adapters=adapters,
    )
    follows = bool(args.sync_ref_model)
    passes = passes_of(method, found.path, adapters, update.completion, sizes, follows)
    penalty = None
    if args.beta:
        title = "reference"
        penalty = Pass(title, every_row=True, fused=True, model=None if adapters else model)
    colocate = args.use_vllm and args.vllm_mode == "colocate"
    return Run(
        method=method.name,
        model=model,
        trained=Trained(parameters, weight_bytes, compute_bytes, adapters, _bits(model_args)),
        batch=batch,
        update=update,
        updates=args.num_iterations * args.steps_per_generation / args.gradient_accumulation_steps,
        passes=tuple(passes),
        penalty=penalty,
        continued=_continued(method, update, config.steps, args.num_generations),
        rollout_states="hidden_states" in method.rollout_needs,
        cache=2**30 * (4 if args.credit_cache_gib is None else args.credit_cache_gib),
        engine=args.vllm_mode if args.use_vllm else None,
        engine_share=args.vllm_gpu_memory_utilization if colocate else 0.0,
        engine_split=args.vllm_tensor_parallel_size if colocate else 1,
        sleeps=bool(args.vllm_enable_sleep_mode) and colocate,
        gathers=bool(args.ds3_gather_for_generation),
        rows=args.per_device_train_batch_size * args.steps_per_generation,
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


def _continued(method: CreditMethod, update: Update, steps: int, generations: int) -> float:
    return sum(
        continued_tokens(
            asked.count, update.completion / asked.every if isinstance(asked.every, int) else steps, generations
        )
        for asked in method.continuations()
    )
