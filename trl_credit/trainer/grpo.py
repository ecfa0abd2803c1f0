"""TRL's GRPOTrainer with token-level credit: only the hooks that put credit into TRL's training step."""

import contextlib
import copy
import functools
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from accelerate.logging import get_logger
from huggingface_hub import ModelCard
from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .._util.text import hub_id, local_name, without_folders
from ..batching import (
    GROUPS,
    PLAN,
    PlanSettings,
    Savings,
    UpdatePlan,
    decode_plan,
    encode_plan,
    keep_groups_together,
    loss_mask,
    plan_updates,
)
from ..credit_pass import CreditPass, CreditResult, StartedPass
from ..extras.groups import total_rewards
from ..extras.shards import fsdp_version
from ..extras.trainer import GRPOExtrasTrainer, bind_arguments, check_arguments, default_output_dir
from ..methods import DGPO, GCPO, CreditMethod, Uniform
from ..methods.metrics import credit_metrics
from ..methods.registry import build_credit
from ..methods.turn import TURN_SOURCES, no_turns
from ..model_files import is_embedded, resolve_model
from ..signals.base import PolicyForward
from ..signals.models import HiddenStates, causal_model
from .collapse import CollapseWatches, LengthWatch
from .config import CreditGRPOConfig
from .continuations import check_continuations, continued_values
from .credit_log import DEFAULT_COMPLETIONS, CreditLog
from .exactness import (
    check_credit,
    check_old_policy,
    check_policy,
    check_prompts,
    is_off_policy,
    regroup_refusal,
    skip_refusal,
)
from .gspo_token import sequence_token_old_logps
from .rollout_stage import add_rollout_stage, extend_rollout, numbered_groups


logger = get_logger(__name__)

# Default of `credit_cache_gib`: GiB per process for signals kept between iterations
DEFAULT_CACHE_GIB = 4.0


