"""A run on disk. Each finished sample is written at once, by one writer, and runs with other settings are refused.

run.json                settings and fingerprints that determine the samples; binding once there is a sample
samples.jsonl           one sample a line, with a checksum, as they finish; at the end sorted, with verdicts
samples.rankR.jsonl     samples of process R while it runs
problems.jsonl          questions, prompts and answers
results.json            the numbers, written at the end
report.html             the report, written at the end
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from .._util.files import (
    _KEPT,
    _TEMPORARY,
    RunFolderError,
    differences,
    lock_folder,
    read_json,
    read_lines,
    to_line,
    write_atomically,
)
from .._util.text import redact
from .backends.base import Generation, Request


logger = logging.getLogger(__name__)

_FIELDS = {
    "task": str,
    "problem": int,
    "index": int,
    "seed": int,
    "text": str,
    "finish": str,
    "tokens": (int, type(None)),
}
_CHECKSUM = "checksum"


def is_sample(row: dict[str, Any]) -> bool:
    """True if a row has all fields of a sample and matches its checksum. Rows without a checksum are trusted."""
    whole = all(name in row and isinstance(row[name], kind) for name, kind in _FIELDS.items())
    whole = whole and not any(isinstance(row[name], bool) for name in ("problem", "index", "seed", "tokens"))
    return whole and row.get(_CHECKSUM, checksum(row)) == checksum(row)


def checksum(row: dict[str, Any]) -> str:
    """Checksum of a sample's fields. Leaves out verdicts, which may be made again."""
    text = json.dumps([row[name] for name in _FIELDS], allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunFolder:
    """Folder of one run, with one writer at a time.

    Args:
        path: The folder.
        rank: Number of this process. Only process 0 locks, checks and merges.

    Raises:
        RunFolderError: The folder cannot be created or written to.
    """

    def __init__(self, path: Path, rank: int = 0):
        self.path, self.rank = path, rank
        self._lock = FileLock(str(path / ".lock"))
        self._file = None
        self._warned = False

    @property
    def samples_path(self) -> Path:
        return self.path / ("samples.jsonl" if self.rank == 0 else f"samples.rank{self.rank}.jsonl")

    def lock(self) -> None:
        """Locks the folder for this process. The system releases the lock however the process ends.

        Raises:
            RunFolderError: Another process holds the lock, or the folder cannot be created.
        """
        lock_folder(self.path, self._lock)
        for left in self.path.glob(f".*{_TEMPORARY}"):  # left behind by a process that was killed
            left.unlink(missing_ok=True)

    def check(
        self,
        identity: dict[str, Any],
        extend: bool = False,
        replace: bool = False,
        upgraded: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        """Records what determines the samples, or compares it with the run that the folder already holds. A run that
        made no sample, because its engine did not start, leaves the folder free for other settings.

        Args:
            identity: JSON values, among them `n` and `tasks`.
            extend: Allow a larger `n` and additional tasks.
            replace: Delete the samples of a different run instead of raising.
            upgraded: Turns what an earlier release wrote of the same backend into what this one writes.

        Raises:
            RunFolderError: The folder holds a different run. The message lists the differences.
        """
        path = self.path / "run.json"
        identity, notes = json.loads(json.dumps(identity)), None
        if path.exists():
            old = read_json(path)
            old = old.get("identity") if isinstance(old, dict) else None
            if not isinstance(old, dict) or not isinstance(old.get("tasks"), dict):
                raise RunFolderError(f"{path} was not written by a run: set another `output_dir`.")
            before, now = old.get("backend"), identity.get("backend")
            if isinstance(before, dict) and isinstance(now, dict) and before.get("name") == now.get("name"):
                old = {**old, "backend": upgraded(before)}
            found = differences(redact(old), redact(identity))
            growth = [item for item in found if _grows(item, old, identity)]
            if found and not self._holds_samples():
                notes = []  # of a server or engine that was asked for other samples
            elif found and replace:
                logger.warning("%s: the samples of an earlier run are replaced.", self.path)
                for other in [*self.path.glob("samples*.jsonl"), self.path / "results.json", self.path / "report.html"]:
                    other.unlink(missing_ok=True)
            elif found and not (extend and len(growth) == len(found)):
                shown = "\n".join(f"  {name}: {_short(before)} -> {_short(after)}" for name, before, after in found)
                way = "Set another `output_dir`, or use the previous settings"
                way += " (`extend` makes the missing samples)." if len(growth) == len(found) else "."
                raise RunFolderError(f"{self.path} holds a run with other settings or data:\n{shown}\n{way}")
        elif any(self.path.glob("samples*.jsonl")):
            raise RunFolderError(f"{self.path} holds samples but no run.json: set another `output_dir`.")
        self._write_run(identity, self.notes() if notes is None else notes)

    def _holds_samples(self) -> bool:
        files = [*self.path.glob("samples*.jsonl"), self.path / "results.json"]
        return any(file.exists() and file.stat().st_size for file in files)

    def _write_run(self, identity: dict[str, Any], notes: list[str]) -> None:
        text = json.dumps({"format": 1, "identity": identity, "notes": notes}, indent=2) + "\n"
        write_atomically(self.path / "run.json", [text])

    def notes(self) -> list[str]:
        """Backends' notes from all sessions."""
        path = self.path / "run.json"
        return read_json(path).get("notes", []) if path.exists() else []

    def add_notes(self, notes: Iterable[str]) -> None:
        """Stores notes in the folder, so that they reach the results even if a later session writes those."""
        there = self.notes()
        new = [note for note in notes if note not in there]
        if new:
            self._write_run(read_json(self.path / "run.json")["identity"], there + new)

    def gather(self, requests: Sequence[Request]) -> dict[tuple, dict[str, Any]]:
        """Merges all processes' samples into one file and returns them by (task, problem, index)."""
        others = sorted(self.path.glob("samples.rank*.jsonl"))
        seeds = {request.key: request.seed for request in requests}
        samples, damaged = {}, set()
        for path in [self.path / "samples.jsonl", *others]:
            for number, row in enumerate(read_lines(path, repair=True)):
                if not is_sample(row):
                    damaged.add((path.name, number))
                    continue
                key = row["task"], row["problem"], row["index"]
                if seeds.get(key) == row["seed"]:
                    samples.setdefault(key, row)
        if damaged and not self._warned:
            self._warned = True  # the files are read again at the end
            logger.warning("%s: %d damaged sample(s) are made again.", self.path, len(damaged))
        if others:
            write_atomically(self.path / "samples.jsonl", (to_line(row) for row in samples.values()))
            for path in others:
                path.unlink()
        return samples

    def add(self, request: Request, generation: Generation) -> None:
        """Appends a finished sample to this process's file.

        Raises:
            RunFolderError: It cannot be written, as on a full disk. Earlier samples stay intact.
        """
        row = {
            "task": request.task,
            "problem": request.problem,
            "index": request.index,
            "seed": request.seed,
            "text": generation.text,
            "tokens": generation.tokens,
            "finish": generation.finish,
        }
        row[_CHECKSUM] = checksum(row)
        try:
            if self._file is None:
                self.path.mkdir(parents=True, exist_ok=True)  # may run on a machine with its own disk
                self._file = self.samples_path.open("ab", buffering=0)
            line = to_line(row).encode()
            start = self._file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(start)
                raise
        except OSError as error:
            raise RunFolderError(f"Cannot write to {self.samples_path}: {error.strerror}. {_KEPT}") from error

    def start(self) -> None:
        """Removes this process's file of an earlier run. On a shared disk, the main process has already merged it."""
        if self.rank:
            self.samples_path.unlink(missing_ok=True)

    def own_rows(self) -> list[dict[str, Any]]:
        """Samples in this process's file. Empty for the main process, whose file the folder already has."""
        return [] if self.rank == 0 else read_lines(self.samples_path)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds samples from machines that do not share the disk."""
        there = read_lines(self.samples_path)
        write_atomically(self.samples_path, map(to_line, [*there, *rows]))

    def finish(self, samples: Iterable[dict[str, Any]]) -> None:
        """Replaces the appended samples by the complete list, sorted and with verdicts."""
        self.close_file()
        write_atomically(self.path / "samples.jsonl", (to_line(row) for row in samples))

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Closes the file and releases the lock."""
        self.close_file()
        self._lock.release()


def read_results(path: Path) -> dict[str, Any]:
    """Reads the results of a finished run.

    Raises:
        RunFolderError: The folder holds no results.
    """
    if path.is_file():
        raise RunFolderError(f"{path} is a file, not the folder of a run.")
    results = read_json(path / "results.json")
    if (
        not isinstance(results, dict)
        or not {"settings", "tasks", "overall", "fingerprint", "versions"} <= results.keys()
    ):
        raise RunFolderError(f"{path / 'results.json'} is not the result of a run of `trl-credit eval`.")
    # Earlier versions wrote addresses with the keys in them
    return {**results, **{key: redact(results[key]) for key in ("settings", "fingerprint")}}


def _grows(item: tuple[str, Any, Any], old: dict, new: dict) -> bool:
    """True if a difference only asks for more samples of the same problems, or for an additional task."""
    name, before, after = item
    added = {f"tasks.{task}" for task in new["tasks"] if task not in old["tasks"]}
    return after > before if name == "n" else name in added


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
