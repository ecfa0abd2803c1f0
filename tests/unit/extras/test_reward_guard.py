"""Reward functions that raise, hang, or return something that is not a reward."""

import asyncio
import collections
import contextlib
import functools
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from decimal import Decimal

import numpy
import pytest
import torch
from helpers import config, letter_reward, prompts
from support.guard import length_reward, make

from trl_credit import CreditGRPOTrainer
from trl_credit.extras.reward_guard import (
    AsyncGuardedReward,
    GuardedReward,
    RewardError,
    distinct_names,
    reported,
    time_limit,
)


NAN, INF = float("nan"), float("inf")

BAD = "bad"


def by_text(on_bad):
    """A reward that is right but for the completions that say so."""

    def reward(prompts, completions, log_extra=None, log_metric=None, **kwargs):
        if log_extra is not None:
            log_extra("text", list(completions))
            log_metric("scored", float(len(completions)))
        return [on_bad(completions) if BAD in text else float(len(text)) for text in completions]

    return reward


def raises(completions):
    raise KeyError("no answer")


def hangs(completions):
    while True:
        time.sleep(0.01)


def swallows(completions):
    for _ in range(10_000):
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def backtracks(completions):
    """Holds the interpreter, but looks for signals."""
    return float(bool(re.match("(a+)+$", "a" * 64 + "b")))


def shorter(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions if BAD not in text]


FAILING = {
    "raises": (by_text(raises), "KeyError: 'no answer'"),
    "hangs": (by_text(hangs), r"took more than [\d.]+ s \(see `reward_timeout`\)"),
    "swallows": (by_text(swallows), r"took more than [\d.]+ s \(see `reward_timeout`\)"),
    "backtracks": (by_text(backtracks), r"took more than [\d.]+ s"),
    "nan": (by_text(lambda _: NAN), "returned nan"),
    "inf": (by_text(lambda _: INF), "returned inf"),
    "text": (by_text(lambda _: "1.0"), "returned '1.0', which is not a number"),
    "bytes": (by_text(lambda _: b"1.0"), "returned b'1.0', which is not a number"),
    "1e300": (by_text(lambda _: 1e300), r"returned 1e\+300, which overflows float32"),
    "-1e39": (by_text(lambda _: -1e39), r"returned -1e\+39, which overflows float32"),
    "float64": (by_text(lambda _: numpy.float64(1e39)), r"returned 1e\+39, which overflows float32"),
    "tensor": (by_text(lambda _: torch.tensor(1e39, dtype=torch.float64)), r"returned 1.*e\+39, which overflows"),
    "integer": (by_text(lambda _: 10**400), "returned inf"),
    "negative integer": (by_text(lambda _: -(10**400)), "returned -inf"),
    "decimal": (by_text(lambda _: Decimal("1e500")), "returned inf"),
    "nothing": (
        lambda completions, **_: None if BAD in completions else length_reward(completions),
        "it returned None, which is not a list",
    ),
    "mapping": (
        lambda completions, **_: {} if BAD in completions else length_reward(completions),
        "it returned {}, which is not a list",
    ),
    "shorter": (shorter, "returned 0 rewards for 1 completions"),
}

TEXTS = ["a", "bcd", BAD, "ef"]

COLUMNS = {"text": ["a", "bcd", None, "ef"]}


def arguments(texts, columns, metrics):
    return {
        "prompts": [f"p{i}" for i in range(len(texts))],
        "completions": list(texts),
        "completion_ids": [[1]] * len(texts),
        "log_extra": lambda name, values: columns.setdefault(name, []).extend(values),
        "log_metric": lambda name, value: metrics.setdefault(name, []).append(value),
    }


def call(function, texts=TEXTS, exclude=False):
    columns, metrics = {}, {}
    guarded = GuardedReward(function, "mine", exclude=exclude, timeout=1.0)
    return guarded(**arguments(texts, columns, metrics)), columns, metrics


