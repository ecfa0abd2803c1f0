"""A folder of sampled groups and the values of their prefixes, to be filled over several sessions.

run.json            what determines the samples
groups.jsonl        one completion a line, as they are sampled
draws.jsonl         the reward of one continuation a line, as they are sampled
groups.parquet      the completions, written at the end
values.parquet      one row per completion and valued prefix, written at the end

A killed session loses at most the samples that it had not written yet, and the next one draws the missing ones only.
Other settings of estimation (where to value, up to which standard error) need other draws of the same continuations, so the
same folder serves them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .._util.files import RunFolderError, differences, lock_folder, read_json, read_lines, to_line, write_atomically
from .advantages import segment_advantages


# How a value came about
SAMPLED, REWARD, CERTAIN, MISTAKE = "sampled", "reward", "certain", "mistake"
_ABOUT = b"trl_credit"


@dataclass(frozen=True)
class Sample:
    """A sampled completion.

    Args:
        prompt: Number of its prompt, from 0.
        index: Number in its group, from 0.
        token_ids: Its tokens.
        text: Its text.
        finished: Whether it ended, or was cut.
        reward: Its reward; NaN without one.
        advantage: Its advantage within the group; NaN without one.
        example: The dataset's row, with `prompt`.
        prompt_ids: The rendered prompt's tokens.
    """

    prompt: int
    index: int
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    reward: float
    advantage: float
    example: dict[str, Any]
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class SampleValues:
    """Values of one completion's prefixes: (S + 1,) arrays, for the prompt alone and each segment's end.

    Args:
        tokens: Number of the completion's tokens in the prefix; 0 first.
        mean: V. NaN where there is no estimate.
        stderr: Standard error; 0 where V is known.
        count: Continuations.
        halves: (S + 1, 2) estimates from either half of the continuations.
        source: `sampled` (or in closed form by bookkeeping, without continuations), `reward` (the completion's own, after
            its last token), `certain` (as at a neighbour, from which the policy goes here almost surely) or `mistake` (0
            by bookkeeping).
    """

    tokens: np.ndarray
    mean: np.ndarray
    stderr: np.ndarray
    count: np.ndarray
    halves: np.ndarray
    source: list[str]

    def advantages(self) -> np.ndarray:
        """(T,) true advantages, as estimated from all continuations."""
        return segment_advantages(self.mean, self.tokens[1:])

    def half_advantages(self) -> np.ndarray:
        """(T, 2) true advantages as estimated from either half, whose errors are independent."""
        return np.stack([segment_advantages(self.halves[:, half], self.tokens[1:]) for half in (0, 1)], -1)


def prefix_key(prompt: int, tokens: Sequence[int]) -> str:
    """Identifies a prefix among those of a run: the number of its prompt, and the completion's tokens so far."""
    return hashlib.sha256(json.dumps([prompt, list(map(int, tokens))]).encode()).hexdigest()[:16]


