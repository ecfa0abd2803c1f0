"""`evaluate`: draws samples, judges them and writes numbers and a report. Interrupted runs continue in their folder."""

import contextlib
import datetime
import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .._util.files import RunFolderError, read_lines, to_line, write_atomically
from .._util.text import redact
from .._version import __version__
from ..rewards.several import judge_any
from .backends.base import Backend, BackendError, Generation, Request, SamplingSettings, process_state
from .config import EvalConfig
from .presets import PRESETS
from .results import summarize_overall, summarize_task, versions
from .store import RunFolder, is_sample, read_results
from .tasks import Problem, Task, load_tasks


logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]  # samples done, of how many, tokens


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal. Finished samples are on disk.

    Args:
        signal_number: SIGINT or SIGTERM.
        samples: Samples that this process had made.
    """

    def __init__(self, signal_number: int, samples: int):
        super().__init__(f"Stopped. {samples} samples are saved. Run the same command to continue.")
        self.exit_code = 128 + signal_number


def sample_seed(seed: int, task: str, problem: int, index: int) -> int:
    """Seed of one sample, below 2**31: a hash of the run's seed, the task's name and the problem and sample numbers."""
    digest = hashlib.sha256(json.dumps([seed, task, problem, index]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def make_requests(tasks: Sequence[Task], n: int, seed: int) -> list[Request]:
    """One request per sample of the run, ordered by task, problem and index."""
    return [
        Request(task.name, number, index, sample_seed(seed, task.name, number, index), problem.prompt)
        for task in tasks
        for number, problem in enumerate(task.problems)
        for index in range(n)
    ]


def make_backend(config: EvalConfig) -> Backend:
    """Creates the backend that the settings ask for, without loading weights.

    Raises:
        ValueError: The model or a package is missing, or a setting does not apply to this backend.
        BackendError: The server does not answer.
    """
    if not config.model:
        raise ValueError("`model` is not set.")
    kwargs = config.template_kwargs()
    kind = config.backend
    if kind == "auto":
        kind = "server" if config.base_url else "vllm" if _vllm_usable() else "transformers"
    for name in _UNUSED[kind]:
        if getattr(config, name) != getattr(EvalConfig, name):
            raise ValueError(
                f"`{name}` has no effect with the backend {kind!r} (`backend: {config.backend}`): leave it out."
            )
    if kind == "server":
        from .backends.server import ServerBackend, ServerSettings

        settings = ServerSettings(
            base_url=config.base_url,
            model=config.model,
            concurrency=config.concurrency,
            max_retries=config.max_retries,
            request_timeout=config.request_timeout,
        )
        return ServerBackend(settings, chat_template_kwargs=kwargs)
    from ..model_files import LocalModel

    files = LocalModel.find(config.model, config.revision, config.trust_remote_code)
    if kind == "vllm":
        from .backends.vllm import VLLMBackend

        return VLLMBackend(files, config.dtype, kwargs, config.vllm_kwargs)
    from .backends.transformers import TransformersBackend

    return TransformersBackend(files, config.dtype, config.attn_implementation, config.batch_size, kwargs)


_SERVER = ("concurrency", "max_retries", "request_timeout")
_LOCAL = ("dtype", "revision", "trust_remote_code")
_UNUSED = {
    "server": (*_LOCAL, "attn_implementation", "batch_size", "vllm_kwargs"),
    "vllm": (*_SERVER, "attn_implementation", "batch_size"),
    "transformers": (*_SERVER, "vllm_kwargs"),
}


def _vllm_usable() -> bool:
    from .._trl import is_vllm_available

    return torch.cuda.is_available() and is_vllm_available()


def evaluate(
    config: EvalConfig,
    backend: Backend | None = None,
    tasks: Sequence[Task] | None = None,
    progress: Progress | None = None,
    in_training: bool = False,
) -> dict[str, Any]:
    """Evaluates a model. Continues an earlier run with the same settings and folder if it was stopped.

    Args:
        config: The settings.
        backend: Used instead of the backend that the settings ask for.
        tasks: Used instead of the tasks that the settings ask for.
        progress: Called in the main process after each sample that it makes, with the counts of its own share.
        in_training: Leave signals to the trainer, and replace a run of other weights instead of raising.

    Returns:
        The contents of results.json, in every process.

    Raises:
        ValueError: Settings or data cannot work.
        RunFolderError: The folder holds another run, is in use, or cannot be written.
        BackendError: The backend cannot continue.
        Interrupted: SIGINT or SIGTERM arrived. Finished samples are kept.
    """
    state = process_state()
    tasks = list(tasks) if tasks is not None else load_tasks(config)
    own_backend = backend is None
    backend = make_backend(config) if own_backend else backend
    requests = make_requests(tasks, config.n, config.seed)
    sampling = backend.prepare(requests, config.sampling())
    run = _Run(config, tasks, requests, sampling, run_identity(config, backend, tasks, sampling), backend.upgraded)
    folder = RunFolder(config.run_folder(), state.process_index)
    try:
        done = _on_main(state, lambda: run.open(folder, replace_other=in_training))
        folder.start()
        missing = [request for request in requests if request.key not in done]
        share = missing[state.process_index :: state.num_processes]
        shown = progress if state.is_main_process else None
        writer = _Writer(folder, len(share), shown)
        try:
            with contextlib.nullcontext() if in_training else _stoppable(writer):
                backend.generate(share, sampling, writer.emit)
        finally:
            if state.is_main_process:
                folder.add_notes(backend.notes())
        folder.close_file()
        state.wait_for_everyone()
        if state.num_processes > 1 and _on_main(state, lambda: len(folder.gather(requests)) < len(requests)):
            # The machines do not share a disk
            rows = gather_object(folder.own_rows())
            _on_main(state, lambda: folder.append(rows))
        results = _on_main(state, lambda: run.finish(folder, writer.session()))
    finally:
        folder.close()
        if own_backend:
            backend.close()
    return results


_ERRORS = {kind.__name__: kind for kind in (ValueError, RunFolderError, BackendError)}


def _on_main(state: PartialState, function: Callable[[], Any]) -> Any:
    """Calls the function in the main process and returns its value in every process. Every process raises its error."""
    value, error, told = None, None, None
    if state.is_main_process:
        try:
            value = function()
        except Exception as caught:  # of any kind, or the other processes would wait forever
            error, told = caught, (type(caught).__name__, str(caught))
    if state.num_processes > 1:
        value, told = broadcast_object_list([value, told])
    if error is not None:
        raise error
    if told is not None:
        name, text = told
        raise _ERRORS[name](text) if name in _ERRORS else RuntimeError(f"The main process: {name}: {text}")
    return value


def run_identity(
    config: EvalConfig, backend: Backend, tasks: Sequence[Task], sampling: SamplingSettings
) -> dict[str, Any]:
    """Everything that determines samples and verdicts. A continued run must match it."""
    return {
        "backend": {"name": backend.name, **redact(backend.identity())},
        "sampling": sampling.as_dict(),
        "chat_template_kwargs": config.template_kwargs(),
        "seed": config.seed,
        "n": config.n,
        "tasks": {task.name: task.identity() for task in tasks},
    }


class _Writer:
    """Writes this process's samples as they finish, and counts them."""

    def __init__(self, folder: RunFolder, total: int, progress: Progress | None):
        self.folder, self.total, self.progress = folder, total, progress
        self.samples = self.tokens = 0
        self.start = time.perf_counter()

    def emit(self, request: Request, generation: Generation) -> None:
        self.folder.add(request, generation)
        self.samples += 1
        self.tokens += generation.tokens or 0
        if self.progress is not None:
            self.progress(self.samples, self.total, self.tokens)

    def session(self) -> dict[str, Any]:
        """Work done since this call of `evaluate` started."""
        seconds = time.perf_counter() - self.start
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "seconds": seconds,
            "tokens_per_second": self.tokens / seconds if self.tokens else None,
        }


