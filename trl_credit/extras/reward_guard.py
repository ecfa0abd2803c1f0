"""Guards reward functions: names the function and completion that raised, hung or returned a non-reward."""

import asyncio
import contextlib
import faulthandler
import functools
import inspect
import itertools
import logging
import math
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import get_callable_name, is_async_callable

from .._util.text import safe_lines
from ..rewards import TRAINER_ARGUMENTS
from ..rewards.thinking import OPENED_TAGS, opened_tag
from .config import default_of


logger = logging.getLogger(__name__)  # logs on every process: each has its own completions

# Marks an excluded completion until TRL has gathered the rewards. No clash: infinite rewards are errors
_EXCLUDED = math.inf

_LARGEST = torch.finfo(torch.float32).max


class RewardError(RuntimeError):
    """A reward function failed on a completion. Its `__cause__` is the function's own exception, if it raised one."""


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """Ends a command whose reward function fails: prints the traceback of the function's own code, then one line that names
    it, and exits with 1. Only the process that sees the failure knows of it, so nothing is closed."""
    try:
        yield
    except RewardError as error:
        print(f"{safe_lines(_own_traceback(error))}{program}: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(1) from error


def _own_traceback(error: RewardError) -> str:
    """The traceback of a reward function's exception, without this module's frames; empty if it raised none."""
    cause = error.__cause__
    frames = None if cause is None else cause.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "" if frames is None else "".join(traceback.format_exception(type(cause), cause, frames))


class _TimeUp(BaseException):
    """Not an `Exception`, because a reward function may catch those."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises `TimeoutError` in the main thread when the time is up. If code neither returns to Python nor checks for
    signals, the process ends 30 s later with a traceback of it."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    over, deadline = False, time.monotonic() + seconds

    def interrupt(*_):
        if not over and time.monotonic() >= deadline:
            raise _TimeUp

    # Not SIGALRM, which reward functions use themselves. The timer thread interrupts code that waits. Code that holds
    # the interpreter, such as a backtracking regex, gets the signal from the kernel after each second of CPU time
    previous = signal.signal(signal.SIGVTALRM, interrupt)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGVTALRM))
    timer.daemon = True
    try:
        try:
            timer.start()
            signal.setitimer(signal.ITIMER_VIRTUAL, min(seconds, 1.0), 1.0)
            with contextlib.suppress(ValueError, AttributeError, OSError):  # no stderr
                faulthandler.dump_traceback_later(seconds + 30, exit=True, file=sys.__stderr__)
            yield
        finally:
            over = True
    except _TimeUp:
        raise TimeoutError(f"it took more than {seconds:.3g} s (see `reward_timeout`)") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        timer.cancel()
        timer.join()  # or its signal could reach the previous handler, which may end the process
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGVTALRM, previous)


class GuardedReward:
    """Wraps a reward function: a failure raises an error that names the completion, or excludes that completion.

    Instead of a number, a function may return a list of numbers for a completion, one for each turn. Their sum is the
    reward.

    If a call fails as a whole, the completions are retried one by one to find the bad ones. It is always an error if
    the call fails but no single completion does, or if every completion fails and they belong to several prompts.

    Args:
        function: A reward function as TRL accepts it.
        name: Its name in TRL's metrics.
        exclude: Whether to exclude completions on which it fails from their groups, instead of ending the run.
        timeout: Seconds for a call, and again for all one-by-one calls together: each gets half of the remaining time,
            but at least a second.
    """

    def __init__(self, function: Callable, name: str, *, exclude: bool, timeout: float | None):
        functools.update_wrapper(self, function, updated=())
        self.function, self.name, self.exclude, self.timeout = function, name, exclude, timeout
        self.asks_for_tags = _asks_for_tags(function)
        # The last call's rewards of turns, for each completion
        self.turns: list[list[float] | None] = []

    def __call__(self, **kwargs) -> list[float | None]:
        rewards: list[float | None] = []
        for call in self._calls(kwargs, rewards):
            try:
                with time_limit(call.timeout):
                    call.result = self.function(**call.kwargs)
            except (Exception, SystemExit) as error:
                call.error = _as_failure(error)
        return rewards

    def _calls(self, kwargs: dict[str, Any], rewards: list[float | None]) -> Iterator["_Call"]:
        """Yields the calls to make, for sync and async functions, and then fills `rewards`."""
        count = len(kwargs["completions"])
        if not self.asks_for_tags:
            kwargs = {name: value for name, value in kwargs.items() if name != OPENED_TAGS}
        calls, whole = [_Call(kwargs, self.timeout)], None
        yield calls[0]
        try:
            checked = calls[0].checked(count)
        except Exception as problem:
            checked, calls, whole, left = [], [], problem, self.timeout
            for i in range(count):
                calls.append(_Call(_row(kwargs, i, count), left and max(left / 2, 1.0)))
                begin = time.monotonic()
                yield calls[i]
                left = left and max(left - (time.monotonic() - begin), 1.0)
                try:
                    checked += calls[i].checked(1)
                except Exception as problem_of_one:
                    checked.append(_named(problem_of_one))
                    calls[i] = _Call({}, None)  # discard what it logged before failing
                if isinstance(checked[i], str) and not self.exclude:
                    break
        failed = [i for i, value in enumerate(checked) if isinstance(value, str)]
        if failed and not self.exclude:
            problem = checked[failed[0]]
            if whole is not None and _named(whole) != problem:
                problem += f" (for all completions together: {_named(whole)})"
            raise _error(self.name, kwargs, failed[0], problem) from whole
        prompts = {str(prompt) for prompt in kwargs["prompts"]}
        if (len(failed) == count and len(prompts) > 1) or (whole is not None and not failed):
            if failed:
                raise RewardError(
                    f"The reward function {self.name!r} failed on every completion: {checked[0]}. Correct it: nothing is "
                    "left to train on."
                ) from whole
            raise RewardError(
                f"The reward function {self.name!r} failed on {count} completions together, but not on any single one: "
                f"{_named(whole)}. It must take any number of completions, and return a list with a number for each (`None` "
                "for no reward)."
            ) from whole
        if failed:
            example = _described(self.name, kwargs, failed[0], checked[failed[0]])
            logger.warning("Excluded %d of %d completions; for example: %s", len(failed), count, example)
        for i in failed:
            checked[i] = _EXCLUDED
        _Call.pass_on(calls, kwargs)
        self.turns = [turns for call in calls for turns in call.turns]
        rewards += checked


class AsyncGuardedReward(GuardedReward):
    """[`GuardedReward`] for an `async` function."""

    async def __call__(self, **kwargs) -> list[float | None]:
        rewards: list[float | None] = []
        for call in self._calls(kwargs, rewards):
            limit = asyncio.timeout(call.timeout or None)
            try:
                async with limit:
                    call.result = await self._awaited(call.kwargs)
            except Exception as error:
                call.error = error  # a `TimeoutError` may be the function's own
                if limit.expired():
                    call.error = TimeoutError(f"it took more than {call.timeout:.3g} s (see `reward_timeout`)")
        return rewards

    async def _awaited(self, kwargs: dict[str, Any]) -> Any:
        try:
            return await self.function(**kwargs)
        except SystemExit as error:  # outside the task it would end the event loop that TRL waits for
            raise _as_failure(error) from error


def _as_failure(error: BaseException) -> Exception:
    """Turns `SystemExit` into a failure: otherwise the run would end with its exit code, perhaps 0."""
    if isinstance(error, SystemExit):
        failure = RuntimeError(f"it called sys.exit({error.code!r})")
        failure.__cause__ = error
        return failure
    return error


class _Call:
    """One call: its keyword arguments and time limit, then its result or exception. Holds back what the function logs
    until the call is known to be good."""

    def __init__(self, kwargs: dict[str, Any], timeout: float | None):
        self.timeout, self.result, self.error = timeout, None, None
        self.turns: list[list[float] | None] = [None]
        self.columns: dict[str, list] = defaultdict(list)
        self.metrics: list[tuple[str, float]] = []
        self.kwargs = dict(kwargs)
        if "log_extra" in kwargs:
            self.kwargs["log_extra"] = lambda column, values: self.columns[column].extend(values)
        if "log_metric" in kwargs:
            self.kwargs["log_metric"] = lambda name, value: self.metrics.append((name, value))

    def checked(self, expected: int) -> list[float | str | None]:
        """Each reward as a number, `None` or text that describes its problem. Raises if the whole call failed.

        A list of numbers is one reward for each turn: the reward is their sum, and `turns` keeps them, NaN for `None`.
        """
        if self.error is not None:
            raise self.error
        rewards = self.result
        if isinstance(rewards, (str, bytes, dict)) or not isinstance(rewards, Iterable):
            raise TypeError(
                f"it returned {_shortened(rewards)}, which is not a list with one reward for each completion"
            )
        rewards = list(rewards)
        if len(rewards) != expected:
            raise ValueError(f"it returned {len(rewards)} rewards for {expected} completions")
        checked: list[float | str | None] = []
        self.turns = [None] * len(rewards)
        for i, reward in enumerate(rewards):
            if not isinstance(reward, (list, tuple)):
                checked.append(_checked(reward))
                continue
            values = [_checked(value) for value in reward]
            problems = [value for value in values if isinstance(value, str)]
            known = [value for value in values if value is not None]
            if problems or not values:
                checked.append(problems[0] if problems else "it returned an empty list (return `None` for no reward)")
                continue
            checked.append(_checked(sum(known)) if known else None)
            self.turns[i] = [math.nan if value is None else value for value in values]
        return checked

    @staticmethod
    def pass_on(calls: list["_Call"], kwargs: dict[str, Any]) -> None:
        """Passes on the logs of the calls: one for all completions, or one for each."""
        for column in {column: None for call in calls for column in call.columns}:
            parts = [call.columns.get(column, [None]) for call in calls]
            kwargs["log_extra"](column, [value for part in parts for value in part])
        for call in calls:
            for name, value in call.metrics:
                kwargs["log_metric"](name, value)


def _checked(reward: Any) -> float | str | None:
    """The reward as a number, `None` or text that describes its problem."""
    try:
        if isinstance(reward, (str, bytes, bytearray)):  # float() reads them
            raise TypeError
        value = None if reward is None else float(reward)
    except OverflowError:  # a whole number of more than 308 digits
        value = math.inf if reward > 0 else -math.inf
    except (TypeError, ValueError):
        return f"it returned {_shortened(reward)}, which is not a number (return `None` for no reward)"
    if value is not None and not math.isfinite(value):
        return f"it returned {value} (return `None` for no reward)"
    if value is not None and abs(value) > _LARGEST:
        return f"it returned {value}, which overflows float32, the dtype TRL uses for rewards"
    return value


def _asks_for_tags(function: Callable) -> bool:
    """True if a reward function takes the thinking tags that its prompts opened."""
    try:
        return OPENED_TAGS in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin
        return False


def _row(kwargs: dict[str, Any], i: int, count: int) -> dict[str, Any]:
    """The arguments for one completion."""
    return {
        name: [value[i]] if isinstance(value, list) and len(value) == count else value for name, value in kwargs.items()
    }


def _named(error: BaseException) -> str:
    """An exception's type and message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _described(name: str, kwargs: dict[str, Any], i: int, problem: str) -> str:
    return (
        f"The reward function {name!r} failed on completion {i} of {len(kwargs['completions'])}: {problem}. Prompt: "
        f"{_shortened(kwargs['prompts'][i])} Completion: {_shortened(kwargs['completions'][i])}"
    )


def _error(name: str, kwargs: dict[str, Any], i: int, problem: str) -> RewardError:
    way_out = "Correct the function; in training, `on_reward_error: exclude` leaves such completions out."
    return RewardError(f"{_described(name, kwargs, i, problem)}. {way_out}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"


def check_reward_functions(functions: Any) -> None:
    """Raises `ValueError` for a function that cannot be called as TRL does, with every column of the dataset by name."""
    for function in functions if isinstance(functions, list) else [functions]:
        if isinstance(function, (str, nn.Module)) or not callable(function):
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # a builtin
            continue
        missing = TRAINER_ARGUMENTS - {"environments"} - {parameter.name for parameter in parameters}
        if missing and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            raise ValueError(
                f"The reward function {get_callable_name(function)!r} does not accept {', '.join(sorted(missing))}, which "
                "TRL passes to every reward function, along with the dataset's columns. Add `**kwargs` to its parameters."
            )


def distinct_names(names: Sequence[str], warn: bool = True) -> list[str]:
    """The names with those that come again numbered: `reward`, `reward_2`. Warns of them, unless told not to.

    TRL stores rewards by their function's name, so of two functions with the same one, only the last would be read.
    """
    found: list[str] = []
    for name in names:
        number, own = 2, name
        while own in found or (own != name and own in names):
            own, number = f"{name}_{number}", number + 1
        if own != name and warn:
            logger.warning("Another reward function is named %r: this one is logged as %r.", name, own)
        found.append(own)
    return found


def largest_rewards(count: int, weights: torch.Tensor) -> torch.Tensor:
    """Largest rewards for which TRL's group statistics, which square them, stay finite in float32.

    If a square overflows, TRL's standard deviation is infinite and every advantage of the group is zero.

    Args:
        count: Number of rewards per mean.
        weights: (F,) `reward_weights`.

    Returns:
        (F,) limit for each function, a few times below the worst-case overflow.
    """
    return math.sqrt(_LARGEST / (4 * count)) / (weights.double().abs() * len(weights)).clamp(min=1.0)


# Forbidden column names: TRL passes both as arguments, too, and Python rejects the duplicate
_TAKEN = ("prompts", "completions")


def check_columns(functions: Any, train_dataset: Any, eval_dataset: Any = None) -> None:
    """Raises `ValueError` for a column that TRL would pass to a reward function beside an argument of the same name."""
    if not any(
        callable(f) and not isinstance(f, nn.Module)
        for f in (functions if isinstance(functions, list) else [functions])
    ):
        return
    evaluations = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
    for dataset in [train_dataset, *evaluations]:
        for name in _TAKEN:
            if name in (getattr(dataset, "column_names", None) or ()):
                raise ValueError(
                    f"The dataset has a column {name!r}, but TRL passes an argument with that name to every reward "
                    "function: rename the column (`dataset.rename_column`) or drop it (`dataset.remove_columns`)."
                )


@dataclass(frozen=True)
class TurnRewards:
    """A completion's rewards, weighted and summed over the reward functions.

    Args:
        each: Those for each turn; NaN for none.
        whole: Those for the completion as a whole.
    """

    each: list[float]
    whole: float


class RewardGuardMixin:
    """Guards the trainer's reward functions; see [`GuardedReward`].

    A function with a parameter `opened_tags` gets, for each completion, the thinking tag at the end of the rendered
    prompt, which the completion therefore lacks, or an empty string.

    With `on_reward_error="exclude"`, a completion on which any reward function fails has no reward: it does not count
    in its group's mean and has no advantage. `rewards/NAME/excluded` logs the number of such completions per scoring.
    Rewards whose statistics would overflow float32 ([`largest_rewards`]) are failures, too.

    Functions of the same name, whose rewards TRL would log as one, get names of their own ([`distinct_names`]).
    """

    # Rewards by turn of this process's completions, of the last scoring or, with dynamic sampling, of the batch
    _turn_rewards: list[TurnRewards | None] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reward_func_names = distinct_names(self.reward_func_names)
        self._excludes = getattr(self.args, "on_reward_error", "raise") == "exclude"
        if not self.reward_weights.isfinite().all():
            raise ValueError(f"`reward_weights` must be finite in float32, got {self.args.reward_weights}.")
        timeout = getattr(self.args, "reward_timeout", default_of("reward_timeout"))
        for i, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if not isinstance(function, nn.Module):
                guard = AsyncGuardedReward if is_async_callable(function) else GuardedReward
                self.reward_funcs[i] = guard(function, name, exclude=self._excludes, timeout=timeout)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if any(getattr(function, "asks_for_tags", False) for function in self.reward_funcs):
            tags = self._opened_tags(prompts)
            inputs = [{**example, OPENED_TAGS: tag} for example, tag in zip(inputs, tags, strict=True)]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        models = [isinstance(function, nn.Module) for function in self.reward_funcs]
        models = torch.tensor(models, device=rewards.device)
        # On the CPU, as not every accelerator has float64
        largest = largest_rewards(len(rewards), self.reward_weights.cpu()).float().to(rewards.device)
        # A comparison with a NaN is false: no reward, unless it is a model's
        excluded = (rewards == _EXCLUDED) & ~models
        wrong = (~torch.isfinite(rewards) & models) | ((rewards.abs() > largest) & ~excluded)
        if wrong.any() and not self._excludes:
            i, column = wrong.nonzero()[0].tolist()
            first = self.accelerator.process_index * len(prompts)
            name, texts = self.reward_func_names[column], {"prompts": prompts, "completions": completions}
            value = rewards[i, column].item()
            problem = f"it returned {value}"
            if math.isfinite(value):
                problem += (
                    f", with which a group's statistics overflow in float32 (at most {largest[column]:.1e} with its weight "
                    f"of {self.reward_weights[column]:g})"
                )
            if first <= i < first + len(prompts):
                raise _error(name, texts, i - first, problem)
            kind = "model" if models[column] else "function"
            raise RewardError(f"The reward {kind} {name!r} failed on a completion of another process: {problem}.")
        if self._excludes:
            excluded |= wrong
            mode = "train" if self.model.training else "eval"
            for name, count in zip(self.reward_func_names, excluded.sum(0).tolist(), strict=True):
                self._metrics[mode][f"rewards/{name}/excluded"].append(float(count))
            rewards = rewards.masked_fill(excluded.any(-1, keepdim=True), math.nan)
        first = self.accelerator.process_index * len(prompts)
        self._turn_rewards = self._of_turns(rewards[first : first + len(prompts)])
        return rewards

    def _of_turns(self, rewards: torch.Tensor) -> list[TurnRewards | None] | None:
        """The weighted rewards of this process's completions by turn, given their (B, F) rewards; `None` for those without
        one. `None` if no function gave a reward for each turn."""
        turns = [getattr(function, "turns", None) or [None] * len(rewards) for function in self.reward_funcs]
        if all(values is None for of_function in turns for values in of_function):
            return None
        weights = self.reward_weights.tolist()
        found: list[TurnRewards | None] = []
        for i, row in enumerate(rewards.tolist()):
            known = [f for f, reward in enumerate(row) if not math.isnan(reward)]
            ragged = [[weights[f] * value for value in turns[f][i]] for f in known if turns[f][i] is not None]
            each = [
                math.nan if all(map(math.isnan, column)) else sum(v for v in column if not math.isnan(v))
                for column in itertools.zip_longest(*ragged, fillvalue=math.nan)
            ]
            whole = sum(weights[f] * row[f] for f in known if turns[f][i] is None)
            found.append(TurnRewards(each, whole) if known else None)
        return found

    def _opened_tags(self, prompts: list) -> list[str]:
        """The thinking tag that each prompt ends with, rendered as TRL renders it; equal prompts are rendered once."""
        found: dict[str, str] = {}
        for prompt in prompts:
            if str(prompt) not in found:
                text = prompt
                if not isinstance(prompt, str):
                    text = self.processing_class.apply_chat_template(
                        prepare_multimodal_messages(prompt) if self._is_vlm else prompt,
                        tools=self.tools or None,
                        chat_template=self.chat_template,
                        add_generation_prompt=True,
                        tokenize=False,
                        **self.chat_template_kwargs,
                    )
                found[str(prompt)] = opened_tag(text)
        return [found[str(prompt)] for prompt in prompts]