@dataclass
class ValueFolder:
    """The folder, with one writer at a time.

    Args:
        path: The folder.
    """

    path: Path
    _lock: FileLock = field(init=False, repr=False)

    def __post_init__(self):
        self.path = Path(self.path)
        self._lock = FileLock(str(self.path / ".lock"))

    def open(self, identity: dict[str, Any], about: dict[str, Any]) -> None:
        """Locks the folder and records what determines its samples, or compares it with what is there.

        Args:
            identity: JSON values.
            about: JSON values that describe the run, stored beside it.

        Raises:
            RunFolderError: Another process writes there, the folder cannot be written, or it holds samples of another
                model or other settings. The message lists the differences.
        """
        lock_folder(self.path, self._lock)
        identity, file = json.loads(json.dumps(identity)), self.path / "run.json"
        if file.exists():
            old = read_json(file)
            if not isinstance(old, dict) or "identity" not in old:
                raise RunFolderError(f"{file} was not written by `trl-credit bench --true`: set another `output_dir`.")
            if found := differences(old["identity"], identity):
                shown = "\n".join(f"  {name}: {json.dumps(a)} -> {json.dumps(b)}" for name, a, b in found)
                raise RunFolderError(
                    f"{self.path} holds samples of another model or other settings:\n{shown}\nSet another `output_dir`, or "
                    "use the previous settings."
                )
        elif any(self.path.glob("*.jsonl")):
            raise RunFolderError(f"{self.path} holds samples but no run.json: set another `output_dir`.")
        write_atomically(file, [json.dumps({"format": 1, "identity": identity, "about": about}, indent=2) + "\n"])

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def about(self) -> dict[str, Any]:
        """The description of the run. Raises [`RunFolderError`] if there is none."""
        found = read_json(self.path / "run.json")
        if not isinstance(found, dict) or not isinstance(found.get("about"), dict):
            raise RunFolderError(f"{self.path / 'run.json'} was not written by `trl-credit bench --true`.")
        return found["about"]

    def groups(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The completions sampled so far, by prompt and index."""
        rows = read_lines(self.path / "groups.jsonl", repair=True)
        return {(row["prompt"], row["index"]): row for row in rows}

    def draws(self) -> dict[tuple[str, int], float]:
        """Rewards of the continuations sampled so far, by prefix and draw."""
        rows = read_lines(self.path / "draws.jsonl", repair=True)
        return {(row["prefix"], row["draw"]): float("nan") if row["reward"] is None else row["reward"] for row in rows}

    def add_groups(self, rows: Iterable[dict[str, Any]]) -> None:
        self._append("groups.jsonl", rows)

    def add_draws(self, rows: Iterable[tuple[str, int, float]]) -> None:
        self._append(
            "draws.jsonl",
            (
                {"prefix": key, "draw": draw, "reward": reward if np.isfinite(reward) else None}
                for key, draw, reward in rows
            ),
        )

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        try:
            with open(self.path / name, "ab") as file:
                file.write("".join(map(to_line, rows)).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"Cannot write to {self.path / name}: {error.strerror}. What is written is kept: fix this and run the same "
                "command again."
            ) from error

    def finish(self, samples: Sequence[Sample], values: Sequence[SampleValues], about: dict[str, Any]) -> None:
        """Writes both tables."""
        import pyarrow as pa

        columns = {
            name: [getattr(sample, name) for sample in samples]
            for name in ("prompt", "index", "token_ids", "text", "finished", "reward", "advantage", "prompt_ids")
        }
        columns["text"] = [text.encode("utf-8", "replace").decode() for text in columns["text"]]
        columns["example"] = [json.dumps(sample.example, default=str) for sample in samples]
        self._write("groups.parquet", pa.table(columns), about)
        rows = [
            (sample.prompt, sample.index, *row)
            for sample, own in zip(samples, values, strict=True)
            for row in zip(own.tokens, own.mean, own.stderr, own.count, *own.halves.T, own.source, strict=True)
        ]
        names = ("prompt", "completion", "tokens", "mean", "stderr", "count", "half_0", "half_1", "source")
        kinds = (pa.int64(),) * 3 + (pa.float64(),) * 2 + (pa.int64(),) + (pa.float64(),) * 2 + (pa.string(),)
        self._write(
            "values.parquet",
            pa.table({name: pa.array([row[i] for row in rows], kinds[i]) for i, name in enumerate(names)}),
            about,
        )

    def _write(self, name: str, table: Any, about: dict[str, Any]) -> None:
        import pyarrow.parquet as pq

        whole = self.path / f".{name}.tmp"
        try:
            pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about)}), whole)
            os.replace(whole, self.path / name)
        except OSError as error:
            raise RunFolderError(f"Cannot write {self.path / name}: {error.strerror}.") from error


def read_values(path: Path) -> tuple[list[Sample], list[SampleValues], dict[str, Any]]:
    """Reads the tables that [`ValueFolder.finish`] wrote: completions, their values, and what describes the run.

    Raises:
        RunFolderError: A table is missing, or is not of this kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for name in ("groups.parquet", "values.parquet"):
        if not (Path(path) / name).is_file():
            raise RunFolderError(
                f"There is no {name} in {path}: is it the folder of a finished `trl-credit bench --true`?"
            )
        try:
            tables.append(pq.read_table(Path(path) / name))
        except (pa.ArrowInvalid, OSError) as error:
            raise RunFolderError(f"Cannot read {Path(path) / name}: {str(error).splitlines()[0]}") from error
    groups, values = tables
    samples = [
        Sample(
            **{name: row[name] for name in ("prompt", "index", "text", "finished", "reward", "advantage")},
            token_ids=tuple(row["token_ids"]),
            prompt_ids=tuple(row["prompt_ids"]),
            example=json.loads(row["example"]),
        )
        for row in groups.to_pylist()
    ]
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in values.to_pylist():
        rows.setdefault((row["prompt"], row["completion"]), []).append(row)

    def of(sample: Sample) -> SampleValues:
        own = rows[sample.prompt, sample.index]
        return SampleValues(
            **{name: np.array([row[name] for row in own]) for name in ("tokens", "mean", "stderr", "count")},
            halves=np.array([[row["half_0"], row["half_1"]] for row in own], np.float64),
            source=[row["source"] for row in own],
        )

    about = json.loads((groups.schema.metadata or {}).get(_ABOUT, b"{}"))
    return samples, [of(sample) for sample in samples], about
