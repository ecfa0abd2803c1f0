"""TRL's GRPO configuration with the credit method, and what an update saves, a rollout samples and a run survives."""

import json
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le
from trl import GRPOConfig

from .methods import CreditMethod, build_credit
from .nonfinite import DEFAULT_MAX_NONFINITE_UPDATES
from .rewards.guard import DEFAULT_TIMEOUT
from .settings import AtLeast1, Finite, NonNegative, Rule, Unchecked, Whole, check_fields, one_of


# Losses whose gradient goes through the importance ratio. Taken over the sequence, the ratio's gradient sums the
# completion's log-probs, so advantages of mean 1 x A_i per token act as A_i. `cispo` detaches the ratio and `vespo`
# ignores the level.
RATIO_GRADIENT_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo")
# TRL's and GSPO-token's
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence", "sequence_token")


@dataclass
class CreditGRPOConfig(GRPOConfig):
    r"""
    Configuration of the [`CreditGRPOTrainer`]: every field of [`~trl.GRPOConfig`], `credit`, and what an update saves.

    Parameters:
        credit (`str` or `dict[str, Any]` or [`CreditMethod`], *optional*):
            The credit method: a name (`"dgpo"`), a mapping of the name and parameters (`{"method": "dgpo",
            "temperature": 0.5}`, as JSON on the command line), or a method object. `method` may be the path of
            your own class. `trl-credit methods` lists the names and `trl-credit methods NAME` the parameters. If unset,
            the trainer's preset: `uniform` for [`CreditGRPOTrainer`]. After `__init__` it is the full mapping.
        skip_zero_advantage (`bool`, *optional*):
            Whether completions whose advantage is exactly zero (all right or all wrong in their group), or of which no
            token is in the loss, are left out of the update's forward and backward. The loss keeps the denominators of
            the full batch, so the gradient is the same up to rounding. An error where such completions do carry
            gradient or statistics: with a KL penalty, an entropy bonus, `top_entropy_quantile`, an MoE auxiliary loss
            or a method that credits them all the same. If unset: on wherever it is exact, except with `uniform`, which
            is TRL bit for bit. Neither this nor dealing is done where some prompts of a generation batch have images and
            others none: their processes must all run the vision tower. With active dropout other masks are drawn.
        trim_padding (`bool`, *optional*):
            Whether each micro-batch is cut to its own longest prompt and completion, and rows are dealt to the
            micro-batches that an optimizer step takes from one generation batch by length. The gradient is the same up
            to rounding. Where the composition of micro-batches enters the result (an entropy bonus,
            `top_entropy_quantile`, an MoE auxiliary loss, active dropout, `bnpo` with a KL penalty), they are cut and
            not dealt, with a warning if the field is set. In half precision, the prompts' padding stays where the loss
            compares with log-probs of before the update, whose rounding it decides. An error for models whose outputs
            depend on padding (without rotary embeddings, or with ones that scale with the length). If unset: on
            wherever it is exact, except with `uniform`.
        credit_cache_gib (`float`, *optional*):
            With `num_iterations > 1`: GiB per process in which signals that do not change between iterations (the
            reference's hidden states) are kept after the first; what does not fit is computed again, as
            `credit/kept_fraction` shows. 0 keeps nothing. If unset: 4.
        credit_cache_device (`str`, *optional*):
            Where they are kept: `"cpu"`, or if unset the device that computed them.
        importance_sampling_level (`str`, *optional*, defaults to `"token"`):
            TRL's `"token"` and `"sequence"`, and `"sequence_token"` (GSPO-token): the sequence's ratio with each token's
            gradient, so that token advantages matter. Clipping acts on the sequence's ratio; TRL's `clip_ratio/*` are then
            shares of tokens, so that a long completion counts more than with `"sequence"`. KL bias correction multiplies
            with the sequence's ratio.
        dynamic_sampling (`bool`, *optional*):
            Whether groups that teach nothing are replaced by groups of fresh prompts, generated and scored in further
            rounds until the generation batch is full (DAPO); see [`~trl_credit.rollout.DynamicSamplingMixin`] for what is
            logged. Not in evaluation. The run's length stays what `max_steps` or the epochs make it; passes over the data
            are logged. If unset: no, and the three fields below are errors; with `False` they are left unread.
        dynamic_sampling_max_rounds (`int`, *optional*):
            The most rounds for one generation batch, the first included; groups that are still to be replaced then stay,
            with the advantage they have. If unset: 10.
        dynamic_sampling_reward (`str`, *optional*):
            Name of the reward function whose mean over the group decides. If unset, groups are replaced whose rewards are
            all the same.
        dynamic_sampling_range (`list[float]`, *optional*):
            `[low, high]`: groups are kept whose mean of that reward lies strictly between. If unset: 0 and 1.
        credit_log_steps (`int`, *optional*):
            Every so many updates, write the token credit of a few of the update's completions as a page and a parquet file
            to `OUTPUT_DIR/credit`, and send it to the trackers that show HTML or pictures; see
            [`~trl_credit.credit_log.CreditLog`]. With `log_completions` it must be a multiple of `logging_steps`, as TRL's
            table of completions gets columns. If unset: never.
        credit_log_completions (`int`, *optional*):
            How many completions. If unset: 4.
        on_reward_error (`str`, *optional*, defaults to `"raise"`):
            What a reward function that raises, hangs, or returns something other than one number (finite in float32) or
            `None` for each completion does: `"raise"` ends the run with an error that names the function and the
            completion; `"exclude"` leaves the completion out of its group and counts it. Where a function fails on all
            completions of several prompts, or on several together but on none alone, it is an error all the same.
        reward_timeout (`float`, *optional*, defaults to `800.0`):
            Seconds that a reward function may take for a batch of completions, and as many to find the completion on which
            it hangs; 0 for no limit.
        max_nonfinite_updates (`int`, *optional*, defaults to `5`):
            Updates with a NaN or infinite loss or gradient norm are skipped; after so many in a row the run ends. A
            parameter that is not finite ends it at once.
        enable_jit_checkpoint (`bool`, *optional*, defaults to `False`):
            Whether SIGTERM makes the run finish its update, save a checkpoint and exit with code 143. Unlike transformers'
            own, the checkpoint is one that can be resumed from exactly: see
            [`~trl_credit.checkpoint.PreemptionCallback`].
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit"]

    credit: Annotated[dict | str | None, Unchecked] = field(
        default=None,
        metadata={
            "help": "The credit method: a name (`uniform`, `gcpo`, `dgpo`), a mapping of `method` and its parameters (as "
            "JSON on the command line), or the path of your own class (`my_module.Class`, `my_file.py:Class`). If unset, "
            "the trainer's preset. `trl-credit methods` lists the names, `trl-credit methods NAME` the parameters."
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
            "help": "true or false: cut each micro-batch to its longest prompt and completion and deal rows to "
            "micro-batches by length; same gradient. If unset: on wherever it is exact, except with `uniform`."
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

    # TRL's and transformers', of which more can be said
    importance_sampling_level: one_of(*IMPORTANCE_SAMPLING_LEVELS) = field(
        default="token",
        metadata={
            "help": "`token`, `sequence` (GSPO), or `sequence_token` (GSPO-token): the sequence's ratio with each token's "
            "gradient, which keeps token credit."
        },
    )
    resume_from_checkpoint: Annotated[str | None, Unchecked] = field(
        default=None,
        metadata={
            "help": "`auto`: the last whole checkpoint of `output_dir`, or the beginning. `true`: that one, or an error. Or "
            "the path of one, which must be whole."
        },
    )
    enable_jit_checkpoint: bool = field(
        default=False,
        metadata={"help": "On SIGTERM finish the update, save a checkpoint and exit with code 143."},
    )

    dynamic_sampling: bool | None = field(
        default=None,
        metadata={
            "help": "true or false: replace groups that teach nothing by groups of fresh prompts, in further rounds of "
            "generation (DAPO). If unset: no."
        },
    )
    dynamic_sampling_max_rounds: (
        Annotated[Whole, Ge(2), Rule("at least 2, as the first round replaces nothing")] | None
    ) = field(
        default=None,
        metadata={"help": "The most rounds for one generation batch, the first included. If unset: 10."},
    )
    dynamic_sampling_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function whose mean over the group decides, as in the metric `rewards/NAME/mean`. "
            "If unset: groups are replaced whose rewards are all the same."
        },
    )
    dynamic_sampling_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "LOW HIGH: groups are kept whose mean of `dynamic_sampling_reward` lies strictly between. If unset: 0 1."
        },
    )

    credit_log_steps: AtLeast1 | None = field(
        default=None,
        metadata={
            "help": "Every so many updates, write the token credit of a few completions (a page and a parquet file in "
            "`OUTPUT_DIR/credit`) and send it to the trackers. If unset: never."
        },
    )
    credit_log_completions: AtLeast1 | None = field(
        default=None,
        metadata={"help": "How many completions `credit_log_steps` shows. If unset: 4."},
    )

    on_reward_error: one_of("raise", "exclude") = field(
        default="raise",
        metadata={
            "help": "What a reward function that raises, hangs or returns no reward does: `raise` an error that names the "
            "completion, or `exclude` the completion and count it. After a failed call completions are tried one by one."
        },
    )
    reward_timeout: Annotated[
        Finite, Ge(0), Le(30 * 86_400), Rule("seconds, at most 30 days of them, or 0 for no limit")
    ] = field(
        default=DEFAULT_TIMEOUT,
        metadata={"help": "Seconds that a reward function may take for a batch of completions; 0 for no limit."},
    )
    max_nonfinite_updates: AtLeast1 = field(
        default=DEFAULT_MAX_NONFINITE_UPDATES,
        metadata={
            "help": "Updates whose loss or gradient norm is not finite are skipped; after so many in a row the run ends."
        },
    )

    def __post_init__(self):
        for name in GRPOConfig._VALID_DICT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                try:
                    json.loads(value)
                except json.JSONDecodeError as error:
                    raise ValueError(f"`{name}` is not valid JSON: {error.msg} (character {error.pos + 1}).") from None
        check_fields(self, lenient=True)
        words = {"no": "false", "off": "false", "yes": "true", "on": "true"}  # as YAML 1.1 has them
        self.resume_from_checkpoint = words.get(self.resume_from_checkpoint, self.resume_from_checkpoint)
        if self.top_k == -1 and not self.use_vllm:
            raise ValueError("`top_k` -1 is vLLM's word for all tokens: write `top_k: 0`, or `use_vllm: true`.")
        if self.enable_jit_checkpoint and self.save_only_model:
            raise ValueError(
                "`enable_jit_checkpoint` saves a checkpoint to resume from, which `save_only_model=True` leaves incomplete. "
                "Set one of the two to false."
            )
        self._check_dynamic_sampling()
        method = None
        if self.credit is not None:
            method = build_credit(self.credit)
            check_credit(method, self)
            self.credit = method.to_dict()
        super().__post_init__()
        self._check_credit_log()
        if self.skip_zero_advantage and (reason := skip_refusal(self, method)):
            raise ValueError(f"`skip_zero_advantage` is not exact here: {reason} Set `skip_zero_advantage=False`.")
        for name in ("credit_cache_gib", "credit_cache_device"):
            if getattr(self, name) is not None and self.num_iterations == 1:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) has no effect with `num_iterations=1`: nothing is computed "
                    "twice. Remove it."
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
                "with `log_completions`, whose table is written every `logging_steps` and gets columns of token credit."
            )

    def _check_dynamic_sampling(self):
        bounds = self.dynamic_sampling_range
        for name in ("dynamic_sampling_max_rounds", "dynamic_sampling_reward", "dynamic_sampling_range"):
            # False is said on purpose, as by `--dynamic_sampling false` after a recipe that sets them
            if getattr(self, name) is not None and self.dynamic_sampling is None:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) has no effect without `dynamic_sampling`. Set it to true, or "
                    f"remove `{name}`."
                )
        if bounds is None:
            return
        if self.dynamic_sampling_reward is None:
            raise ValueError(
                f"`dynamic_sampling_range` ({bounds!r}) needs `dynamic_sampling_reward`: the reward function whose mean it "
                "is about."
            )
        if not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ValueError(f"`dynamic_sampling_range` must be two numbers, the lower first, got {bounds!r}.")


def check_credit(method: CreditMethod, args: GRPOConfig) -> None:
    """Raises `ValueError` for settings that would cancel the method's token credit, or have no effect."""
    if method.reweights and args.importance_sampling_level == "sequence" and args.loss_type in RATIO_GRADIENT_LOSSES:
        raise ValueError(
            f"`importance_sampling_level='sequence'` cancels the token credit of {method.name!r} with "
            f"`loss_type={args.loss_type!r}`: the gradient of a sequence-level ratio sums over the completion, so "
            "weights of mean 1 have no effect. Set `importance_sampling_level='sequence_token'` (the sequence's ratio, "
            "each token's gradient) or 'token', or `loss_type='cispo'`, or `credit='uniform'` (which is GSPO)."
        )
    if args.importance_sampling_level == "sequence_token" and args.loss_type not in RATIO_GRADIENT_LOSSES:
        raise ValueError(
            f"`importance_sampling_level='sequence_token'` has no effect with `loss_type={args.loss_type!r}`, through whose "
            "ratio no gradient goes: with `cispo` it is 'sequence', and `vespo` ignores the level. Set 'sequence' or "
            "'token'."
        )


