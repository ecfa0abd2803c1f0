"""One run of a comparison, in its own process: trains, evaluates and writes run.json."""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from .._util.text import log_to_terminal, prepare_terminal


FORMAT = 1
_KEPT = ("run.json", "log.txt", "spec.json")


def history_of(log: Sequence[dict[str, Any]], completions: int, batches: int = 1) -> dict[str, list[float | None]]:
    """Converts the trainer's log to columns with one value per update. `None` if an update did not log it.

    Besides what it logs, there are `step` and `generated_tokens`, the tokens generated for the update, including the
    completions that dynamic sampling discarded.

    Args:
        log: `trainer.state.log_history` of a run that logged every update.
        completions: Completions per generation batch, over all processes.
        batches: Generation batches per update, over which the trainer logs means.
    """
    rows = {}
    for entry in log:
        if "step_time" in entry:  # skips evaluations and the final entry
            rows[entry["step"]] = entry
    names = sorted({name for entry in rows.values() for name, value in entry.items() if _number(value) is not None})
    columns = {name: [_number(entry.get(name)) for _, entry in sorted(rows.items())] for name in names}
    columns["generated_tokens"] = [
        None
        if entry.get("completions/mean_length") is None
        else round(
            batches
            * (entry["completions/mean_length"] * completions + (entry.get("dynamic_sampling/discarded_tokens") or 0))
        )
        for _, entry in sorted(rows.items())
    ]
    return columns


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    """Evaluations of a run, ordered by step: accuracy (avg@n, mean over tasks), n, and each task's avg and stderr."""
    found = []
    for path in folder.glob("eval/step-*/results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {
                "step": int(path.parent.name.removeprefix("step-")),
                "n": results["settings"]["n"],
                "accuracy": results["overall"]["avg"],
                "tasks": {
                    name: {key: task.get(key) for key in ("avg", "stderr", "problems")}
                    for name, task in results["tasks"].items()
                },
            }
        )
    return sorted(found, key=lambda item: item["step"])


def execute(spec: dict[str, Any]) -> None:
    """Trains as `spec` says, in this process or as one of several, and writes run.json at the end."""
    from .._util.files import write_atomically
    from ..evaluation.results import versions
    from ..train import main

    if spec["one_thread"] and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)
    folder = Path(spec["folder"])
    start = time.time()
    trainer = main(spec["arguments"])
    if not trainer.is_world_process_zero():
        return
    state = trainer.state
    args = trainer.args
    batches = max(1, args.gradient_accumulation_steps // (args.steps_per_generation * trainer.num_iterations))
    history = history_of(state.log_history, args.generation_batch_size, batches)
    evaluations = evaluations_of(folder)
    last = evaluations[-1] if evaluations and evaluations[-1]["step"] == state.global_step else None
    run = {
        "format": FORMAT,
        "label": spec["label"],
        "credit": spec["credit"],
        "seed": spec["seed"],
        "updates": state.global_step,
        "history": history,
        "accuracy": None if last is None else last["accuracy"],
        "n": None if last is None else last["n"],
        "evaluations": evaluations,
        "total_seconds": time.time() - start,
        "resumed_from": spec["resumed_from"],
        "jobs": spec["jobs"],
        "versions": versions(),
    }
    write_atomically(folder / "run.json", [json.dumps(run, allow_nan=False) + "\n"])
    if not spec["keep_models"]:
        remove_models(folder)


def remove_models(folder: Path) -> None:
    """Removes weights, checkpoints and the files next to them."""
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith("checkpoint-"):
            shutil.rmtree(path)
        elif path.is_file() and path.name not in _KEPT:
            path.unlink()


def start(spec: dict[str, Any]) -> None:
    """Target of a run's process. Redirects all output to the run's log, and ends when the comparison's process does."""
    os.setsid()  # Ctrl-C should reach only the comparison, which then ends this whole group
    log = os.open(Path(spec["folder"]) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not spec["launch"]:
        execute(spec)
        return
    from ..recipe.launch import launch

    path = Path(spec["folder"]) / "spec.json"
    path.write_text(json.dumps(spec))
    sys.argv[1:] = [*spec["launch"], str(path)]
    launch([*spec["launch"], str(path)], "compare", "trl_credit.comparison.worker", spec["arguments"])


def _end_with_parent() -> None:
    parent_process().join()
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)
    time.sleep(60)  # time to write a checkpoint and end other processes
    os.killpg(0, signal.SIGKILL)


def main(argv: list[str] | None = None) -> None:
    """Entry point of each process, if a run has several."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_terminal()
    log_to_terminal()
    execute(json.loads(Path(argv[0]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
