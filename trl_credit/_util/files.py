"""Files that are complete or absent: atomic writes, and reads that drop truncated rows."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


logger = logging.getLogger(__name__)


_KEPT = "Earlier results are kept: fix this and run the same command again."


_TEMPORARY = ".tmp"


class RunFolderError(Exception):
    """The folder cannot be used for this run; the message says why and what to do."""


def lock_folder(path: Path, lock: FileLock) -> None:
    """Creates a folder and takes its lock, which the system releases however the process ends.

    Raises:
        RunFolderError: Another process holds the lock, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"Another process is writing to {path}. Wait until it has ended, or set another `output_dir`."
        ) from None
    except OSError as error:
        reason = "it is a file, not a folder" if path.is_file() else error.strerror
        raise RunFolderError(f"`output_dir`: cannot write to {path}: {reason}.") from error


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file atomically.

    Raises:
        RunFolderError: It cannot be written.
    """
    name = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with contextlib.suppress(OSError):  # some network disks have no modes
            os.chmod(name, 0o666 & ~umask)  # mkstemp's file is readable only by its owner
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise RunFolderError(f"Cannot write {path}: {error.strerror}. {_KEPT}") from error
        raise


def to_line(row: dict[str, Any]) -> str:
    """One line of JSON. Lone surrogates, which UTF-8 has no bytes for, are escaped."""
    return json.dumps(row, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        RunFolderError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"There is no {path.name} in {path.parent}: is it the folder of a finished run?") from None
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is not JSON: {error}.") from error


def read_lines(path: Path, repair: bool = False) -> list[dict[str, Any]]:
    """The complete rows of a JSONL file, without rows that a kill or a full disk truncated.

    Args:
        path: The file; a missing one has no rows.
        repair: Whether to rewrite the file without truncated rows, with a warning.
    """
    if not path.exists():
        return []
    rows, kept, bad = [], [], 0
    with open(path, "rb") as file:
        for line in file:
            row = None
            if line.endswith(b"\n"):
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
                kept.append(line)
            elif line.strip():
                bad += 1
    if bad and repair:
        logger.warning("%s: %d half-written line(s) removed; their samples will be generated again.", path, bad)
        write_atomically(path, (line.decode() for line in kept))
    return rows


def differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: (dotted name, old, new); a missing value is `None`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            found
            for key in keys
            for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [(name, old, new)]