@contextlib.contextmanager
def _stoppable(writer: _Writer) -> Iterator[None]:
    """Makes SIGINT and SIGTERM raise `Interrupted` in the main thread, between two bytecode instructions."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame) -> None:
        raise Interrupted(number, writer.samples)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Run:
    """The main process's work before and after sampling."""

    config: EvalConfig
    tasks: Sequence[Task]
    requests: Sequence[Request]
    sampling: SamplingSettings
    identity: dict[str, Any]
    upgraded: Callable[[dict[str, Any]], dict[str, Any]]

    def open(self, folder: RunFolder, replace_other: bool) -> set[tuple]:
        """Locks and checks the folder, and returns the keys of the samples that it already has."""
        check_answers(self.tasks)
        folder.lock()
        folder.check(self.identity, self.config.extend, replace_other, self.upgraded)
        rows = (
            {
                "task": task.name,
                "problem": number,
                "question": problem.question,
                "prompt": problem.prompt,
                "answer": problem.answer,
                **({"answers": problem.answers} if problem.answers else {}),
            }
            for task in self.tasks
            for number, problem in enumerate(task.problems)
        )
        write_atomically(folder.path / "problems.jsonl", map(to_line, rows))
        done = set(folder.gather(self.requests))
        problems, name = sum(len(task.problems) for task in self.tasks), self.identity["backend"]["name"]
        logger.info(
            "%s with %s: %d problems, %d samples each, to %s",
            self.config.model,
            name,
            problems,
            self.config.n,
            folder.path,
        )
        if done:
            logger.info("%d of %d samples are there already.", len(done), len(self.requests))
            if name == "server":
                logger.info("They came from the model that was served as %r at that time.", self.config.model)
        if self.sampling.temperature == 0 and self.config.n > 1:
            logger.warning("At temperature 0 the %d samples of a problem are identical: use n = 1.", self.config.n)
        return done

    def finish(self, folder: RunFolder, session: dict[str, Any]) -> dict[str, Any]:
        """Judges the samples, and writes the results and the report."""
        config, tasks = self.config, self.tasks
        samples = folder.gather(self.requests)
        missing = sum(request.key not in samples for request in self.requests)
        if missing:
            raise BackendError(
                f"{missing} of {len(self.requests)} samples are missing. Run the same command to generate them."
            )
        rows = judge_samples([samples[request.key] for request in self.requests], tasks)
        folder.finish(rows)
        preset = PRESETS[config.preset]
        results = {
            "format": 1,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "trl_credit": __version__,
            "model": config.model,
            "settings": {
                "config": redact(asdict(config)),
                "preset": {"name": config.preset, "source": preset.source},
                "backend": self.identity["backend"]["name"],
                "sampling": self.sampling.as_dict(),
                "chat_template_kwargs": self.identity["chat_template_kwargs"],
                "notes": folder.notes(),
                "n": config.n,
                "seed": config.seed,
                "tasks": {
                    task.name: {
                        "source": task.source,
                        "first_prompt": task.problems[0].prompt,
                        "answer_pattern": task.answer_pattern,
                    }
                    for task in tasks
                },
            },
            "versions": versions(),
            "fingerprint": {
                "model": self.identity["backend"],
                "data": {task.name: task.sha256 for task in tasks},
                "run": hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest(),
            },
            **_numbers(rows, tasks, config.n),
            "session": session,
        }
        results = json.loads(json.dumps(results))
        _write_results(folder.path, results, rows, config.report)
        return results