def _composition(args: GRPOConfig, aux_loss: bool) -> str | None:
    """Why the loss depends on which rows share a micro-batch and on rows without an advantage, if it does."""
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        return "the entropy bonus is a mean over each micro-batch's tokens."
    if args.top_entropy_quantile < 1.0:
        return f"`top_entropy_quantile` ({args.top_entropy_quantile}) is a quantile over each micro-batch's tokens."
    if aux_loss:
        return "the MoE auxiliary loss is computed from each micro-batch's tokens (`router_aux_loss_coef`)."
    return None


def skip_refusal(args: GRPOConfig, method: CreditMethod | None = None, aux_loss: bool = False) -> str | None:
    """Why leaving out rows whose advantage is zero would not be exact; `None` if it is.

    Args:
        args: The configuration.
        method: The credit method, if known.
        aux_loss: Whether the loss has an MoE auxiliary term.
    """
    if args.beta != 0.0:
        return f"the KL penalty (`beta={args.beta}`) has a gradient on every completion."
    if method is not None and method.credits_zero_advantage:
        return f"credit method {method.name!r} gives advantages to completions that have none."
    return _composition(args, aux_loss)


def deal_refusal(args: GRPOConfig, aux_loss: bool = False, dropout: bool = False) -> str | None:
    """Why dealing rows to other micro-batches would not be exact; `None` if it is.

    Args:
        args: The configuration.
        aux_loss: Whether the loss has an MoE auxiliary term.
        dropout: Whether the policy has active dropout.
    """
    if args.loss_type == "bnpo" and args.beta != 0.0:
        return f"`loss_type='bnpo'` divides the KL penalty (`beta={args.beta}`) by each micro-batch's tokens."
    if dropout:
        return "active dropout draws its masks by a row's place."
    return _composition(args, aux_loss)