def call_async(function, texts=TEXTS, exclude=False):
    async def coroutine(**kwargs):
        await asyncio.sleep(1000 if function is FAILING["hangs"][0] and BAD in kwargs["completions"] else 0)
        return function(**kwargs)

    columns, metrics = {}, {}
    guarded = AsyncGuardedReward(coroutine, "mine", exclude=exclude, timeout=1.0)
    return asyncio.run(guarded(**arguments(texts, columns, metrics))), columns, metrics


CASES = [(call, kind) for kind in FAILING] + [
    (call_async, kind) for kind in FAILING if kind not in ("swallows", "backtracks")
]


@pytest.mark.parametrize(("call", "kind"), CASES)
def test_a_failure_names_the_function_and_the_completion(call, kind):
    function, problem = FAILING[kind]
    with pytest.raises(RewardError, match=rf"'mine' failed on completion 2 of 4: .*{problem}.*Prompt: 'p2' .*'{BAD}'"):
        call(function)


@pytest.mark.parametrize(("call", "kind"), CASES)
@pytest.mark.slow
def test_a_failure_excludes_the_completion(call, kind):
    rewards, columns, metrics = call(FAILING[kind][0], exclude=True)
    assert rewards == [1.0, 3.0, INF, 2.0]  # infinity until it is gathered
    if kind in ("raises", "hangs", "swallows", "backtracks"):  # found one by one; what failing calls logged is gone
        assert columns == COLUMNS
        assert metrics == {"scored": [1.0, 1.0, 1.0]}
    elif kind not in ("nothing", "mapping", "shorter"):
        assert columns == {"text": TEXTS}
        assert metrics == {"scored": [4.0]}


def test_numbers_of_any_kind():
    numbers = [True, numpy.float32(2.0), Decimal("0.5"), torch.tensor(3), 3.4e38, -1e-50]
    guarded = GuardedReward(lambda **_: numbers, "mine", exclude=False, timeout=1.0)
    assert guarded(**arguments(["a"] * 6, {}, {})) == [1.0, 2.0, 0.5, 3.0, 3.4e38, -1e-50]


@pytest.mark.parametrize("call", [call, call_async])
def test_a_function_that_works_is_called_once(call):
    rewards, columns, metrics = call(by_text(lambda _: None))
    assert rewards == [1.0, 3.0, None, 2.0]
    assert columns == {"text": TEXTS}
    assert metrics == {"scored": [4.0]}


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_function_that_fails_on_everything_is_an_error(kind):
    with pytest.raises(RewardError, match=r"'mine' failed on every completion: "):
        call(FAILING[kind][0], texts=[BAD] * 3, exclude=True)


def test_a_message_of_several_lines_becomes_one():
    def reward(**kwargs):
        raise ValueError("one\n  two")

    with pytest.raises(RewardError, match=r"completion 0 of 4: ValueError: one two\. Prompt") as error:
        call(reward)
    assert str(error.value.__cause__) == "one\n  two"
    assert "together" not in str(error.value)  # the same


def test_a_command_ends_with_the_functions_name(capsys):
    def reward(completions, **kwargs):
        return length_reward(completions) if len(completions) == 1 else [1] + completions[99]

    for function, frames in ((reward, 1), (lambda **_: 3, 0)):
        with pytest.raises(SystemExit) as exit_, reported("trl-credit x"):
            call(function)
        assert exit_.value.code == 1
        *above, last = capsys.readouterr().err.splitlines()
        assert last.startswith("trl-credit x: error: The reward function 'mine' failed on")
        assert sum(" File " in line for line in above) == frames
    with pytest.raises(RuntimeError, match="other"), reported("trl-credit x"):
        raise RuntimeError("other")
    assert not capsys.readouterr().err


def test_a_function_that_fails_on_the_batch_only():
    def reward(completions, **kwargs):
        return [1.0] * min(len(completions), 2)

    with pytest.raises(
        RewardError, match=r"failed on 4 completions together, .* it returned 2 rewards for 4 completions"
    ):
        call(reward)
    with pytest.raises(RewardError, match=r"but not on any single one"):
        call(reward, exclude=True)