def _numbers(rows: Sequence[dict[str, Any]], tasks: Sequence[Task], n: int) -> dict[str, Any]:
    start, by_task = 0, {}
    for task in tasks:
        end = start + len(task.problems) * n
        by_task[task.name] = summarize_task(task, rows[start:end], n)
        start = end
    return {"tasks": by_task, "overall": summarize_overall(by_task, rows)}


def judge_samples(rows: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Returns the samples with their verdicts, in the same order."""
    judged: list[dict[str, Any]] = [{}] * len(rows)
    for task in tasks:
        mine = [index for index, row in enumerate(rows) if row["task"] == task.name]
        texts = [rows[index]["text"] for index in mine]
        solutions = [task.problems[rows[index]["problem"]].gold for index in mine]
        verdicts = judge_any(texts, solutions, answer_pattern=task.answer_pattern)
        for index, verdict in zip(mine, verdicts, strict=True):
            judged[index] = {**rows[index], **asdict(verdict)}
    return judged


def check_answers(tasks: Sequence[Task]) -> None:
    """Warns of answers that cannot be verified against. Their problems are left out of the numbers.

    Raises:
        ValueError: No answer of a task can be verified against.
    """
    for task in tasks:
        answers = [problem.gold for problem in task.problems]
        verdicts = judge_any(["\\boxed{0}"] * len(answers), answers)
        bad = [answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict.correct is None]
        if len(bad) == len(answers):
            raise ValueError(f"`tasks`: no answer of {task.name!r} can be verified against, for example {bad[0]!r}.")
        if bad:
            logger.warning(
                "%s: %d of %d answers cannot be verified against, for example %r: their problems are left out.",
                task.name,
                len(bad),
                len(answers),
                bad[0],
            )


def judge_again(path: Path) -> dict[str, Any]:
    """Judges a finished run's samples again with the installed verifier, and rewrites its results and report.

    Raises:
        RunFolderError: The folder holds no finished run, or is in use.
    """
    folder = RunFolder(path)
    read_results(path)  # first, so as not to leave a lock in a folder that is no run
    folder.lock()
    try:
        results = read_results(path)
        problems, samples = read_lines(path / "problems.jsonl"), read_lines(folder.samples_path)
        settings = results["settings"]
        tasks = [
            Task(
                name,
                task["source"],
                tuple(
                    Problem(row["question"], row["prompt"], row["answer"], tuple(row.get("answers", ())))
                    for row in problems
                    if row.get("task") == name and {"question", "prompt", "answer"} <= row.keys()
                ),
                task["answer_pattern"],
            )
            for name, task in settings["tasks"].items()
        ]
        keys = [request.key for request in make_requests(tasks, settings["n"], settings["seed"])]
        found = {(row["task"], row["problem"], row["index"]): row for row in samples if is_sample(row)}
        if len(samples) != len(keys) or set(found) != set(keys) or not all(task.problems for task in tasks):
            raise RunFolderError(
                f"{path} does not contain the {len(keys)} samples of its results: run its command again."
            )
        data = results["fingerprint"].get("data", {})
        if changed := [task.name for task in tasks if data.get(task.name, task.sha256) != task.sha256]:
            raise RunFolderError(
                f"{path / 'problems.jsonl'} has been changed: the problems of {', '.join(changed)} are not those of the "
                "results. Run its command again."
            )
        rows = judge_samples([found[key] for key in keys], tasks)
        folder.finish(rows)
        results = {**results, "trl_credit": __version__, "versions": versions(), **_numbers(rows, tasks, settings["n"])}
        _write_results(path, results, rows, report=True)
    finally:
        folder.close()
    return results


def _write_results(path: Path, results: dict[str, Any], rows: Sequence[dict[str, Any]], report: bool) -> None:
    write_atomically(path / "results.json", [json.dumps(results, indent=2, allow_nan=False) + "\n"])
    if report:
        from .page import write_evaluation_report

        write_evaluation_report(path / "report.html", results, read_lines(path / "problems.jsonl"), rows)
