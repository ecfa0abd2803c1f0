"""Reward functions by name, for recipes and the command line."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .._trl import (
    get_callable_name,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)
from .._util.imports import is_dotted, load_dotted
from .._util.settings import Flag, check_value
from .._util.text import nearest
from .._util.values import parsed
from .images import aesthetic, check_quality, clip_score, compressibility, hps, incompressibility, pickscore
from .patterns import answer_regex
from .several import as_solution, judge_any, shown, verify_any
from .thinking import OPENED_TAGS, judged_texts


logger = logging.getLogger(__name__)

# What the project's trainers pass besides to those that ask for it
_PASSED = frozenset({OPENED_TAGS, "images"})
# What TRL's trainer passes to every reward function besides the dataset's columns
TRAINER_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


def _verify(completions: list, solution: list, log_extra, log_metric, opened_tags, **request) -> list[float | None]:
    solution = [as_solution(answer) for answer in solution]
    verdicts = verify_any(judged_texts(completions, opened_tags), solution, **request)
    if log_extra is not None:
        log_extra("solution", [shown(answer) for answer in solution])
        log_extra("gold_parsed", [verdict.gold_parsed for verdict in verdicts])
        log_extra("answer_parsed", [verdict.answer_parsed for verdict in verdicts])
    _count_failures(verdicts, log_metric)
    return [verdict.reward for verdict in verdicts]


def _count_failures(verdicts: list, log_metric: Callable[[str, float], None] | None) -> None:
    if log_metric is not None:
        for name, outcome in (("verifier/timeouts", "timed_out"), ("verifier/crashes", "crashed")):
            log_metric(name, float(sum(verdict.outcome == outcome for verdict in verdicts)))


def accuracy(
    completions: list,
    solution: list,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    opened_tags: list[str] | None = None,
    **kwargs,
) -> list[float | None]:
    """1.0 if math-verify finds the solution in the completion, else 0.0. `None` if the solution cannot be parsed.

    TRL's `accuracy_reward`, run by the [`default_verifier`]. It also accepts plain-text completions; in a conversation,
    it judges the last message. A box counts even within a thought, including one that never ends, where [`judged`]
    finds no answer. An answer that cannot be verified within the verifier's limits gets 0.0; their number is logged as
    `verifier/timeouts` and `verifier/crashes`.
    """
    _warn_of_thoughts(opened_tags)
    return _verify(completions, solution, log_extra, log_metric, opened_tags)


def judged(
    completions: list,
    solution: list,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    opened_tags: list[str] | None = None,
    answer_pattern: str | None = None,
    **kwargs,
) -> list[float | None]:
    """1.0 if the completion's answer is the solution, else 0.0. `None` if the solution cannot be parsed. This is the
    verdict of `trl-credit eval` ([`judge.judge`]), so that training and evaluation agree.

    If the solution is a list, any one of its items is right. Solutions may be LaTeX without dollars (MATH-500's
    `2\\sqrt{3}`), of which [`accuracy`] reads only a number or nothing. In a conversation, the last message is judged.
    A thought that never ends has no answer, even if the chat template opened it (`opened_tags`, which
    [`~trl_credit.CreditGRPOTrainer`] passes). `log_metric` gets the same as from [`accuracy`]. The completions table
    also gets the answer that was found (`answer_parsed`) and the reason of the verdict (`judgement`).

    `answer_pattern` says where the answer is stated, instead of in a box: `answer_tag`, `gsm8k`, or a regular expression
    with one group, like the evaluation's option of that name. In a recipe: {name: judged, answer_pattern: answer_tag}.
    """
    solution = [as_solution(answer) for answer in solution]
    judgements = judge_any(judged_texts(completions, opened_tags), solution, answer_pattern=answer_pattern)
    if log_extra is not None:
        log_extra("solution", [shown(answer) for answer in solution])
        log_extra("answer_parsed", [judgement.answer or "[unparseable]" for judgement in judgements])
        log_extra("judgement", [judgement.reason for judgement in judgements])
    _count_failures(judgements, log_metric)
    return [None if judgement.correct is None else float(judgement.correct) for judgement in judgements]


def reasoning_accuracy(
    completions: list,
    solution: list,
    reasoning_delimiters: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    opened_tags: list[str] | None = None,
    **kwargs,
) -> list[float | None]:
    """TRL's `reasoning_accuracy_reward`: [`accuracy`] of the text after the last of the `reasoning_delimiters` (by
    default `</think>`). 0.0 without a delimiter."""
    request = {"function": "reasoning_accuracy", "reasoning_delimiters": reasoning_delimiters}
    return _verify(completions, solution, log_extra, log_metric, opened_tags, **request)


reasoning_accuracy.__name__ = "reasoning_accuracy_reward"  # name in TRL's metrics


def cosine_scaled(max_len: int, **arguments) -> Callable:
    """TRL's `get_cosine_scaled_reward`, with its arguments: [`accuracy`] scaled by a cosine of the length."""
    arguments = {"max_len": max_len, **arguments}
    get_cosine_scaled_reward(**arguments)  # raises if one is wrong
    return functools.partial(_cosine_scaled, arguments=arguments)


