"""TRL's GRPOTrainer with every extra but no credit."""

import functools
import inspect
from typing import Any

from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .._version import warn_if_untested
from .config import GRPOExtrasConfig
from .dynamic_sampling import DynamicSamplingMixin, check_dynamic_sampling
from .effect import EffectMixin
from .nonfinite import NonfiniteGuardMixin
from .resume import ResumeMixin
from .reward_guard import RewardGuardMixin, check_columns, check_reward_functions


warn_if_untested()

_SIGNATURE = inspect.signature(GRPOTrainer.__init__)


def bind_arguments(trainer: GRPOTrainer, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Binds arguments to the parameter names of TRL's trainer and applies its defaults."""
    bound = _SIGNATURE.bind(trainer, *args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    del arguments["self"]
    return arguments


def default_output_dir(model: Any, suffix: str) -> str:
    """TRL's default output folder for a run without a config."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-{suffix}"


def check_arguments(trainer_class: type, arguments: dict[str, Any]) -> None:
    """Raises `ValueError` for data, rewards or settings that the extras cannot work with. Loads no model."""
    check_reward_functions(arguments["reward_funcs"])
    check_columns(arguments["reward_funcs"], arguments["train_dataset"], arguments["eval_dataset"])
    check_dynamic_sampling(trainer_class, arguments)


class GRPOExtrasTrainer(
    EffectMixin, NonfiniteGuardMixin, DynamicSamplingMixin, RewardGuardMixin, ResumeMixin, GRPOTrainer
):
    """
    [`~trl.GRPOTrainer`] with dynamic sampling, exact resume, preemption, and guards against NaN, failing rewards and runs
    that train nothing.

    It takes every argument of [`~trl.GRPOTrainer`]. `args` may be a [`GRPOExtrasConfig`] or TRL's own config; with the
    latter, the guards use their defaults. Unless a guard intervenes, parameters and metrics are bit-identical to TRL's.

    Raises:
        ValueError: Data, rewards or settings that cannot work, before the model is loaded.

    Example:

    ```python
    from trl_credit.extras import GRPOExtrasConfig, GRPOExtrasTrainer

    trainer = GRPOExtrasTrainer(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        reward_funcs=reward,
        args=GRPOExtrasConfig(output_dir="out", dynamic_sampling=True),
        train_dataset=dataset,
    )
    trainer.train(resume_from_checkpoint="auto")
    ```
    """

    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, *args, **kwargs):
        arguments = bind_arguments(self, args, kwargs)
        if arguments["args"] is None:
            arguments["args"] = GRPOExtrasConfig(default_output_dir(arguments["model"], "GRPO"))
        check_arguments(type(self), arguments)
        super().__init__(**arguments)
