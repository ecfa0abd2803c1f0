"""Math verification in worker processes that can be killed, so that no answer can stall or crash the training."""

import contextlib
import functools
import json
import logging
import math
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


logger = logging.getLogger(__name__)

_SCRIPT = str(Path(__file__).with_name("_worker.py"))
# Seconds for a worker to import math-verify. Takes less than 1, except on a cold network file system
_START_LIMIT = 120.0
_START_ATTEMPTS = 3
_MAX_BAD_SOLUTIONS = 4096

_verifiers: weakref.WeakSet["MathVerifier"] = weakref.WeakSet()


@dataclass(frozen=True)
class Verdict:
    """Verdict on one completion.

    Args:
        reward: Value of the reward function. `None` if the solution cannot be parsed or verified against.
        gold_parsed: The parsed solution, as TRL logs it (at most 10,000 characters).
        answer_parsed: The parsed answer, likewise. If verification failed, the outcome in brackets.
        outcome: `timed_out` (the verifier's time limit, or one of math-verify's own, after which it compares only the
            expressions' texts), `crashed` (out of memory, any other end of the worker, or an exception), else `ok`.
    """

    reward: float | None
    gold_parsed: str
    answer_parsed: str
    outcome: Literal["ok", "timed_out", "crashed"] = "ok"


class _Unanswered(Exception):  # noqa: N818
    """A worker ended without replying."""

    def __init__(self, outcome: Literal["timed_out", "crashed"], reason: str = ""):
        super().__init__(reason)
        self.outcome = outcome


