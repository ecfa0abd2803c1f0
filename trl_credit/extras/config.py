"""Configuration of the extras: fields of TRL's GRPOConfig that know nothing of credit."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Le
from trl import GRPOConfig

from .._util.settings import AtLeast1, Finite, Rule, Unchecked, Whole, check_fields, one_of


@dataclass
class GRPOExtrasConfig(GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with dynamic sampling, exact resume, preemption and guards.

    Parameters:
        dynamic_sampling (`bool`, *optional*):
            Whether to replace groups without a training signal by groups of fresh prompts, generated and scored in
            further rounds until the generation batch is full (DAPO); see
            [`~trl_credit.extras.dynamic_sampling.DynamicSamplingMixin`] for what is logged. Not in evaluation.
            `max_steps` or the epochs still set the run's length; passes over the data are logged. If unset: off, and
            setting any of the three fields below is an error. `False` ignores them.
        dynamic_sampling_max_rounds (`int`, *optional*):
            Maximum rounds per generation batch, including the first. Groups not replaced by then stay, with
            their advantages. If unset: 10.
        dynamic_sampling_reward (`str`, *optional*):
            Name of the reward function whose mean over the group decides. If unset, groups with equal rewards are
            replaced.
        dynamic_sampling_range (`list[float]`, *optional*):
            `[low, high]`: a group is kept if its mean of that reward lies strictly between the two. If unset: 0 and 1.
        on_reward_error (`str`, *optional*, defaults to `"raise"`):
            What happens if a reward function raises, hangs, or returns something other than one number (finite in
            float32) or `None` per completion: `"raise"` ends the run with an error that names the function and the
            completion; `"exclude"` leaves the completion out of its group and counts it. A function that fails on all
            completions of several prompts, or on several together but on none alone, is always an error.
        reward_timeout (`float`, *optional*, defaults to `800.0`):
            Seconds that a reward function may take for a batch of completions, and again to find the completion on
            which it hangs; 0 for no limit.
        max_nonfinite_updates (`int`, *optional*, defaults to `5`):
            Updates with a NaN or infinite loss or gradient norm are skipped; after so many in a row the run ends. A
            parameter that is not finite ends it at once.
        enable_jit_checkpoint (`bool`, *optional*, defaults to `False`):
            Whether SIGTERM makes the run finish its update, save a checkpoint and exit with code 143. Unlike
            transformers' own, this checkpoint can be resumed from exactly: see
            [`~trl_credit.extras.preemption.PreemptionCallback`].
    """

    dynamic_sampling: bool | None = field(
        default=None,
        metadata={
            "help": "true or false: replace groups without a training signal with groups of fresh prompts, in further "
            "rounds of generation (DAPO). If unset: no."
        },
    )

    dynamic_sampling_max_rounds: (
        Annotated[Whole, Ge(2), Rule("at least 2, as the first round replaces nothing")] | None
    ) = field(
        default=None,
        metadata={"help": "Maximum rounds per generation batch, including the first. If unset: 10."},
    )

    dynamic_sampling_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function whose mean over the group decides, as in the metric `rewards/NAME/mean`. "
            "If unset: groups whose rewards are all equal are replaced."
        },
    )

    dynamic_sampling_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "LOW HIGH: keep groups whose mean of `dynamic_sampling_reward` lies strictly between LOW and HIGH. If "
            "unset: 0 1."
        },
    )

    on_reward_error: one_of("raise", "exclude") = field(
        default="raise",
        metadata={
            "help": "If a reward function raises, hangs or returns no reward: `raise` an error that names the completion, "
            "or `exclude` the completion and count it. After a failed call, completions are tried one by one."
        },
    )

    reward_timeout: Annotated[
        Finite, Ge(0), Le(30 * 86_400), Rule("seconds, at most 30 days of them, or 0 for no limit")
    ] = field(
        # Doubled (by the search for the completion), it stays below the 30 minutes after which torch gives up on a
        # process, so the error can name the function
        default=800.0,
        metadata={"help": "Seconds that a reward function may take for a batch of completions; 0 for no limit."},
    )

    max_nonfinite_updates: AtLeast1 = field(
        default=5,
        metadata={
            "help": "Updates with a non-finite loss or gradient norm are skipped; after this many in a row the run ends."
        },
    )

    enable_jit_checkpoint: bool = field(
        default=False,
        metadata={"help": "On SIGTERM finish the update, save a checkpoint and exit with code 143."},
    )

    resume_from_checkpoint: Annotated[str | None, Unchecked] = field(
        default=None,
        metadata={
            "help": "`auto`: the last complete checkpoint in `output_dir`, or the beginning if there is none. `true`: that "
            "checkpoint, or an error. Or the path of a complete checkpoint."
        },
    )

    def __post_init__(self):
        check_fields(self, lenient=True)
        words = {"no": "false", "off": "false", "yes": "true", "on": "true"}  # as in YAML 1.1
        self.resume_from_checkpoint = words.get(self.resume_from_checkpoint, self.resume_from_checkpoint)
        if self.enable_jit_checkpoint and self.save_only_model:
            raise ValueError(
                "`enable_jit_checkpoint` saves a checkpoint to resume from, which `save_only_model=True` leaves incomplete. "
                "Set one of the two to false."
            )
        self._check_dynamic_sampling()
        self._check_before_trl()
        super().__post_init__()

    def _check_before_trl(self) -> None:
        """Hook for subclasses: raises `ValueError` before TRL checks its own fields."""

    def _check_dynamic_sampling(self):
        bounds = self.dynamic_sampling_range
        for name in ("dynamic_sampling_max_rounds", "dynamic_sampling_reward", "dynamic_sampling_range"):
            # An explicit False ignores them: `--dynamic_sampling false` may override a recipe that sets them
            if getattr(self, name) is not None and self.dynamic_sampling is None:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) has no effect without `dynamic_sampling`. Set it to true, or "
                    f"remove `{name}`."
                )
        if bounds is None:
            return
        if self.dynamic_sampling_reward is None:
            raise ValueError(
                f"`dynamic_sampling_range` ({bounds!r}) needs `dynamic_sampling_reward`: the reward function whose mean "
                "it bounds."
            )
        if not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ValueError(f"`dynamic_sampling_range` must be two numbers, the lower first, got {bounds!r}.")


def default_of(name: str) -> Any:
    """A field's default, for a trainer that got TRL's own config."""
    return GRPOExtrasConfig.__dataclass_fields__[name].default