def test_one_prompt_on_which_everything_fails_is_excluded():
    """It may be the prompt's fault: a round of dynamic sampling has one, and so may a batch of an evaluation."""
    columns, metrics = {}, {}
    guarded = GuardedReward(by_text(raises), "mine", exclude=True, timeout=1.0)
    arguments_ = arguments([BAD] * 4, columns, metrics) | {"prompts": ["p"] * 4}
    assert guarded(**arguments_) == [INF] * 4


@pytest.mark.slow
def test_judges_that_work_side_by_side():
    """The one that hangs is named, though each has less time alone than all together."""

    async def judge(completions, **kwargs):
        await asyncio.gather(*(asyncio.sleep(1000 if BAD in text else 0.05) for text in completions))
        return [1.0] * len(completions)

    guarded = AsyncGuardedReward(judge, "mine", exclude=False, timeout=3.0)
    with pytest.raises(RewardError, match=r"failed on completion 5 of 8: TimeoutError"):
        asyncio.run(guarded(**arguments(["a"] * 5 + [BAD, "b", "c"], {}, {})))


def test_a_callable_object_keeps_its_own_attributes():
    class Reward:
        def __init__(self):
            self._steps = self.name = self.function = self.timeout = 0

        def __call__(self, completions, answer=None, **kwargs):
            self._steps += 1
            return [1.0] * len(completions)

    reward = Reward()
    assert call(reward)[0] == [1.0] * 4
    assert reward._steps == 1
    assert "answer" in inspect.signature(GuardedReward(reward, "mine", exclude=False, timeout=1.0)).parameters


def test_the_signals_that_a_function_uses_stay_its_own():
    with time_limit(0.2):
        signal.alarm(0)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(TimeoutError), time_limit(0.1):
        time.sleep(5)
    assert signal.getsignal(signal.SIGVTALRM) is before
    time.sleep(0.3)  # the first timer is gone