def _cosine_scaled(
    completions: list,
    solution: list,
    completion_ids: list[list[int]],
    log_metric: Callable[[str, float], None] | None = None,
    opened_tags: list[str] | None = None,
    *,
    arguments: dict[str, Any],
    **kwargs,
) -> list[float | None]:
    _warn_of_thoughts(opened_tags)
    request = {"function": "cosine_scaled", "lengths": [len(ids) for ids in completion_ids], **arguments}
    return _verify(completions, solution, None, log_metric, opened_tags, **request)


_cosine_scaled.__name__ = "cosine_scaled_reward"  # name in TRL's metrics


def think_format(completions: list, opened_tags: list[str] | None = None, **kwargs) -> list[float]:
    """TRL's `think_format_reward`, also for plain text: 1.0 for a thought in `<think>` and `</think>`, else 0.0.

    A tag that the prompt opened counts as the completion's, or no completion of such a chat template could pass.
    """
    first = [completion if isinstance(completion, str) else completion[:1] for completion in completions]
    return think_format_reward([[{"content": text}] for text in judged_texts(first, opened_tags)])


think_format.__name__ = "think_format_reward"  # name in TRL's metrics


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _warn_of_thoughts(opened_tags: list[str] | None) -> None:
    if opened_tags and any(opened_tags):
        _warn_once(
            f"The chat template opens {next(filter(None, opened_tags))} for the completion. `accuracy` counts a box in a "
            "thought that never ends, which the evaluation does not: the reward `judged` gives the evaluation's verdict."
        )


# `REWARDS` are reward functions. `REWARD_FACTORIES` are called with the recipe's arguments and return one
REWARDS: dict[str, Callable] = {
    "accuracy": accuracy,
    "judged": judged,
    "reasoning_accuracy": reasoning_accuracy,
    "think_format": think_format,
}
REWARD_FACTORIES: dict[str, Callable] = {
    "cosine_scaled": cosine_scaled,
    "repetition_penalty": get_repetition_penalty_reward,
    "soft_overlong_punishment": get_soft_overlong_punishment,
}
# Names of those that score text, as all of them do
TEXT_REWARDS = (*REWARDS, *REWARD_FACTORIES)
# The same for rewards that judge images, which only image models make
IMAGE_REWARDS: dict[str, Callable] = {"compressibility": compressibility, "incompressibility": incompressibility}
IMAGE_REWARD_FACTORIES: dict[str, Callable] = {
    "aesthetic": aesthetic,
    "clip_score": clip_score,
    "pickscore": pickscore,
    "hps": hps,
}
# Names that TRL's `trl grpo` script accepts
_TRL_NAMES = {
    "accuracy_reward": "accuracy",
    "reasoning_accuracy_reward": "reasoning_accuracy",
    "think_format_reward": "think_format",
    "get_soft_overlong_punishment": "soft_overlong_punishment",
}
# What that script calls them with, whatever the run's lengths are
_TRL_ARGUMENTS = {"get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256}}


def build_reward(spec: str | Mapping[str, Any], max_completion_length: int | None = None) -> Callable:
    """Builds the reward function that a recipe names.

    Args:
        spec: A name (`accuracy`, `clip_score`, ...), the path of your own (`my_module.reward`, `my_file.py:reward`), or a
            mapping of `name` and keyword arguments (text on the command line, JSON or YAML). A callable with a parameter
            `completions` or `**kwargs`, which TRL could call, is a reward function: the arguments are bound to it. A
            class or any other callable is a factory: it is called with the arguments. `factory: true` treats a callable
            with `**kwargs` as a factory.
        max_completion_length: The run's limit in tokens. Default of `max_completion_len` (`soft_overlong_punishment`)
            and `max_len` (`cosine_scaled`). `soft_punish_cache` defaults to a fifth of `max_completion_len`, as in DAPO
            (arXiv 2503.14476: 4096 of 20480).

    Raises:
        ValueError: Unknown name (the message suggests the nearest), a path that cannot be loaded, or wrong arguments.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = parsed("reward_funcs", spec)
        except ValueError as error:
            raise ValueError(f"{error} Write it as '{{name: ..., argument: ...}}' (JSON or YAML).") from None
    arguments = {} if isinstance(spec, str) else dict(spec)
    name = spec if isinstance(spec, str) else arguments.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"`reward_funcs`: {spec!r} does not say the `name` of a reward function.")
    if name in _TRL_ARGUMENTS and not arguments:
        arguments = dict(_TRL_ARGUMENTS[name])
    name = _TRL_NAMES.get(name, name)
    rewards, factories = REWARDS | IMAGE_REWARDS, REWARD_FACTORIES | IMAGE_REWARD_FACTORIES
    known = rewards | factories
    function = known[name] if name in known else _load(name, known)
    if not callable(function):
        raise ValueError(f"`reward_funcs`: {name!r} is not a function, but {type(function).__name__}.")
    is_reward = name in rewards or (name not in factories and takes_completions(function))
    if name not in known and "factory" in arguments and "factory" not in _parameters(function):
        is_reward = not check_value("factory", arguments.pop("factory"), Flag)
    try:
        _set_lengths(name, arguments, max_completion_length)
        if name == "judged" and arguments.get("answer_pattern") is not None:
            _check_pattern(arguments["answer_pattern"])
        if name in REWARDS | IMAGE_REWARDS | IMAGE_REWARD_FACTORIES:
            _check_arguments(name, function, arguments)
        if name in IMAGE_REWARDS | IMAGE_REWARD_FACTORIES:
            _check_image_reward(name, function, arguments)
        if not is_reward:
            made = function(**arguments) if name in known else _made(name, function, arguments)
            if not callable(made):
                raise ValueError(
                    f"`reward_funcs`: {name!r} takes no `completions`, so it was called as a factory; it "
                    f"made {type(made).__name__}."
                )
            return made
        if not arguments:
            return function
        inspect.signature(function).bind_partial(**arguments)
        bound = functools.partial(function, **arguments)
        bound.__name__ = get_callable_name(function)  # name in TRL's metrics
        return bound
    except TypeError as error:
        raise ValueError(f"`reward_funcs`: {name!r} with the arguments {arguments}: {error}.") from error


def _made(name: str, factory: Callable, arguments: Mapping[str, Any]) -> Any:
    """What a factory of the user's own makes."""
    try:
        return factory(**arguments)
    except TypeError:  # wrong arguments
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"`reward_funcs`: {name!r} takes no `completions`, so it was called as a factory, with the arguments "
            f"{dict(arguments)}, and raised {problem}."
        ) from error


