"""Worker of [`MathVerifier`]: runs TRL's math rewards, or the judge's own comparison, on one completion at a time. It
ends when its standard input does.

It is started by path and not by multiprocessing, which would import the training script again as the worker's
`__main__`. Nor does it import `trl_credit`, and with it torch: `equality` is found next to this file. Requests and
replies are JSON, one per line.
"""

import contextlib
import functools
import json
import logging
import os
import resource
import signal
import sys
import time
from typing import Any

from equality import compare
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward


FACTORIES = {
    "accuracy": functools.partial(functools.partial, accuracy_reward),
    "reasoning_accuracy": functools.partial(functools.partial, reasoning_accuracy_reward),
    "cosine_scaled": get_cosine_scaled_reward,
}
# Limit for the texts in TRL's completions table: a hostile answer can be parsed into megabytes
MAX_CHARACTERS = 10_000


class _Guard(logging.Handler):
    """Swallows math-verify's logs, and records whether one of its own time limits (SIGALRM) was hit."""

    fired = False

    def emit(self, record: logging.LogRecord) -> None:
        self.fired = self.fired or str(record.msg).startswith("Timeout during")


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Computes the reward of one completion, and the parsed texts that TRL logs."""
    if request["function"] == "judged":
        return judged(request["completion"], request["solution"])
    columns = {}
    reward = FACTORIES[request["function"]](**request["arguments"])
    rewards = reward(
        completions=[[{"role": "assistant", "content": request["completion"]}]],
        solution=[request["solution"]],
        completion_ids=[[0] * request["length"]],
        log_extra=lambda name, values: columns.update({name: values[0]}),
    )
    texts = {name: columns.get(name, "")[:MAX_CHARACTERS] for name in ("gold_parsed", "answer_parsed")}
    return {"reward": rewards[0], **texts}


def judged(completion: str, solution: str) -> dict[str, Any]:
    """The same for the judge's own comparison."""
    found = compare.verdict(completion, solution)
    if found.correct is None:
        return {"reward": None, "gold_parsed": "[unparseable]", "answer_parsed": "[skipped]"}
    gold, answer = (compare.shown(text)[:MAX_CHARACTERS] for text in (found.gold, found.answer))
    return {"reward": float(found.correct), "gold_parsed": gold, "answer_parsed": answer}


def lower_limit(kind: int, value: int) -> None:
    """Lowers a soft limit, if the system allows it (macOS has RLIMIT_AS but refuses to set it)."""
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def address_space() -> int:
    """Size in bytes, as counted for RLIMIT_AS. 0 if the system does not report it (nor enforce RLIMIT_AS)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def main(time_limit: float, memory_limit: int, max_tasks: int) -> None:
    # Ctrl-C reaches the workers too, but the trainer ends them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print, but only replies may reach the pipe
    replies = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    guard = _Guard()
    logging.getLogger("math_verify").addHandler(guard)
    logging.getLogger("math_verify").propagate = False
    lower_limit(resource.RLIMIT_CORE, 0)
    lower_limit(resource.RLIMIT_AS, memory_limit)
    print("ready", file=replies, flush=True)
    os.dup2(silence, 2)
    for task, line in enumerate(sys.stdin.buffer, start=1):
        # Ends a worker that is stuck in a C loop if no trainer is left to kill it
        lower_limit(resource.RLIMIT_CPU, int(time.process_time() + time_limit) + 2)
        guard.fired = False
        try:
            reply = judge(json.loads(line))
            reply["timed_out"] = guard.fired
        except BaseException as error:  # math-verify's TimeoutException is not an Exception
            reply = {"error": type(error).__name__}
        # An interrupted or bloated process must not judge the next answer
        reply["last"] = "error" in reply or guard.fired or task >= max_tasks or address_space() > memory_limit / 2
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
