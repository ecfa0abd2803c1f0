"""Reward functions by name, for recipes and the command line."""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from .._imports import load_dotted
from ..methods.base import nearest


# What TRL's trainer passes to every reward function, besides the dataset's columns
TRAINER_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


def accuracy(completions: list, solution: list, **kwargs) -> list[float | None]:
    """1.0 where math-verify finds the solution in the completion, else 0.0; `None` where the solution does not parse.

    TRL's `accuracy_reward`, which judges, for plain-text completions too; of a conversation it judges the last message.
    """
    messages = [c[-1:] if isinstance(c, list) else [{"role": "assistant", "content": c}] for c in completions]
    return accuracy_reward(messages, [str(answer) for answer in solution], **kwargs)


# Functions as they are, and factories that are called with the arguments given in the recipe
REWARDS: dict[str, Callable] = {
    "accuracy": accuracy,
    "reasoning_accuracy": reasoning_accuracy_reward,
    "think_format": think_format_reward,
}
REWARD_FACTORIES: dict[str, Callable] = {
    "cosine_scaled": get_cosine_scaled_reward,
    "repetition_penalty": get_repetition_penalty_reward,
    "soft_overlong_punishment": get_soft_overlong_punishment,
}
# TRL's own names, as its `trl grpo` script takes them
_TRL_NAMES = {
    "accuracy_reward": "accuracy",
    "reasoning_accuracy_reward": "reasoning_accuracy",
    "think_format_reward": "think_format",
    "get_soft_overlong_punishment": "soft_overlong_punishment",
}


def build_reward(spec: str | Mapping[str, Any]) -> Callable:
    """The reward function that a recipe names.

    Args:
        spec: A name of [`REWARDS`] or [`REWARD_FACTORIES`], the dotted path of your own function, or a mapping of `name`
            and keyword arguments (JSON text on the command line). The arguments of a function that takes completions
            are bound to it; any other callable is a factory that is called with them.

    Raises:
        ValueError: Unknown name (the nearest known one is given), a path that cannot be loaded, wrong arguments.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except json.JSONDecodeError as error:
            raise ValueError(f"`reward_funcs`: {spec!r} is not valid JSON: {error.msg}.") from None
    arguments = {} if isinstance(spec, str) else dict(spec)
    name = spec if isinstance(spec, str) else arguments.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"`reward_funcs`: {spec!r} does not say the `name` of a reward function.")
    name = _TRL_NAMES.get(name, name)
    known = REWARDS | REWARD_FACTORIES
    function = known[name] if name in known else _load(name, known)
    takes_completions = name in REWARDS or "completions" in inspect.signature(function).parameters
    try:
        if not takes_completions:
            return function(**arguments)
        if not arguments:
            return function
        inspect.signature(function).bind_partial(**arguments)
        bound = functools.partial(function, **arguments)
        bound.__name__ = function.__name__  # the name in TRL's metrics
        return bound
    except TypeError as error:
        raise ValueError(f"`reward_funcs`: {name!r} with the arguments {arguments}: {error}.") from error


def _load(path: str, known: Mapping[str, Callable]) -> Callable:
    if "." not in path:
        raise ValueError(f"`reward_funcs`: unknown reward {path!r}. {nearest(path, known)}")
    try:
        return load_dotted(path)
    except ImportError as error:
        raise ValueError(f"`reward_funcs`: cannot load {path!r}: {error}") from error


def required_columns(function: Callable) -> list[str]:
    """The dataset columns without which a reward function cannot be called."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in TRAINER_ARGUMENTS
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
