"""Runs what is missing of a comparison, several at once. Where it may, a run is forked from a process with all
imports done."""

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .plan import Method, Plan, run_folder
from .worker import start


logger = logging.getLogger(__name__)

_PRELOADED = [
    "trl_credit.train",
    "trl_credit.trainer.grpo",
    "trl_credit.recipe.evaluation",
    "trl_credit.comparison.plan",
    "trl_credit.inspection.scoring",
    "trl_credit.toy.arithmetic",
]
# Time that a run gets to write a checkpoint and end its processes when told to stop
_GRACE_SECONDS = 40.0


class Stopped(KeyboardInterrupt):
    """SIGTERM was received."""


def start_process(target: Callable, *args: Any, forks: bool = True) -> multiprocessing.Process:
    """Starts a process that runs a function.

    Args:
        target: The function.
        args: Its arguments.
        forks: Whether it may fork from a process that only imported torch, TRL and this package, which is quick. A library
            that asks for a GPU as it is imported, such as bitsandbytes, keeps forks from using one.
    """
    if forks and sys.platform == "linux":  # macOS's own libraries do not work in a fork
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        process = context.Process(target=target, args=args)
        try:
            process.start()
            return process
        except OSError as error:  # no place for its socket: too long a path of TMPDIR, or a disk without sockets
            logger.debug("no fork server: %s", error)
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    return process


def _answer(connection, function: Callable, arguments: dict[str, Any]) -> None:
    from .._util.files import RunFolderError
    from .._util.quiet import quiet_libraries

    quiet_libraries()
    try:
        connection.send((True, function(**arguments)))
    except (ValueError, TypeError, OSError, ImportError, RunFolderError) as error:
        connection.send((False, str(error)))


def in_process(function: Callable, **arguments: Any) -> Any:
    """Computes a function's result in a separate process, so that checks leave nothing behind in this one.

    Raises:
        ValueError: The function raised ValueError, TypeError, OSError, ImportError or RunFolderError.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = start_process(_answer, theirs, function, arguments)
    theirs.close()
    try:
        good, result = ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(process.exitcode or 1) from None
    finally:
        if sys.exc_info()[0] is not None:
            process.terminate()
        process.join()
    if not good:
        raise ValueError(result)
    return result


def is_done(folder: Path) -> bool:
    return (folder / "run.json").exists()


def missing(plan: Plan, output_dir: Path) -> list[tuple[Method, int]]:
    """Runs that this command asks for and are not on disk yet. Seed by seed, so that finished ones can be compared."""
    labels, seeds = plan.asked
    grid = [(plan.method(label), seed) for seed in seeds for label in labels]
    return [(method, seed) for method, seed in grid if not is_done(run_folder(output_dir, method, seed))]


def prepare(plan: Plan, output_dir: Path, method: Method, seed: int, jobs: int, keep_models: bool) -> dict[str, Any]:
    """The specification for a run's process. An unfinished run keeps only its complete checkpoints, if any."""
    from ..extras.checkpoints import last_complete_checkpoint
    from .plan import run_arguments

    folder = run_folder(output_dir, method, seed)
    checkpoint = last_complete_checkpoint(folder) if folder.exists() else None
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else None
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for path in folder.glob("eval/step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "folder": str(folder),
        "label": method.label,
        "credit": method.credit,
        "seed": seed,
        "arguments": run_arguments(plan, output_dir, method, seed, resume=checkpoint is not None),
        "resumed_from": step,
        "launch": plan.launch,
        "jobs": jobs,
        "one_thread": not plan.launch and (jobs > 1 or _on_cpu(plan)),
        "keep_models": keep_models,
    }


def _on_cpu(plan: Plan) -> bool:
    import torch

    return bool(plan.settings.get("use_cpu")) or not torch.accelerator.is_available()


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_all(
    plan: Plan,
    output_dir: Path,
    jobs: int = 1,
    keep_models: bool = False,
    say: Callable[[str], None] = print,
) -> list[tuple[str, int]]:
    """Runs what is missing. Returns the labels and seeds of the runs that failed.

    Args:
        plan: The plan, already written to disk.
        output_dir: Its folder.
        jobs: Runs at a time. Always 1 with a launcher.
        keep_models: Keep the trained models on disk.
        say: Called with a line for each finished run.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM (`Stopped`). Runs in progress are ended.
    """
    todo = missing(plan, output_dir)
    total, jobs = len(todo), 1 if plan.launch else jobs
    kept = len(plan.asked[0]) * len(plan.asked[1]) - total
    if kept:
        say(f"{kept} finished run{'s are' if kept > 1 else ' is'} kept.")
    if total:
        say(f"{total} run{'s' if total > 1 else ''} to make, {jobs} at a time.")
    on_cpu = _on_cpu(plan)
    failed, durations, running = [], [], {}
    began = time.monotonic()
    try:
        with _sigterm():
            while todo or running:
                while todo and len(running) < jobs:
                    method, seed = todo.pop(0)
                    spec = prepare(plan, output_dir, method, seed, jobs, keep_models)
                    process = start_process(start, spec, forks=on_cpu)
                    running[process.sentinel] = (process, method, seed, time.monotonic())
                for sentinel in wait(list(running)):
                    process, method, seed, started = running.pop(sentinel)
                    process.join()
                    durations.append(time.monotonic() - started)
                    folder = run_folder(output_dir, method, seed)
                    name = f"{method.label}, seed {seed}"
                    if process.exitcode == 0 and is_done(folder):
                        line = f"{name}: {_summary(folder)}, {_duration(durations[-1])}"
                    else:
                        failed.append((method.label, seed))
                        line = f"{name}: failed with exit status {process.exitcode}; the end of {folder / 'log.txt'}:\n"
                        line += "\n".join(f"    {text}" for text in log_end(folder / "log.txt"))
                    number = total - len(todo) - len(running)
                    left = ""
                    if number < total:
                        rate = (time.monotonic() - began) / number
                        left = f"; about {_duration(rate * (total - number))} left"
                    say(
                        f"{number}/{total}  {line}"
                        if (method.label, seed) in failed
                        else f"{number}/{total}  {line}{left}"
                    )
    finally:
        _end([process for process, *_ in running.values()])
    return failed


def _end(processes: list) -> None:
    """Ends runs in progress with all the processes they started."""
    deadline = time.monotonic() + _GRACE_SECONDS

    def tell(number: int) -> None:
        for process in processes:
            if process.is_alive():
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(OSError):  # in case it has no process group yet
                    os.kill(process.pid, number)

    tell(signal.SIGTERM)
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    tell(signal.SIGKILL)


def _summary(folder: Path) -> str:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rewards = [value for value in run["history"].get("reward", []) if value is not None]
    last = rewards[-max(1, len(rewards) // 4) :]
    text = f"reward {sum(last) / len(last):.3f} in the last quarter" if last else "no reward"
    if run["accuracy"] is not None:
        text += f", accuracy {100 * run['accuracy']:.1f} %"
    return text


def _duration(seconds: float) -> str:
    from ..report.page import duration

    return duration(seconds)


def log_end(path: Path, lines: int = 5) -> list[str]:
    """The last non-empty lines of a log."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ["(no log)"]
    found = [line.rpartition("\r")[2].rstrip() for line in text.splitlines() if line.strip()]
    return found[-lines:] or ["(nothing)"]
