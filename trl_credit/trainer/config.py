"""The trainer's config: the credit method and the optimizations of the update."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, ClassVar

from trl import GRPOConfig

from .._util.settings import AtLeast1, NonNegative, Unchecked, one_of
from .._util.values import mapping_of
from ..extras.config import GRPOExtrasConfig
from ..methods.registry import build_credit
from ..methods.table import TABLE
from .exactness import IMPORTANCE_SAMPLING_LEVELS, check_credit, check_policy, skip_refusal


@dataclass
class CreditGRPOConfig(GRPOExtrasConfig):
    r"""
    Config of the [`CreditGRPOTrainer`]: every field of [`~trl.GRPOConfig`] and [`GRPOExtrasConfig`], plus the credit
    method, two optimizations of the update, and which completions share one.

    Parameters:
        credit (`str` or `dict[str, Any]` or `list` or [`CreditMethod`], *optional*):
            The credit method: a name (`"dgpo"`), a mapping of the name and parameters (`{"method": "dgpo",
            "temperature": 0.5}`, as text on the command line), a method object, or a list of those, whose weights multiply
            and whose terms add ([`~trl_credit.methods.mix.Mix`]). `method` may be the path of your own class. `trl-credit
            methods` lists the names and `trl-credit methods NAME` the parameters. If unset, the trainer's preset: `uniform`
            for [`CreditGRPOTrainer`]. If set, `__init__` expands it to the full mapping.
        skip_zero_advantage (`bool`, *optional*):
            Whether to leave completions out of the update's forward and backward if their advantage is exactly zero
            (their group is all right or all wrong) or none of their tokens is in the loss. The loss keeps the
            denominators of the full batch, so the gradient is the same up to rounding. It is an error if such
            completions still contribute gradient or statistics: with a KL penalty, an entropy bonus,
            `top_entropy_quantile`, an MoE auxiliary loss, or a method that credits them anyway. If unset: on wherever
            it is exact, except with `uniform`, which is TRL bit for bit. If only some prompts of a generation batch
            have images, rows are neither left out nor regrouped, because all processes must run the vision tower. With
            active dropout, different masks are drawn.
        trim_padding (`bool`, *optional*):
            Whether to cut each micro-batch to its own longest prompt and completion, and to regroup rows by length
            among the micro-batches that an optimizer step takes from one generation batch. The gradient is the same up
            to rounding. If the loss depends on which rows share a micro-batch (an entropy bonus,
            `top_entropy_quantile`, an MoE auxiliary loss, active dropout, `bnpo` with a KL penalty), padding is trimmed
            but rows are not regrouped, with a warning if the field is set. In half precision, prompts keep their
            padding if the loss compares with log-probs from before the update, because padding affects their rounding.
            It is an error for models whose outputs depend on padding (no rotary embeddings, or ones that scale with
            the length). If unset: on wherever it is exact, except with `uniform`.
        keep_groups_together (`bool`, *optional*, defaults to `False`):
            Whether all completions of a prompt are in one optimizer step. TRL shuffles the completions of a generation
            batch before it deals them, so with `steps_per_generation` above `gradient_accumulation_steps` a prompt's
            right and wrong completions fall into different steps. Together, the gradients of what they have in common
            cancel, which is token credit by itself (arXiv 2605.08666). Prompts still come in a random
            order. It is an error if a generation batch is one optimizer step or less, because groups are together then,
            or if whole groups do not fill a process's share of a step. If only some prompts of a generation batch have
            images, TRL's order stays, because a micro-batch could be left without any image.
        credit_cache_gib (`float`, *optional*):
            With `num_iterations > 1`: GiB per process for keeping signals that do not change between iterations (the
            reference's hidden states) after the first iteration. Signals that do not fit are recomputed;
            `credit/kept_fraction` shows how many fit. 0 keeps nothing. If unset: 4.
        credit_cache_device (`str`, *optional*):
            Where those signals are kept: `"cpu"`, or if unset the device that computed them.
        importance_sampling_level (`str`, *optional*, defaults to `"token"`):
            TRL's `"token"` and `"sequence"`, or `"sequence_token"` (GSPO-token): the sequence's ratio with each token's
            gradient, so that token advantages matter. Clipping acts on the sequence's ratio. TRL's `clip_ratio/*` are
            then fractions of tokens, so a long completion counts more than with `"sequence"`. KL bias correction
            multiplies by the sequence's ratio.
        credit_log_steps (`int`, *optional*):
            Every N updates, write the token credit of a few of the update's completions to `OUTPUT_DIR/credit`
            as a page and a parquet file, and send it to trackers that show HTML or pictures; see
            [`~trl_credit.trainer.credit_log.CreditLog`]. With `log_completions` it must be a multiple of
            `logging_steps`, because it adds columns to TRL's completions table. If unset: never.
        credit_log_completions (`int`, *optional*):
            Number of completions to write. If unset: 4.
    """

    # What a token of the policy is; see [`~trl_credit.Signal`]
    policy_kind: ClassVar[str] = "tokens"

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit"]

    credit: Annotated[dict | str | None, Unchecked] = field(
        default=None,
        metadata={
            "help": f"The credit method: a name ({', '.join(TABLE)}), a mapping of `method` and its parameters (as text on "
            "the command line), the path of your own class (`my_module.Class`, `my_file.py:Class`), or a list of those, "
            "whose weights multiply and whose terms add. If unset, the trainer's preset. "
            "`trl-credit methods` lists the names, `trl-credit methods NAME` the parameters."
        },
    )

    skip_zero_advantage: bool | None = field(
        default=None,
        metadata={
            "help": "true or false: leave completions whose advantage is exactly zero out of the update; same gradient. If "
            "unset: on wherever it is exact, except with `uniform`."
        },
    )
    trim_padding: bool | None = field(
        default=None,
        metadata={
            "help": "true or false: cut each micro-batch to its longest prompt and completion and regroup rows "
            "by length; same gradient. If unset: on wherever it is exact, except with `uniform`."
        },
    )
    keep_groups_together: bool = field(
        default=False,
        metadata={
            "help": "true or false: keep all completions of a prompt in one optimizer step, where TRL spreads them over "
            "several (`steps_per_generation` above `gradient_accumulation_steps`)."
        },
    )
    credit_cache_gib: NonNegative | None = field(
        default=None,
        metadata={
            "help": "With `num_iterations > 1`: GiB per process for signals that do not change between iterations. 0 "
            "keeps nothing. If unset: 4."
        },
    )
    credit_cache_device: one_of("cpu") | None = field(
        default=None,
        metadata={"help": "Where such signals are kept: `cpu`, or if unset the device that computed them."},
    )

    # Redeclared to add a value to TRL's field
    importance_sampling_level: one_of(*IMPORTANCE_SAMPLING_LEVELS) = field(
        default="token",
        metadata={
            "help": "`token`, `sequence` (GSPO), or `sequence_token` (GSPO-token): the sequence's ratio with each token's "
            "gradient, which keeps token credit."
        },
    )

    credit_log_steps: AtLeast1 | None = field(
        default=None,
        metadata={
            "help": "Every N updates, write the token credit of a few completions (a page and a parquet file in "
            "`OUTPUT_DIR/credit`) and send it to the trackers. If unset: never."
        },
    )
    credit_log_completions: AtLeast1 | None = field(
        default=None,
        metadata={"help": "How many completions `credit_log_steps` shows. If unset: 4."},
    )

    def __post_init__(self):
        for name in GRPOConfig._VALID_DICT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    json.loads(value)
                    continue
                setattr(self, name, json.dumps(mapping_of(name, value)))  # which TRL reads
        super().__post_init__()
        self._check_credit_log()
        if self.keep_groups_together:
            self._check_groups_together()
        if self.skip_zero_advantage and (
            reason := skip_refusal(self, None if self.credit is None else build_credit(self.credit))
        ):
            raise ValueError(f"`skip_zero_advantage` is not exact here: {reason} Set `skip_zero_advantage=False`.")
        for name in ("credit_cache_gib", "credit_cache_device"):
            if getattr(self, name) is not None and self.num_iterations == 1:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) has no effect with `num_iterations=1`: nothing is computed "
                    "twice. Remove it."
                )

    def _check_before_trl(self):
        if self.top_k == -1 and not self.use_vllm:
            raise ValueError("`top_k=-1` (all tokens) only works with vLLM: set `top_k: 0`, or `use_vllm: true`.")
        if self.credit is not None:
            method = build_credit(self.credit)
            check_policy(method, self.policy_kind)
            check_credit(method, self)
            self.credit = method.to_dict()

    def _check_groups_together(self):
        batches, window = self.steps_per_generation, self.gradient_accumulation_steps
        if window % batches == 0:
            raise ValueError(
                f"`keep_groups_together` has no effect: with `steps_per_generation` ({batches}) not above "
                f"`gradient_accumulation_steps` ({window}), all completions of a prompt are in one optimizer step. Remove "
                "it, or raise `steps_per_generation`."
            )
        if batches % window:
            raise ValueError(
                f"`keep_groups_together` needs `steps_per_generation` ({batches}) to be a multiple of "
                f"`gradient_accumulation_steps` ({window}): else an optimizer step takes completions of two generation "
                "batches."
            )
        rows = self.per_device_train_batch_size * window
        if rows % self.num_generations:
            raise ValueError(
                f"`keep_groups_together`: a process's {rows} completions of an optimizer step "
                f"(`per_device_train_batch_size` {self.per_device_train_batch_size} times `gradient_accumulation_steps` "
                f"{window}) do not hold whole groups of `num_generations` ({self.num_generations}). Make them a multiple."
            )

    def _check_credit_log(self):
        if self.credit_log_steps is None:
            if self.credit_log_completions is not None:
                raise ValueError(
                    f"`credit_log_completions` ({self.credit_log_completions}) has no effect without `credit_log_steps`."
                )
            return
        if self.log_completions and (
            self.logging_strategy != "steps" or self.logging_steps < 1 or self.credit_log_steps % self.logging_steps
        ):
            raise ValueError(
                f"`credit_log_steps` ({self.credit_log_steps}) must be a multiple of `logging_steps` ({self.logging_steps}) "
                "with `log_completions`: token credit adds columns to its table, which is written every `logging_steps`."
            )


VLLM_SETTINGS = tuple(f.name for f in fields(CreditGRPOConfig) if f.name.startswith("vllm_"))


def refuse_settings(config: GRPOConfig, without_meaning: Mapping[str, tuple[str, ...]], model: str) -> None:
    """Raises `ValueError` for settings that have no meaning for a kind of model and are not at their defaults.

    Args:
        config: The config.
        without_meaning: Names of settings, by the reason.
        model: The kind of model, in words.
    """
    for f in fields(config):
        reason = next((reason for reason, names in without_meaning.items() if f.name in names), None)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        # TRL turns the default "auto" of `pad_to_multiple_of` into `None`
        if reason is not None and getattr(config, f.name) not in (default, *([None] if default == "auto" else [])):
            raise ValueError(
                f"`{f.name}` ({getattr(config, f.name)!r}) has no meaning for {model}: {reason}. Remove it."
            )