def test_a_time_limit_that_is_hardly_one():
    """The signal may come at any moment, also when all is over."""
    outcomes = collections.Counter()
    for i in range(300):
        try:
            with time_limit(10 ** -(3 + i % 5)):
                sum(range(2000))
            outcomes["in time"] += 1
        except TimeoutError:
            outcomes["late"] += 1
    assert sum(outcomes.values()) == 300
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_threads_that_work_in_parallel_have_their_time():
    """The kernel counts the time of all of them."""

    def work():
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            zlib.compress(os.urandom(1 << 20))  # outside the interpreter's lock

    with time_limit(60.0):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_code_that_does_not_return_to_python_ends_the_process():
    """And looks for no signals: the process ends, and says where it was."""
    script = """
        import collections, faulthandler, itertools
        from trl_credit.rewards import guard
        later = faulthandler.dump_traceback_later
        faulthandler.dump_traceback_later = lambda seconds, **kwargs: later(seconds - 29, **kwargs)

        def stuck_reward(completions, **kwargs):
            collections.deque(itertools.repeat(None), maxlen=0)

        function = guard.GuardedReward(stuck_reward, "stuck_reward", exclude=False, timeout=0.5)
        function(prompts=["p"], completions=["a" * 64 + "b"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in stuck_reward" in done.stderr


def test_a_function_that_trl_cannot_call_is_refused_before_the_model_is_loaded(tmp_path):
    def narrow(prompts, completions):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"'narrow' does not accept completion_ids, log_extra, .* Add `\*\*kwargs`"):
        make("no/such/model", tmp_path, [letter_reward, functools.partial(narrow)])


@pytest.mark.parametrize("name", ["completions", "prompts"])
@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
def test_a_column_of_the_name_of_an_argument_is_refused_before_the_model_is_loaded(name, where, tmp_path):
    data = {"train_dataset": prompts(), "eval_dataset": {"a": prompts()}}
    column = prompts().add_column(name, ["x"] * len(prompts()))
    data[where] = column if where == "train_dataset" else {"a": column}
    with pytest.raises(
        ValueError, match=rf"The dataset has a column '{name}', but TRL passes an argument with that name"
    ):
        CreditGRPOTrainer(model="no/such/model", reward_funcs=letter_reward, args=config(tmp_path), **data)


def test_an_async_function_that_ends_the_process_does_not_end_the_loop():
    """TRL waits for the loop without a limit."""

    async def leaves(completions, **kwargs):
        sys.exit(0)

    guarded = AsyncGuardedReward(leaves, "leaves", exclude=False, timeout=5.0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        future = asyncio.run_coroutine_threadsafe(guarded(prompts=["a"], completions=["b"]), loop)
        with pytest.raises(RewardError, match=r"it called sys.exit\(0\)"):
            future.result(timeout=20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


@pytest.mark.parametrize("timeout", [30.0, 0, None])
def test_an_async_functions_own_timeout_is_not_the_guards(timeout):
    async def reward(completions, **kwargs):
        raise TimeoutError("judge server: connect timed out")

    guarded = AsyncGuardedReward(reward, "reward", exclude=False, timeout=timeout)
    with pytest.raises(RewardError, match="judge server: connect timed out"):
        asyncio.run(guarded(prompts=["a"], completions=["b"]))


def test_functions_of_one_name_get_names_of_their_own(tmp_path, tiny_model, caplog):
    assert distinct_names(["a", "b"]) == ["a", "b"]
    assert not caplog.records
    assert distinct_names(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]
    assert "Another reward function is named 'a': this one is logged as 'a_3'" in caplog.text

    def first(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    def second(completions, **kwargs):
        return [float(i < 2) for i in range(len(completions))]

    second.__name__ = first.__name__
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=[first, second],
        args=config(tmp_path, credit="otb", max_steps=1, reward_weights=[1.0, 2.0]),
        train_dataset=prompts(),
    )
    seen = []
    own = trainer._rollout_rewards
    trainer._rollout_rewards = lambda rows: seen.append(own(rows)) or seen[-1]
    trainer.train()
    count = len(seen[0])
    assert seen[0].tolist() == [i % 2 + 2.0 * (i < 2) for i in range(count)]
    chosen = config(tmp_path, dynamic_sampling=True, dynamic_sampling_reward="first_2")
    CreditGRPOTrainer(model=tiny_model, reward_funcs=[first, second], args=chosen, train_dataset=prompts())
    logged = trainer.state.log_history[0]
    assert logged["rewards/first/mean"] == 0.5
    assert logged["rewards/first_2/mean"] == pytest.approx(2 / count)


# Rewards of turns


def guarded(rewards):
    texts = [str(i) for i in range(4)]

    def reward(completions, **kwargs):
        found = [rewards[int(text)] for text in completions]
        if any(isinstance(value, Exception) for value in found):
            raise ValueError("out of order")
        return found

    guard = GuardedReward(reward, "reward", exclude=True, timeout=None)
    return guard, guard(prompts=["p"] * 4, completions=texts, completion_ids=[[1]] * 4)


def test_a_list_is_one_reward_for_each_turn():
    guard, rewards = guarded([[1.0, 2.0], 3.0, [None, 0.5], [None, None]])
    assert rewards == [3.0, 3.0, 0.5, None]
    assert str(guard.turns) == "[[1.0, 2.0], None, [nan, 0.5], [nan, nan]]"


def test_a_bad_reward_of_a_turn_excludes_its_completion():
    guard, rewards = guarded([[1.0, "2.0"], [], [1.0, float("nan")], [1.0]])
    assert rewards == [float("inf")] * 3 + [1.0]
    assert guard.turns == [None, None, None, [1.0]]


def test_rewards_of_turns_after_a_call_that_failed_as_a_whole():
    guard, rewards = guarded([[1.0, 2.0], RuntimeError(), 3.0, [4.0]])
    assert rewards == [3.0, float("inf"), 3.0, 4.0]
    assert guard.turns == [[1.0, 2.0], None, None, [4.0]]