def _check_pattern(pattern: Any) -> None:
    try:
        answer_regex(pattern)
    except ValueError as error:
        raise ValueError(f"`reward_funcs`: 'judged': {error}") from None


def _check_arguments(name: str, function: Callable, arguments: Mapping[str, Any]) -> None:
    """Checks the arguments' names for a function of ours: its `**kwargs` would take any."""
    known = [
        parameter.name
        for parameter in _parameters(function).values()
        if parameter.default is not parameter.empty and parameter.name not in {*TRAINER_ARGUMENTS, *_PASSED}
    ]
    for argument in arguments:
        if argument not in known:
            hint = nearest(argument, known) if known else "It takes none."
            raise ValueError(f"`reward_funcs`: {name!r} has no argument {argument!r}. {hint}")


def _check_image_reward(name: str, function: Callable, arguments: Mapping[str, Any]) -> None:
    try:
        if name in IMAGE_REWARD_FACTORIES:
            function(**arguments)  # loads nothing yet
        elif "quality" in arguments:
            check_quality(arguments["quality"])
    except ValueError as error:
        raise ValueError(f"`reward_funcs`: {name!r}: {error}") from None


def _set_lengths(name: str, arguments: dict[str, Any], max_completion_length: int | None) -> None:
    """Fills in the lengths that the recipe leaves to the run, and checks them."""
    length = {"soft_overlong_punishment": "max_completion_len", "cosine_scaled": "max_len"}.get(name)
    if length is None:
        return
    maximum = arguments.setdefault(length, max_completion_length)
    if maximum is None:
        raise ValueError(f"`reward_funcs`: {name!r} needs `{length}`, or the run's `max_completion_length`.")
    if not maximum > 0:
        raise ValueError(f"`reward_funcs`: `{length}` of {name!r} must be positive, got {maximum}.")
    if name == "soft_overlong_punishment":
        cache = arguments.setdefault("soft_punish_cache", max(1, maximum // 5))
        if not 0 < cache < maximum:
            raise ValueError(
                f"`reward_funcs`: `soft_punish_cache` of {name!r} must be between 0 and `max_completion_len` ({maximum}), "
                f"got {cache}."
            )


def _load(path: str, known: Mapping[str, Callable]) -> Callable:
    if not is_dotted(path):
        raise ValueError(f"`reward_funcs`: unknown reward {path!r}. {nearest(path, known)}")
    try:
        return load_dotted(path)
    except ImportError as error:
        raise ValueError(f"`reward_funcs`: cannot load {path!r}: {error}") from error


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def judges_images(function: Callable) -> bool:
    """True for a reward function of [`trl_credit.rewards.images`]."""
    return getattr(getattr(function, "func", function), "__module__", None) == compressibility.__module__


def takes_completions(function: Callable) -> bool:
    """True if TRL could call this as a reward function, with completions by name. A class is a factory instead."""
    parameters = _parameters(function)
    return not isinstance(function, type) and (
        "completions" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    )


def required_columns(function: Callable) -> list[str]:
    """Dataset columns that a reward function needs."""
    return [
        name
        for name, parameter in _parameters(function).items()
        if name not in {*TRAINER_ARGUMENTS, OPENED_TAGS}
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
