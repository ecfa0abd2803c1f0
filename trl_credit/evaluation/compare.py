"""Compares two runs on the same problems: the paired difference, its interval, and the problems that moved."""

from pathlib import Path
from typing import Any

import numpy as np

from .._util.files import differences, read_lines
from ..statistics.repeated import combined_difference, moved_problems, paired_difference, problem_difference
from .store import read_results


def compare_runs(path_a: str | Path, path_b: str | Path, level: float = 0.95) -> dict[str, Any]:
    """Compares two finished runs, B minus A.

    Args:
        path_a: Folder of the first run.
        path_b: Folder of the second run.
        level: Level of the intervals.

    Returns:
        For each task and over all tasks, the averages and their paired difference with its bootstrap interval; each
        problem's difference; the settings that differ.

    Raises:
        RunFolderError: One of the folders holds no finished run.
        ValueError: The runs have no task in common, or a shared task has different problems.
    """
    path_a, path_b = Path(path_a), Path(path_b)
    results_a, results_b = read_results(path_a), read_results(path_b)
    names = [name for name in results_a["tasks"] if name in results_b["tasks"]]
    if not names:
        raise ValueError(
            f"The runs have no task in common: {path_a} has {', '.join(results_a['tasks'])}; {path_b} has "
            f"{', '.join(results_b['tasks'])}."
        )
    for name in names:
        if results_a["fingerprint"]["data"][name] != results_b["fingerprint"]["data"][name]:
            counts = [results["tasks"][name]["problems"] for results in (results_a, results_b)]
            raise ValueError(
                f"The problems of {name!r} are not the same in the two runs ({counts[0]} and {counts[1]}): evaluate both on "
                "the same data, with the same `limit`."
            )
    questions = {
        (row.get("task"), row.get("problem")): row.get("question", "") for row in read_lines(path_a / "problems.jsonl")
    }
    tasks, pairs = {}, {}
    for name in names:
        both = [
            (row_a, row_b)
            for row_a, row_b in zip(
                results_a["tasks"][name]["per_problem"], results_b["tasks"][name]["per_problem"], strict=True
            )
            if row_a["correct"] is not None and row_b["correct"] is not None
        ]
        pairs[name] = [(_samples(a), _samples(b)) for a, b in both]
        tasks[name] = {**_compare(pairs[name], level), "per_problem": _per_problem(name, both, questions, level)}
    # The other settings already reflect `config`. The model is left out because it is what is compared
    settings = [
        {
            **{name: value for name, value in results["settings"].items() if name != "config"},
            "tasks": {name: results["settings"]["tasks"][name] for name in names},
        }
        for results in (results_a, results_b)
    ]
    found = differences(*settings)
    found += differences(results_a["versions"], results_b["versions"], "versions")
    return {
        "a": _run(path_a, results_a),
        "b": _run(path_b, results_b),
        "left_out": sorted(set(results_a["tasks"]) ^ set(results_b["tasks"])),
        "differences": [{"field": field, "a": a, "b": b} for field, a, b in found],
        "tasks": tasks,
        "overall": _overall(tasks, pairs, level),
    }


def _run(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": path.resolve().name,
        "model": results["model"],
        "path": str(path),
        "settings": results["settings"],
        "fingerprint": results["fingerprint"],
    }


def _samples(row: dict[str, Any]) -> np.ndarray:
    return np.arange(row["n"]) < row["correct"]


def _compare(pairs: list[tuple[np.ndarray, np.ndarray]], level: float) -> dict[str, Any]:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = paired_difference(a, b, level=level)
    return {
        "problems": len(pairs),
        "a_avg": float(np.mean([samples.mean() for samples in a])),
        "b_avg": float(np.mean([samples.mean() for samples in b])),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "level": level,
        "p_value": found.p_value,
    }


def _per_problem(task: str, both: list[tuple[dict, dict]], questions: dict, level: float) -> list[dict[str, Any]]:
    counts = [(a["correct"], a["n"], b["correct"], b["n"]) for a, b in both]
    moved, p_values = moved_problems(*(list(column) for column in zip(*counts, strict=True)), level=level)
    rows = []
    for (a, b), (a_correct, a_n, b_correct, b_n), direction, p_value in zip(both, counts, moved, p_values, strict=True):
        low, high = problem_difference(a_correct, a_n, b_correct, b_n, level=level)
        rows.append(
            {
                "problem": a["problem"],
                "question": questions.get((task, a["problem"]), ""),
                "answer": b["answer"],
                "a_correct": a_correct,
                "a_n": a_n,
                "b_correct": b_correct,
                "b_n": b_n,
                "difference": b_correct / b_n - a_correct / a_n,
                "low": low,
                "high": high,
                "p_value": p_value,
                "moved": direction,
            }
        )
    return rows


def _overall(tasks: dict[str, Any], pairs: dict[str, list[tuple]], level: float) -> dict[str, Any]:
    """Unweighted mean over tasks. Problems are resampled within each task."""
    runs = [([a for a, _ in both], [b for _, b in both]) for both in pairs.values()]
    difference, low, high = combined_difference(runs, level=level)
    return {
        "a_avg": float(np.mean([part["a_avg"] for part in tasks.values()])),
        "b_avg": float(np.mean([part["b_avg"] for part in tasks.values()])),
        "difference": difference,
        "low": low,
        "high": high,
        "level": level,
    }
