"""The report of one evaluation: accuracy, lengths, and every sample to read."""

import base64
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._util.text import without_folders
from ..report.page import clean, count, finite, write_page
from . import charts


# Compressed bytes of text that a report may hold. Base64 adds a third; browsers open a page of this size in seconds
TEXT_LIMIT = 50_000_000


def write_evaluation_report(path: Path, results: dict, problems: list[dict], samples: Iterable[dict]) -> None:
    """Writes a self-contained HTML file that shows an evaluation and all its samples.

    Args:
        path: The file. An existing one is replaced only once the new one is complete.
        results: Contents of `results.json`.
        problems: Question, prompt and answer of each problem.
        samples: Lines of `samples.jsonl`. They are read once and kept compressed.
    """
    rows, texts = [], []
    for sample in samples:
        text = clean(sample.get("text") or "")
        rows.append({key: value for key, value in sample.items() if key != "text"} | {"characters": len(text)})
        texts.append(zlib.compress(text.encode()))
    cut = _cut_longest(texts, rows, TEXT_LIMIT)

    tasks = [
        {
            "name": name,
            "metrics": metrics,
            "interval": interval(metrics),
            "curve": charts.curve_chart(name, metrics.get("pass"), metrics.get("maj")),
            "lengths": _length_chart([row for row in rows if row.get("task") == name]),
        }
        for name, metrics in (results.get("tasks") or {}).items()
    ]
    columns = list(tasks)
    overall = results.get("overall") or {}
    # With one task, the overall figures would repeat it
    if len(tasks) > 1:
        columns.append({"name": "overall", "metrics": overall, "interval": interval(overall)})

    write_page(
        path,
        __package__,
        "evaluation",
        results=_shared(results),
        tasks=tasks,
        columns=columns,
        tables=_tables(columns),
        listed=sum(len(task["metrics"].get("per_problem") or []) for task in tasks),
        share_bar=charts.share_bar,
        cut=cut,
        limit=f"{TEXT_LIMIT / 1e6:.0f} MB",
        data={"tasks": [task["name"] for task in tasks], "problems": problems, "samples": rows},
        texts=_base64(texts),
    )


def _shared(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without local folders, for sharing. results.json keeps the paths, to make the run repeatable."""
    named = ("model", "settings", "fingerprint")
    return {**results, **{key: without_folders(results[key]) for key in named if key in results}}


def interval(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    """95 % normal interval of avg@n, clipped to [0, 1]. `None` without a standard error.

    Also `None` for a standard error of 0, which only says that all problems have the same share of right samples.
    """
    mean, error = metrics.get("avg"), metrics.get("stderr")
    if not finite(mean) or not finite(error) or error == 0:
        return None
    return max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)


def _cut_longest(texts: list[bytes], rows: list[dict], limit: int) -> int:
    """Cuts the middle out of the longest texts until all fit the limit. Returns how many were cut.

    The middle, because an answer is at the end of its text.
    """
    if sum(map(len, texts)) <= limit:
        return 0
    # Find the largest size per text at which all texts together fit
    left, allowed = limit, 0
    for position, size in enumerate(sorted(map(len, texts))):
        allowed = left // (len(texts) - position)
        if size > allowed:
            break
        left -= size
    cut = 0
    for position, compressed in enumerate(texts):
        if len(compressed) <= allowed:
            continue
        text = zlib.decompress(compressed).decode()
        keep = len(text)
        # Parts of a text compress differently, so the share is only a first guess
        while len(compressed) > allowed and keep:
            keep = min(keep - 1, int(0.95 * keep * allowed / len(compressed)))
            head, tail = keep - keep // 2, keep // 2
            missing = len(text) - keep
            note = f"\n\n[… {count(missing)} characters are left out here; samples.jsonl has them …]\n\n"
            shortened = text[:head] + note + (text[-tail:] if tail else "")
            compressed = zlib.compress(shortened.encode())
        texts[position] = compressed
        rows[position]["left_out"] = missing
        cut += 1
    return cut


def _base64(texts: Iterable[bytes]) -> Iterator[str]:
    for text in texts:
        yield base64.b64encode(text).decode()


def _length_chart(rows: list[dict]) -> dict[str, Any]:
    """Chart and figures of the lengths of judged samples, in tokens if known, else in characters."""
    judged = [row for row in rows if isinstance(row.get("correct"), bool)]
    key, unit = (
        ("tokens", "tokens") if any(finite(row.get("tokens")) for row in judged) else ("characters", "characters")
    )
    lengths = defaultdict(list)
    for row in judged:
        # A logarithmic axis has no place for an empty text
        if finite(row.get(key)) and row[key] > 0:
            lengths[row["correct"]].append(row[key])
    return {
        "chart": charts.length_chart(lengths[True], lengths[False], unit),
        "unit": unit,
        "right": charts.median(lengths[True]),
        "wrong": charts.median(lengths[False]),
        "left_out": len(rows) - len(lengths[True]) - len(lengths[False]),
    }


def _problems(metrics: Mapping[str, Any]) -> str | None:
    """Number of problems that the figures cover, such as `"28 of 30"` if some could not be judged."""
    problems, unjudged = metrics.get("problems"), metrics.get("unjudged")
    if not finite(problems):
        return None
    return f"{count(problems - unjudged)} of {count(problems)}" if finite(unjudged) and unjudged else count(problems)


def _tables(columns: list[dict]) -> list[tuple[str, list[tuple[str, str, list[Any]]]]]:
    """The summary's two tables. A row is a label, a kind and one value per column. Rows without values are left out."""
    metrics = [column["metrics"] for column in columns]

    def nested(name: str, key: str) -> list[Any]:
        return [(item.get(name) or {}).get(key) for item in metrics]

    right = [("problems", "text", [_problems(item) for item in metrics])]
    right += [("samples per problem", "count", [item.get("n") for item in metrics])]
    rows = []
    for name, label in (("pass", "pass@"), ("maj", "maj@")):
        ks = sorted({int(k) for item in metrics for k in (item.get(name) or {})})
        right += [(f"{label}{k}", "percent", nested(name, str(k))) for k in ks]
    for key, label in (
        ("truncated", "cut off at the token limit"),
        ("unparsed", "no answer found"),
        ("empty", "empty"),
    ):
        rows.append((label, "percent", [item.get(key) for item in metrics]))
    rows += [("verification failed, samples", "count", [item.get("unverified") for item in metrics])]
    rows += [("problems without a usable solution", "count", [item.get("unjudged") for item in metrics])]
    for key, label in (
        ("mean", "mean"),
        ("p10", "10th percentile"),
        ("p50", "median"),
        ("p90", "90th percentile"),
        ("p99", "99th percentile"),
        ("max", "longest"),
        ("mean_correct", "mean of right answers"),
        ("mean_wrong", "mean of wrong answers"),
    ):
        rows.append((f"tokens, {label}", "count", nested("tokens", key)))

    def known(rows: list) -> list:
        return [row for row in rows if any(isinstance(value, str) or finite(value) for value in row[2])]

    return [("accuracy", known(right)), ("answers and lengths", known(rows))]
