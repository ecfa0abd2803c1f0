"""Turns judged samples into the reported numbers."""

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._version import __version__
from ..statistics import repeated as estimators
from .tasks import Task


_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "vllm",
    "openai",
    "reasoning-gym",
)


def versions() -> dict[str, str]:
    """Versions of Python and of installed packages that samples and verdicts may depend on."""
    found = {"python": platform.python_version(), "trl-credit": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def summarize_task(task: Task, samples: Sequence[dict[str, Any]], n: int) -> dict[str, Any]:
    """Computes the numbers of one task.

    Args:
        task: The task.
        samples: Its P * n judged samples, ordered by problem and index (P problems).
        n: Samples per problem.

    Raises:
        ValueError: No problem has an answer that can be verified against.

    Problems without one are counted as `unjudged` and left out of the averages.
    """
    groups = [samples[start : start + n] for start in range(0, len(samples), n)]
    judged = [group for group in groups if all(row["correct"] is not None for row in group)]
    if not judged:
        raise ValueError(f"No answer of task {task.name!r} can be verified against.")
    correct = [[row["correct"] for row in group] for group in judged]
    votes = [[row["vote"] for row in group] for group in judged]
    ks = estimators.powers_of_two(n)
    return {
        "problems": len(groups),
        "n": n,
        "avg": estimators.average(correct),
        "stderr": estimators.clustered_standard_error(correct),
        "sampling_stderr": estimators.sampling_standard_error(correct),
        "pass": {str(k): estimators.pass_at_k(correct, k) for k in ks},
        "maj": {str(k): estimators.majority_at_k(votes, correct, k) for k in ks},
        **rates(samples),
        "unverified": sum(row["outcome"] != "ok" for row in samples),
        "unjudged": len(groups) - len(judged),
        "tokens": token_statistics(samples),
        "per_problem": [
            _summarize_problem(number, problem.answer, group)
            for number, (problem, group) in enumerate(zip(task.problems, groups, strict=True))
        ],
    }


def _summarize_problem(number: int, answer: str, group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    judged = all(row["correct"] is not None for row in group)
    correct = sum(bool(row["correct"]) for row in group)
    return {
        "problem": number,
        "answer": answer,
        "correct": correct if judged else None,
        "n": len(group),
        "accuracy": correct / len(group) if judged else None,
        "mean_tokens": _mean([row["tokens"] for row in group]),
        **_majority(group),
    }


def summarize_overall(tasks: dict[str, dict[str, Any]], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted mean over tasks, as papers average benchmarks. Rates and lengths are over all samples."""
    parts = list(tasks.values())
    ks = parts[0]["pass"]
    average, error = estimators.combined([part["avg"] for part in parts], [part["stderr"] for part in parts])
    return {
        "tasks": len(parts),
        "avg": average,
        "stderr": error,
        "pass": {k: sum(part["pass"][k] for part in parts) / len(parts) for k in ks},
        "maj": {k: sum(part["maj"][k] for part in parts) / len(parts) for k in ks},
        **rates(samples),
        "unverified": sum(part["unverified"] for part in parts),
        "unjudged": sum(part["unjudged"] for part in parts),
        "tokens": token_statistics(samples),
    }


def rates(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Shares of the samples that reached the token limit, state no answer, or are empty."""
    count = len(samples)
    return {
        "truncated": sum(row["finish"] == "length" for row in samples) / count,
        "unparsed": sum(row["status"] == "unparsed" for row in samples) / count,
        "empty": sum(row["status"] == "empty" for row in samples) / count,
    }


def token_statistics(samples: Sequence[dict[str, Any]]) -> dict[str, float | int | None] | None:
    """Mean and percentiles of the lengths in tokens. `None` if the server reported none."""
    known = [row for row in samples if row["tokens"] is not None]
    if not known:
        return None
    lengths = np.array([row["tokens"] for row in known])
    return {
        "total": int(lengths.sum()),
        "mean": float(lengths.mean()),
        **{f"p{q}": float(np.percentile(lengths, q)) for q in (10, 50, 90, 99)},
        "max": int(lengths.max()),
        "mean_correct": _mean([row["tokens"] for row in known if row["correct"]]),
        "mean_wrong": _mean([row["tokens"] for row in known if row["correct"] is False]),
    }


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _majority(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The most frequent answer, as first written, and whether it is right. Ties go to the answer given first."""
    counts: dict[str, int] = {}
    first = {}
    for row in group:
        if row["vote"] is not None:
            counts[row["vote"]] = counts.get(row["vote"], 0) + 1
            first.setdefault(row["vote"], row)
    if not counts:
        return {"majority": None, "majority_correct": None}
    row = first[max(counts, key=counts.get)]
    return {"majority": row["answer"], "majority_correct": row["correct"]}
