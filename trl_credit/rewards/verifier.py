"""Math verification in worker processes that can be killed, so that no answer can stop or crash the training."""

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
# Seconds until a worker has imported math-verify: below 1, but for a cold network file system
_START_LIMIT = 120.0
_START_ATTEMPTS = 3
_MAX_BAD_SOLUTIONS = 4096

_verifiers: weakref.WeakSet["MathVerifier"] = weakref.WeakSet()


@dataclass(frozen=True)
class Verdict:
    """The outcome of one completion.

    Args:
        reward: The reward function's value; `None` where the solution cannot be parsed or verified against.
        gold_parsed: The parsed solution, as TRL logs it (at most 10,000 characters).
        answer_parsed: The parsed answer, likewise; the outcome in brackets where verification failed.
        outcome: `timed_out` (the verifier's cap, or a guard of math-verify's own, which then goes by the expressions'
            texts alone), `crashed` (out of memory, any other end of the worker, or an exception), else `ok`.
    """

    reward: float | None
    gold_parsed: str
    answer_parsed: str
    outcome: Literal["ok", "timed_out", "crashed"] = "ok"


class _Unanswered(Exception):  # noqa: N818
    """A worker gave no reply, and has ended."""

    def __init__(self, outcome: Literal["timed_out", "crashed"], reason: str = ""):
        super().__init__(reason)
        self.outcome = outcome


class _Worker:
    """One worker process, started when it is needed and again after it has ended."""

    def __init__(self, arguments: list[str]):
        self.arguments = arguments
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the process, if there is none, and waits until it is ready.

        Raises:
            RuntimeError: It ends before (missing packages), or is not ready in time; with the end of its output.
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
                    # sympy's order of terms may depend on it, and so may a verdict
                    env={**os.environ, "PYTHONHASHSEED": "0"},
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
        """The reply to one request (a line of JSON).

        Raises:
            _Unanswered: There is none by the deadline (of `time.monotonic`), or the worker has ended.
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
        """Kills the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.forget()

    def forget(self) -> None:
        """Closes the pipes, and leaves the process to itself or to the parent that started it."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.returncode = self.process.returncode or 0  # so that Popen does not look for it again
            self.process = None


class MathVerifier:
    """A pool of processes that run TRL's math rewards, which call math-verify: one completion at a time in each.

    Workers are started when they are first needed, from any thread, and killed when the verifier is closed or collected
    or the program ends; they end by themselves if the program is killed. After `os.fork` the child starts its own.
    POSIX only, and the memory cap holds where the system enforces RLIMIT_AS (Linux).

    A verdict is the called TRL function's own, but for `judged`. Differences from calling it in the training process:

    1. An answer that takes longer than `time_limit`, or more memory than `memory_limit_gib`, is not correct.
    2. Nor is one on which TRL's function raises an exception, which would stop the training.
    3. If it is the solution that cannot be verified against, in either way, the reward is `None`, as TRL's is where it does
       not parse; this costs the time limit twice, once.
    4. What TRL logs of an answer is cut to 10,000 characters.
    5. The workers' hash seed is fixed, so that they agree; directly, sympy's order of terms may vary from run to run.

    Where one of math-verify's own time guards goes off, its verdict stands (equal texts are still equal) and is counted.

    Args:
        workers: Number of processes; by default the CPU cores per process of the node (LOCAL_WORLD_SIZE), at most 4.
        time_limit: Seconds (of wall time) per completion, starting up not counted. math-verify's own guards go off after
            10 seconds of parsing and 5 of each comparison where they can.
        memory_limit_gib: Address space of a worker; 0.06 is used at its start.
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
        self._bad_solutions: dict[str, Verdict] = {}  # so that each costs its time once

    def verify(
        self,
        completions: Sequence[str],
        solutions: Sequence[str],
        function: Literal["accuracy", "reasoning_accuracy", "cosine_scaled", "judged"] = "accuracy",
        lengths: Sequence[int] | None = None,
        **arguments,
    ) -> list[Verdict]:
        """Judges completions; returns when all of them are judged.

        Args:
            completions: (N,) the completions' texts.
            solutions: (N,) the solutions.
            function: Which of TRL's rewards to call; "judged" is the comparison of the package's own judge.
            lengths: (N,) tokens of each completion, for `cosine_scaled`.
            **arguments: Of TRL's function (`reasoning_delimiters`), or of the factory (`max_len` and so on).

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
        """Ends the workers; later calls start them again."""
        self._executor.shutdown()
        _end_all(self._workers)
        self._make_threads()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _judge(self, request: dict[str, Any]) -> Verdict:
        """One verdict. Where there is none, the completion counts as an empty one, unless the solution is the cause."""
        solution = request["solution"]
        key = json.dumps(solution)
        if key in self._bad_solutions:
            return self._bad_solutions[key]
        try:
            return self._ask(request)
        except _Unanswered as unanswered:
            outcome = unanswered.outcome
        try:
            # Any solution can be parsed and compared with a number
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
        """A worker's verdict.

        Raises:
            _Unanswered: There is none.
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
                # The system may have killed the worker for no fault of the answer: again, within the same time
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
        """In the child: the workers answer to the parent, and the threads are not there."""
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
    """The verifier that the rewards of this process share."""
    return MathVerifier()