def _worker_environment() -> dict[str, str]:
    """The environment of a worker, which finds the packages that this process finds."""
    found = dict(os.environ)
    found.pop("PYTHONSAFEPATH", None)  # which hides its own folder
    found["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if isinstance(path, str) and path)
    found["PYTHONHASHSEED"] = "0"  # it may affect sympy's order of terms, and so the verdict
    return found


class _Worker:
    """One worker process, started on demand and restarted after it has ended."""

    def __init__(self, arguments: list[str]):
        self.arguments = arguments
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the process if there is none, and waits until it is ready.

        Raises:
            RuntimeError: It exits (missing packages) or is not ready in time. The message has the end of its output.
        """
        if self.process is not None:
            return
        for _ in range(_START_ATTEMPTS):
            self.end()
            with tempfile.TemporaryFile() as errors:
                self.process = subprocess.Popen(
                    [sys.executable, _SCRIPT, *self.arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                    env=_worker_environment(),
                )
                os.set_blocking(self.process.stdin.fileno(), False)
                try:
                    self._read_line(time.monotonic() + _START_LIMIT)
                    return
                except _Unanswered as unanswered:
                    self.end()
                    errors.seek(0)
                    tail = errors.read()[-2000:].decode(errors="replace").strip()
                    failure = f"Math verification: no worker can be started ({unanswered}). Its last output:\n{tail}"
        raise RuntimeError(failure)

    def ask(self, request: bytes, deadline: float) -> dict[str, Any]:
        """Sends one request (a line of JSON) and returns the reply.

        Raises:
            _Unanswered: The deadline (of `time.monotonic`) passed, or the worker ended.
        """
        try:
            self._write(request, deadline)
            reply = json.loads(self._read_line(deadline))
        except BaseException:
            self.end()
            raise
        if reply["last"]:
            self.end()
        return reply

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self.process.stdin, select.POLLOUT, deadline)
            try:
                view = view[self.process.stdin.write(view) or 0 :]
            except BrokenPipeError:
                raise self._crashed() from None

    def _read_line(self, deadline: float) -> bytes:
        parts = []
        while not parts or not parts[-1].endswith(b"\n"):
            self._wait(self.process.stdout, select.POLLIN, deadline)
            parts.append(self.process.stdout.read(1 << 20))
            if not parts[-1]:
                raise self._crashed()
        return b"".join(parts)

    def _crashed(self) -> _Unanswered:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)
        return _Unanswered("crashed", f"exit status {self.process.returncode}")

    @staticmethod
    def _wait(pipe, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
            raise _Unanswered("timed_out", "time limit")

    def end(self) -> None:
        """Kills the process if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.forget()

    def forget(self) -> None:
        """Closes the pipes without ending the process, for example because a parent process owns it."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.returncode = self.process.returncode or 0  # so that Popen does not wait for it again
            self.process = None


class MathVerifier:
    """A pool of processes that run TRL's math rewards, which call math-verify. Each judges one completion at a time.

    Workers start on demand, from any thread. They are killed when the verifier is closed or garbage-collected or the
    program ends, and exit by themselves if the program is killed. After `os.fork`, the child starts its own. POSIX
    only; the memory limit holds only if the system enforces RLIMIT_AS (Linux).

    Except for `judged`, verdicts are those of TRL's function. Differences from calling it in the training process:

    1. An answer that takes more than `time_limit` or `memory_limit_gib` is not correct.
    2. Nor is an answer on which TRL's function raises an exception, which would stop the training.
    3. If the solution itself causes this, the reward is `None`, as TRL's is for a solution that does not parse. This
       costs twice the time limit, once per solution.
    4. The texts that TRL logs are cut to 10,000 characters.
    5. The workers' hash seed is fixed, so that they agree. Directly, sympy's order of terms may vary from run to run.

    If one of math-verify's own time limits is hit, its verdict stands (equal texts are still equal) and is counted.

    Args:
        workers: Number of processes. By default, CPU cores per process of the node (LOCAL_WORLD_SIZE), at most 4.
        time_limit: Seconds of wall time per completion, without startup. math-verify's own limits, where they work, are
            10 seconds for parsing and 5 for each comparison.
        memory_limit_gib: Address space of a worker in GiB. It starts with 0.06.
        max_tasks: Completions after which a worker is replaced, because sympy's caches grow.

    Raises:
        ValueError: An argument is not positive.
    """

    def __init__(
        self,
        workers: int | None = None,
        time_limit: float = 10.0,
        memory_limit_gib: float = 1.0,
        max_tasks: int = 10_000,
    ):
        if workers is None:
            workers = max(1, min(4, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        self.workers, self.time_limit, self.memory_limit_gib = workers, time_limit, memory_limit_gib
        self.max_tasks = max_tasks
        for name in ("workers", "time_limit", "memory_limit_gib", "max_tasks"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)!r}.")
        arguments = [str(time_limit), str(int(memory_limit_gib * 2**30)), str(max_tasks)]
        self._workers = [_Worker(arguments) for _ in range(workers)]
        self._make_threads()
        self._finalizer = weakref.finalize(self, _end_all, self._workers)
        _verifiers.add(self)

    def _make_threads(self) -> None:
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="math-verifier")
        self._idle = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._bad_solutions: dict[str, Verdict] = {}  # so that each costs its time limit only once

    def verify(
        self,
        completions: Sequence[str],
        solutions: Sequence[str],
        function: Literal["accuracy", "reasoning_accuracy", "cosine_scaled", "judged"] = "accuracy",
        lengths: Sequence[int] | None = None,
        **arguments,
    ) -> list[Verdict]:
        """Judges completions. Returns when all are judged.

        Args:
            completions: (N,) texts.
            solutions: (N,) solutions.
            function: TRL's reward to call, or "judged" for the comparison of this package's judge.
            lengths: (N,) tokens of each completion, for `cosine_scaled`.
            **arguments: Arguments of TRL's function (`reasoning_delimiters`) or factory (such as `max_len`).

        Raises:
            ValueError: The sequences differ in length.
            RuntimeError: Workers cannot be started.
        """
        lengths = [0] * len(completions) if lengths is None else lengths
        requests = [
            {"function": function, "arguments": arguments, "completion": text, "solution": solution, "length": length}
            for text, solution, length in zip(completions, solutions, lengths, strict=True)
        ]
        return list(self._executor.map(self._judge, requests))

    def close(self) -> None:
        """Ends the workers. Later calls restart them."""
        self._executor.shutdown()
        _end_all(self._workers)
        self._make_threads()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _judge(self, request: dict[str, Any]) -> Verdict:
        """Judges one completion. If it cannot be judged, it counts as empty, unless the solution is the cause."""
        solution = request["solution"]
        key = json.dumps(solution)
        if key in self._bad_solutions:
            return self._bad_solutions[key]
        try:
            return self._ask(request)
        except _Unanswered as unanswered:
            outcome = unanswered.outcome
        try:
            # Any sound solution can be parsed and compared with a number: if not, the solution is the cause
            function = "judged" if request["function"] == "judged" else "accuracy"
            alone = self._ask({**request, "function": function, "arguments": {}, "completion": r"\boxed{0}"})
            empty = self._ask({**request, "completion": ""})
            return Verdict(empty.reward, alone.gold_parsed, f"[{outcome}]", outcome)
        except _Unanswered:
            logger.warning(
                "Completions of %.200r are not scored: verification %s.", solution, outcome.replace("_", " ")
            )
            verdict = Verdict(None, f"[{outcome}]", "[skipped]", outcome)
            if len(self._bad_solutions) < _MAX_BAD_SOLUTIONS:
                self._bad_solutions[key] = verdict
            return verdict

    def _ask(self, request: dict[str, Any]) -> Verdict:
        """Asks a worker for its verdict.

        Raises:
            _Unanswered: No worker replied.
        """
        line = json.dumps(request).encode() + b"\n"
        worker = self._idle.get()
        try:
            worker.start()
            deadline = time.monotonic() + self.time_limit
            try:
                reply = worker.ask(line, deadline)
            except _Unanswered as unanswered:
                if unanswered.outcome == "timed_out":
                    raise
                # The system may have killed the worker through no fault of the answer: retry within the remaining time
                remaining = deadline - time.monotonic()
                worker.start()
                reply = worker.ask(line, time.monotonic() + remaining)
        finally:
            self._idle.put(worker)
        if "error" in reply:
            raise _Unanswered("crashed", reply["error"])
        outcome = "timed_out" if reply["timed_out"] else "ok"
        return Verdict(reply["reward"], reply["gold_parsed"], reply["answer_parsed"], outcome)

    def _after_fork(self) -> None:
        """Runs in the child. The workers belong to the parent, and threads do not survive a fork."""
        for worker in self._workers:
            worker.forget()
        self._make_threads()


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _after_fork() -> None:
    for verifier in list(_verifiers):
        verifier._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def default_verifier() -> MathVerifier:
    """The verifier shared by all rewards of this process."""
    return MathVerifier()