class CreditGRPOTrainer(GRPOExtrasTrainer):
    """
    [`~trl.GRPOTrainer`] with a credit method, which decides how much of a completion's advantage each token gets.

    It takes every argument of [`~trl.GRPOTrainer`]. `args` may be a [`CreditGRPOConfig`], whose `credit` names the
    method, or a plain [`~trl.GRPOConfig`], which selects the trainer's preset (here `uniform`, bit-identical to TRL's
    trainer).

    Rollouts, rewards, sequence advantages, loss, metrics and optimizer steps are TRL's. At each update step the trainer
    computes the method's signals without gradient. When the loss's own forward has produced the live policy's
    log-probs, the method turns the sequence advantages into token advantages. TRL's loss reads them from a copy of its
    batch.

    Completions with zero advantage need no token credit. The signals' forwards leave them out, and with
    `skip_zero_advantage` so does the update. `trim_padding` saves computation on padding. See [`CreditGRPOConfig`].

    Besides TRL's metrics it logs, in training and evaluation, over the completions that need credit:
    `credit/weight_std`, `credit/weight_max` (the maximum of each micro-batch, averaged over micro-batches),
    `credit/effective_fraction` (1 = uniform), `credit/nonfinite_tokens` (per micro-batch, over all processes) and the
    method's own metrics. If no completion needs credit, they are `None`, as in TRL. Once per generation batch it logs
    `credit/skipped_fraction`, the fraction of completions without credit, and `credit/near_zero_advantages`, the number
    of completions whose advantage is only rounding error but not exactly zero, so that they were not skipped.

    Differences from TRL, with every method:

    1. Under FSDP2, an output head that is its own sharding unit (as accelerate makes the untied head of a
       vision-language model) is gathered before the loss. TRL's fused head never calls the module, so nothing gathers
       it. TRL gathers the weight itself, but the backward of that does not sum gradients over processes: each process
       would train its shard of the head on its own completions only.
    2. An update whose loss or gradient norm is not finite is skipped, and non-finite parameters end the run
       ([`~trl_credit.extras.nonfinite.NonfiniteGuardMixin`]).
    3. If a reward function hangs, or returns NaN, infinity or a value too large for float32, that is an error or the
       completion is excluded ([`~trl_credit.extras.reward_guard.RewardGuardMixin`]). As in TRL, `None` means no reward;
       TRL treats NaN that way, too.
    4. Resuming reproduces the uninterrupted run, and SIGTERM can save a checkpoint
       ([`~trl_credit.extras.resume.ResumeMixin`]).
    5. A run that trains nothing is an error ([`~trl_credit.extras.effect.EffectMixin`]).

    If a method other than `uniform` collapses to uniform weights for 20 updates, the run warns once and says what to
    change ([`~trl_credit.trainer.collapse.CollapseWatch`]). `credit_log_steps` shows completions with their token
    credit ([`~trl_credit.trainer.credit_log.CreditLog`]).

    [`~trl_credit.extras.dynamic_sampling.DynamicSamplingMixin`] describes dynamic sampling.

    Attributes:
        credit_method (`CreditMethod`): The method in use.
        credit_pass (`CreditPass`): Computes the token advantages.
        credit_observers (`list`): Functions called after each credit pass with the micro-batch that the loss reads and
            the [`~trl_credit.credit_pass.CreditResult`].

    Raises:
        ValueError: Unknown method or parameter, settings that would cancel the method's token credit, a method that
            disagrees with a preset trainer, or data that a signal cannot work with. Raised before the model is loaded,
            except for checks that need the tokenizer.

    Example:

    ```python
    from trl_credit import CreditGRPOConfig, CreditGRPOTrainer

    trainer = CreditGRPOTrainer(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        reward_funcs=reward,
        args=CreditGRPOConfig(output_dir="out", credit="gcpo"),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    # The only method a preset trainer allows; `None` allows any and defaults to `uniform`
    _preset: ClassVar[type[CreditMethod] | None] = None
    # What a token of the policy is: "tokens" of a language model, or "steps" of an image model's sampler
    _policy_kind: ClassVar[str] = "tokens"

    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, *args, **kwargs):
        arguments = bind_arguments(self, args, kwargs)
        if isinstance(arguments["model"], str) and is_embedded(arguments["model"]):
            arguments["model"] = resolve_model(arguments["model"], "model")
        training_args = arguments["args"]
        if training_args is None:
            name = (self._preset or Uniform).name
            training_args = CreditGRPOConfig(default_output_dir(arguments["model"], name.upper()))
        self.credit_method = self._resolve_credit(training_args)
        check_credit(self.credit_method, training_args)
        check_old_policy(self.credit_method, training_args)
        check_prompts(self.credit_method, training_args)
        self._check_turns(arguments)
        check_continuations(self.credit_method, arguments, training_args)
        if isinstance(training_args, CreditGRPOConfig) and training_args.credit is None:
            training_args = copy.copy(training_args)  # leave the caller's config unchanged
            training_args.credit = self.credit_method.to_dict()
        arguments["args"] = training_args
        check_arguments(type(self), arguments)  # before a signal copies a model

        parts = self.credit_method.components().values()
        self._name = GRPOTrainer._name
        if type(self.credit_method) is not Uniform:
            self._name = " + ".join(part.name.upper() for part in parts)
        self._papers = [part.paper for part in parts if part.paper.is_on_arxiv] or [Uniform.paper]
        self._paper = vars(self._papers[0])
        self._tag_names = [*GRPOTrainer._tag_names, "trl-credit", *dict.fromkeys(part.name for part in parts)]
        self.credit_pass = CreditPass(self.credit_method, self, getattr(training_args, "credit_cache_device", None))
        self._check_evaluation(training_args)
        self._check_sharding(training_args, arguments["model"])
        self.credit_observers: list[Callable[[dict[str, Any], CreditResult], None]] = []
        self._started: StartedPass | None = None
        self.policy_hidden_states: HiddenStates | None = None

        for source in self.credit_pass.sources.values():
            source.before_trainer_init(self, arguments)
        # TRL rejects `sync_ref_model` without a KL reference of its own, but a signal may have a reference to sync
        follows = training_args.sync_ref_model and any(
            source.follows_policy for source in self.credit_pass.sources.values()
        )
        training_args.sync_ref_model = training_args.sync_ref_model and not (follows and training_args.beta == 0.0)
        try:
            super().__init__(**arguments)
        finally:
            training_args.sync_ref_model = training_args.sync_ref_model or follows
        self._sequence_token = self.importance_sampling_level == "sequence_token"
        if self._sequence_token:
            self.importance_sampling_level = "token"  # `sequence_token_old_logps` turns it into GSPO-token
            if not is_off_policy(self.args):
                logger.warning(
                    "`importance_sampling_level='sequence_token'` has no effect here: every update is on-policy, so all "
                    "ratios are 1. Set `num_iterations` above 1, or `steps_per_generation` above "
                    "`gradient_accumulation_steps`."
                )
        self._updates_need_hidden_states = any(
            source.needs_hidden_states for source in self.credit_pass.sources.values()
        )
        if self._updates_need_hidden_states or self.credit_method.rollout_needs:
            self.policy_hidden_states = HiddenStates(self.model)
        for source in self.credit_pass.sources.values():
            source.after_trainer_init(self)
        self._savings = self._resolve_savings()
        self._collapse = CollapseWatches(self.credit_method)
        self._length = LengthWatch(self.credit_method)
        self._credit_log: CreditLog | None = None
        if steps := getattr(self.args, "credit_log_steps", None):
            self._credit_log = self._make_credit_log(steps, self.args.credit_log_completions or DEFAULT_COMPLETIONS)
            self.add_callback(self._credit_log)
            self.credit_observers.append(self._credit_log.see)
        tokens = self._policy_kind == "tokens"  # a denoiser runs in eval mode
        if tokens and self.credit_pass.sources and _has_active_dropout(self.model):
            logger.warning(
                "The policy has active dropout: its own forward in the loss uses it, the credit method's forwards do "
                "not, so part of the token credit is noise. Set `disable_dropout=True` (and `lora_dropout=0`)."
            )

    def _resolve_credit(self, args) -> CreditMethod:
        credit = getattr(args, "credit", None)
        if credit is None:
            return (self._preset or Uniform)()  # of the trainer's kind
        method = build_credit(credit)
        if self._preset is not None and type(method) is not self._preset:
            raise ValueError(
                f"`credit` asks for {method.name!r}, but {type(self).__name__} is preset to {self._preset.name!r}. Use "
                f"CreditGRPOTrainer, or leave `credit` out."
            )
        check_policy(method, self._policy_kind)
        return method

    def _make_credit_log(self, steps: int, completions: int) -> CreditLog:
        """What shows `completions` of an update every `steps` updates."""
        return CreditLog(self, steps, completions)

    def _resolve_savings(self) -> Savings:
        """Optimizations to use: the configured ones, else all that are exact here, or none with `uniform`."""
        args = self.args
        default = type(self.credit_method) is not Uniform
        skip, trim = getattr(args, "skip_zero_advantage", None), getattr(args, "trim_padding", None)
        no_skip = skip_refusal(args, self.credit_method, self.aux_loss_enabled)
        if skip and no_skip:
            raise ValueError(f"`skip_zero_advantage` is not exact here: {no_skip} Set `skip_zero_advantage=False`.")
        if trim and self.credit_pass.padding_affects_output:
            raise ValueError(
                f"`trim_padding` is not exact here: {self.credit_pass.padding_affects_output} Set `trim_padding=False`."
            )
        no_regroup = regroup_refusal(args, self.credit_method, self.aux_loss_enabled, _has_active_dropout(self.model))
        if trim and no_regroup:
            logger.warning("`trim_padding` cuts micro-batches, but does not regroup rows by length: %s", no_regroup)
        for name in ("credit_cache_gib", "credit_cache_device"):
            if getattr(args, name, None) is not None and not self._kept_bytes_per_token:
                raise ValueError(
                    f"`{name}` ({getattr(args, name)!r}) has no effect: credit method "
                    f"{self.credit_method.name!r} has no signal to reuse between iterations. Remove it."
                )
        skip = (default and not no_skip) if skip is None else skip
        trim = (default and not self.credit_pass.padding_affects_output) if trim is None else trim
        return Savings(
            skip_zero_advantage=skip,
            trim_padding=trim,
            # Trimming left padding changes rounding, which in half precision would make ratios differ from 1
            keep_old_prompts=self.forward_dtype.itemsize < 4,
            regroup=trim and not no_regroup,
        )

    @property
    def _kept_bytes_per_token(self) -> int:
        """Bytes per token of the signals that stay the same between iterations over a generation batch."""
        return sum(source.bytes_per_token(self) for source in self.credit_pass.sources.values())

    @property
    def _keeps_groups_together(self) -> bool:
        """True if each optimizer step holds whole groups."""
        return bool(getattr(self.args, "keep_groups_together", False))

    # The PolicyContext that signals see

    @property
    def tokenizer(self):
        """The tokenizer, even if `processing_class` is a processor."""
        return self._tokenizer

    @property
    def is_vision(self) -> bool:
        """True for a vision-language model."""
        return self._is_vlm

    def tokenize_prompts(self, prompts: list):
        """Token ids of each prompt, the images, and further per-token fields, as TRL makes them for a rollout."""
        return self._tokenize_prompts(prompts)

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt plus completion that the policy's positions allow, including RoPE scaling."""
        config = self.model.config.get_text_config()
        length, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
        if length is None or "factor" not in rope:
            return length
        return max(length, int(rope["factor"] * rope.get("original_max_position_embeddings", length)))

    @property
    def forward_dtype(self) -> torch.dtype:
        """Dtype of the policy's forward."""
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return mixed.get(self.accelerator.mixed_precision, self.accelerator.unwrap_model(self.model).dtype)

    @property
    def head_dtype(self) -> torch.dtype:
        """Dtype of the policy's output head."""
        return torch.float32 if self.args.cast_lm_head_to_fp32 else self.forward_dtype

    @property
    def frame_token_ids(self) -> frozenset[int]:
        """Tokens that the negative prompt `pad` keeps: the beginning of the text, if the tokenizer has one."""
        return frozenset({self._tokenizer.bos_token_id} - {None})

    def policy_logps_and_entropies(self, *args, **kwargs):
        """TRL's forward, without credit."""
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # Rollout

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        needed = [column for source in self.credit_pass.sources.values() for column in source.columns]
        for reward_func in self.reward_funcs:
            if not isinstance(reward_func, nn.Module):
                needed += inspect.signature(reward_func).parameters
        self._signature_columns += [column for column in needed if column not in self._signature_columns]

    def _generate(self, prompts: list):
        generated = super()._generate(prompts)
        self._rollout_prompts = prompts  # with images and environment observations in place
        return generated

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training and self._length.names:
            self._length.see(self._metrics["train"]["completions/mean_length"][-1])
        extend_rollout(self, inputs, self._rollout_prompts, batch, lambda: self._rollout_rewards(len(inputs)))
        if self.credit_method.has_rollout_stage:
            rewards, values = self._rollout_rewards(len(inputs)), None
            if self.model.training and (requests := self.credit_method.continuations()):
                values = functools.partial(
                    continued_values,
                    self,
                    requests,
                    examples=inputs,
                    prompts=self._rollout_prompts,
                    batch=batch,
                )
            add_rollout_stage(self, self.credit_method, batch, rewards, turn_rewards=self._turn_rewards, values=values)
        if self._keeps_groups_together and self.model.training:
            count = len(inputs) * self.accelerator.num_processes
            first = len(inputs) * self.accelerator.process_index
            batch[GROUPS] = numbered_groups(self, count)[first : first + len(inputs)]
        if self._credit_log and self.model.training:
            self._credit_log.extend_rollout(inputs, self._rollout_prompts, batch)
        return batch

    def _check_turns(self, arguments: dict[str, Any]) -> None:
        """Raises `ValueError` if a method credits turns and no rollout of this run can have any."""
        for part in self.credit_method.components().values():
            if part.needs_turns and all(arguments.get(name) is None for name in TURN_SOURCES):
                raise ValueError(no_turns(part.name))

    def _check_evaluation(self, args) -> None:
        """Raises `ValueError` if TRL would not keep the rewards of a whole evaluation batch for a method that reads them."""
        reads = self.credit_method.has_rollout_stage or any(
            source.needs_groups for source in self.credit_pass.sources.values()
        )
        rows = args.per_device_eval_batch_size * args.world_size
        if reads and args.eval_strategy != "no" and rows > args.generation_batch_size:
            raise ValueError(
                f"credit method {self.credit_method.name!r} needs the rewards of whole groups, and TRL keeps those of a "
                f"generation batch ({args.generation_batch_size} completions), fewer than an evaluation batch has ({rows}). "
                f"Lower `per_device_eval_batch_size` ({args.per_device_eval_batch_size})."
            )

    def _check_sharding(self, args, model: Any) -> None:
        """Raises `ValueError` if FSDP version 1 runs the policy and a method reads an output head, which that shards so that
        it is whole only within the model's forward."""
        sources = self.credit_pass.sources.values()
        reads_head = (
            self.credit_method.rollout_needs
            or any(source.needs_hidden_states for source in sources)
            or any(source.frozen_model(model if isinstance(model, str) else "a model", False) for source in sources)
        )
        if reads_head and fsdp_version(args) == 1:
            raise ValueError(
                f"credit method {self.credit_method.name!r} reads the output head, which FSDP version 1 does not show. Set "
                "`fsdp_version: 2` in the launcher's file (`--accelerate_config fsdp2`), or `version: 2` in `fsdp_config`."
            )

    def _rollout_rewards(self, rows: int) -> torch.Tensor:
        """(N,) weighted rewards of all processes' completions of the batch just scored, as TRL logs them: after dynamic
        sampling and every override."""
        count = rows * self.accelerator.num_processes
        logged = self._logs["rewards"]
        columns = [list(logged[name])[-count:] for name in self.reward_func_names]
        rewards = torch.tensor(columns, device=self.accelerator.device).T
        if len(rewards) < count:
            raise ValueError(
                f"credit method {self.credit_method.name!r} needs the rewards of whole groups, and TRL keeps those of "
                f"{len(rewards)} completions of an evaluation batch of {count}. Lower `per_device_eval_batch_size`."
            )
        return total_rewards(rewards, self.reward_weights)

    def _prepare_inputs(self, generation_batch):
        buffered = self._buffered_inputs
        if self.model.training and self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            for batch in buffered or []:  # free kept signals before the next generation
                batch[PLAN].cache.clear()
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return self._planned([inputs], Savings())[0]
        if self._buffered_inputs is not buffered:  # a new generation batch
            batches = self._buffered_inputs
            if self._keeps_groups_together:
                dealt = keep_groups_together(batches, self.args.gradient_accumulation_steps)
                if dealt is None:
                    logger.warning_once(
                        "`keep_groups_together`: only some prompts of a generation batch have images, so its completions "
                        "stay where TRL dealt them. Use data in which all prompts or none have images."
                    )
                batches = dealt or batches
            self._buffered_inputs = self._planned(batches, self._savings)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _planned(self, batches: list[dict[str, Any]], savings: Savings) -> list[dict[str, Any]]:
        """The micro-batches to run, made from TRL's, each with its plan."""
        args = self.args
        overhead = self.credit_pass.forward_overhead
        keeps, gib = self.model.training and self.num_iterations > 1, getattr(args, "credit_cache_gib", None)
        settings = PlanSettings(
            savings=savings,
            every_row=self.credit_method.credits_zero_advantage or self.credit_method.reads_batch,
            loss_type=self.loss_type,
            # Largest window that always falls within one optimizer step, at every step and iteration
            window=math.gcd(args.gradient_accumulation_steps, args.steps_per_generation, len(batches)),
            overhead=0 if self.is_deepspeed_enabled else overhead,  # DeepSpeed runs every micro-batch anyway
            forward_overhead=overhead,
            max_forwards=self.credit_pass.max_forwards,
            pad_to_multiple_of=self.pad_to_multiple_of,
            kept_bytes_per_token=self._kept_bytes_per_token if keeps else 0,
            budget_bytes=(DEFAULT_CACHE_GIB if gib is None else gib) * 2**30,
            partial=self.credit_pass.partial,
            images=self.is_vision,
        )
        lengths = {signal: source.lengths for signal, source in self.credit_pass.sources.items() if source.has_forward}
        batches, metrics = plan_updates(batches, lengths, self.accelerator.gather, settings)
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
        return batches

    # Update: the signals' own forwards, then TRL's loss. Its policy forward completes the token advantages

    def _compute_loss(self, model, inputs):
        if PLAN not in inputs:
            inputs = self._planned([inputs], Savings())[0]
        batch = dict(inputs)  # TRL reuses its buffered inputs, so token advantages go into a copy
        plan = batch.pop(PLAN)
        if not plan.any_rows and not self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            # No process has rows here. The step's last micro-batch still runs, so that gradients are zero, not missing
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        mode = "train" if self.model.training else "eval"
        logged = {name: len(values) for name, values in self._metrics[mode].items()}
        self._sequence_advantages = batch["advantages"]
        self._started = self.credit_pass.start(model, batch, plan)
        self._unshard_output_head(model)
        try:
            with self._own_rows_only(plan):
                return super()._compute_loss(model, batch)
        finally:
            self._started = None
            self._weight_metrics(self._metrics[mode], logged, plan)

    def get_off_policy_mask(self, advantages, *args, **kwargs):
        """TRL's mask of whole completions. It goes by the sign of the sequence advantage, not of token advantages."""
        return super().get_off_policy_mask(self._sequence_advantages.unsqueeze(1), *args, **kwargs)

    def _unshard_output_head(self, model: nn.Module) -> None:
        """Makes FSDP2 reduce the output head's gradient (difference 1 from TRL, see the class docstring)."""
        if not self.is_fsdp_enabled or not torch.is_grad_enabled():
            return
        head = causal_model(self.accelerator.unwrap_model(model)).get_output_embeddings()
        if isinstance(head, FSDPModule):
            head.unshard()

    @contextlib.contextmanager
    def _own_rows_only(self, plan: UpdatePlan):
        """Lets TRL gather per-row values, and sum over processes, when processes have different numbers of rows.

        Missing rows and placeholders gather as NaN, which TRL leaves out, and reduce as zero. TRL's loss calls the
        accelerator directly, so this temporarily replaces `gather` and `reduce`. Remove it once TRL's loss gathers
        unequal numbers of rows.
        """
        accelerator = self.accelerator
        gather, reduce = accelerator.gather, accelerator.reduce
        rows = max(plan.rows, 1)

        def gather_rows(tensor):
            if isinstance(tensor, torch.Tensor) and tensor.shape == (rows,):
                tensor = nn.functional.pad(tensor[: plan.rows], (0, plan.most_rows - plan.rows), value=math.nan)
            return gather(tensor)

        def reduce_rows(tensor, **kwargs):
            return reduce(tensor if plan.rows else torch.zeros_like(tensor), **kwargs)

        if not plan.any_rows or plan.rows == plan.most_rows:
            yield
            return
        accelerator.gather, accelerator.reduce = gather_rows, reduce_rows
        try:
            yield
        finally:
            accelerator.gather, accelerator.reduce = gather, reduce

    @staticmethod
    def _weight_metrics(metrics: dict[str, list[float]], logged: dict[str, int], plan: UpdatePlan) -> None:
        """Weights a micro-batch's metrics by its share of the tokens. TRL averages over micro-batches, which would
        overweight the tokens of short completions once rows are regrouped by length."""
        for name, values in metrics.items():
            start = logged.get(name, 0)
            if not plan.any_rows:
                del values[start:]
            elif plan.share != 1.0 and name != "credit/nonfinite_tokens":
                values[start:] = [value * plan.share for value in values[start:]]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        forward = functools.partial(
            super()._get_per_token_logps_and_entropies,
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            *args,
            **kwargs,
        )
        if self._started is None:  # the old policy's or TRL's reference's log-probs
            return forward()
        started, self._started = self._started, None
        states = self.policy_hidden_states if self._updates_need_hidden_states else None
        with states.captured() if states else contextlib.nullcontext():
            logps, entropies, aux_loss = forward()
        hidden_states = states and states.pop(logits_to_keep)
        policy = PolicyForward(logps.detach(), entropies.detach(), hidden_states)
        result, batch = self.credit_pass.finish(started, policy, self.state.global_step), started.batch
        if self._sequence_token and "old_per_token_logps" in batch:
            batch["old_per_token_logps"] = sequence_token_old_logps(
                logps, batch["old_per_token_logps"], loss_mask(batch)
            )
        if result.token_advantages is not None:
            batch["advantages"] = result.token_advantages
        if result.ratio_weights is not None:
            logps = self.credit_method.ratio_logps(
                logps, batch.get("old_per_token_logps", logps.detach()), result.ratio_weights
            )
        with torch.no_grad():
            self._log_credit(result)
            for observe in self.credit_observers:
                observe(batch, result)
        return logps, entropies, aux_loss

    def _log_credit(self, result: CreditResult) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        found = credit_metrics(
            self.credit_method, result.inputs, result.weights, result.unscored, self.accelerator.gather
        )
        for name, value in found.items():
            metrics[name].append(value)
        if self.model.training:
            self._collapse.see(self.state.global_step, found, result.inputs)

    def log(self, logs, start_time=None):
        columns = self._credit_log.columns() if self._credit_log and self.model.training else {}
        self._logs["extra"].update(columns)
        try:
            super().log(logs, start_time)
        finally:
            for column in columns:  # they describe this update only; TRL's own columns accumulate
                del self._logs["extra"][column]

    # Checkpoints

    def _plain_batch(self, batch):
        return {key: value for key, value in super()._plain_batch(batch).items() if key != PLAN}

    def _batch_settings(self):
        credit = json.dumps(self.credit_method.to_dict(), sort_keys=True)
        # `None` if off, as in checkpoints from before there was the setting
        return super()._batch_settings() | {
            "credit": credit,
            "keep_groups_together": self._keeps_groups_together or None,
        }

    def _batch_to_save(self, batch):
        batch = super()._batch_to_save(batch)
        return batch | {PLAN: encode_plan(batch[PLAN])} if PLAN in batch else batch

    def _batch_from_save(self, batch):
        batch = super()._batch_from_save(batch)
        signals = [signal for signal, source in self.credit_pass.sources.items() if source.has_forward]
        return batch | {PLAN: decode_plan(batch[PLAN], signals)} if PLAN in batch else batch

    def _extra_state(self):
        length = {"length": self._length.state_dict()} if self._length.names else {}
        return super()._extra_state() | {"collapse": self._collapse.state_dict()} | length

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        if "collapse" in state:
            self._collapse.load_state_dict(state["collapse"])
        if "length" in state:
            self._length.load_state_dict(state["length"])

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Writes TRL's model card plus the credit method.

        TRL links the names it gets to the hub, and cards are shared. So a dataset without a hub id (a file, a folder, a
        generated task) appears only in the text, by its last path component, and not in the metadata; the same goes for
        a local base model.
        """
        on_hub = hub_id(dataset_name) if isinstance(dataset_name, str) else dataset_name
        super().create_model_card(model_name=model_name, dataset_name=on_hub, tags=tags)
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir) / "README.md"
        card = ModelCard.load(path)
        base = get_config_model_id(self.model.config)
        if card.data.base_model is None or hub_id(base) is None:
            for link in {f"[{name}](https://huggingface.co/{name})" for name in (None, base)}:
                card.text = card.text.replace(f" of {link}", f" of {local_name(base)}" if base else " of a local model")
            card.data.base_model = None
        parameters = yaml.safe_dump({"credit": without_folders(self.credit_method.to_dict())}, sort_keys=False)
        data = f" on {local_name(dataset_name)}" if dataset_name and on_hub is None else ""
        card.text += f"\n\n## Token credit\n\nTrained with trl-credit{data}:\n\n```yaml\n{parameters}```\n"
        for paper in self._papers[1:]:  # TRL's card cites one
            card.text += f"\n```bibtex\n{paper.citation}\n```\n"
        self._describe_use(card)
        card.save(path)

    def _describe_use(self, card: ModelCard) -> None:
        """Changes how TRL's card says to use the model. TRL's text fits language models."""


class GCPOTrainer(CreditGRPOTrainer):
    """[`CreditGRPOTrainer`] with the credit method [`GCPO`] (arXiv 2605.29198)."""

    _preset = GCPO


class DGPOTrainer(CreditGRPOTrainer):
    """[`CreditGRPOTrainer`] with the credit method [`DGPO`] (arXiv 2605.03327)."""

    _preset = DGPO


def set_quick_start(card: ModelCard, text: str) -> None:
    """Replaces the code with which TRL's card starts."""
    card.text = re.sub(
        r"(## Quick start\n\n)```python\n.*?\n```", lambda found: found[1] + text, card.text, count=1, flags=re.DOTALL
    )


def _has_active_dropout(model: nn.Module) -> bool:
    for module in model.modules():
        probability = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
        attention_dropout = getattr(module, "attention_dropout", 0.0)
        if probability or (isinstance(attention_dropout, float) and attention_dropout):
            return True
    return False
