"""Asks a child process, which may hang or crash without harm."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


CHILD = Path(__file__).with_name("_child.py")


@dataclass(frozen=True)
class Answer:
    """What a child process said.

    Args:
        value: The answer.
        error: Why there is none, in one line; `None` if there is one.
        causes: The error that showed first, and then its causes.
        late: Whether it took too long, which says nothing of what was asked.
    """

    value: Any = None
    error: str | None = None
    causes: tuple[str, ...] = ()
    late: bool = False


def ask(question: str, *arguments: str, seconds: float = 60) -> Answer:
    """Asks `_child.py`.

    Args:
        question: Name of its function.
        arguments: Its arguments.
        seconds: After so many the child is killed.
    """
    # -P: a folder `datasets` or a file `torch.py` in the working directory is not what is meant
    command = [sys.executable, "-P", str(CHILD), question, *arguments]
    done = run(command, seconds)
    if done.error is not None:
        return done
    try:
        told = json.loads(done.value.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return Answer(error="the process ended without an answer")
    if "error" in told:
        causes = tuple(" ".join(cause.split()) for cause in told["error"])
        return Answer(error=_short(causes), causes=causes)
    return Answer(told["value"])


def run(command: list[str], seconds: float) -> Answer:
    """Runs a command to its end and takes what it prints. Never raises."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children can be killed with it
        )
    except OSError as error:
        return Answer(error=error.strerror or str(error))
    try:
        said, complained = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return Answer(error=f"no answer after {seconds:.0f} s", late=True)
    except BaseException:  # Ctrl-C
        _kill(process)
        raise
    if process.returncode < 0:
        try:
            name = signal.Signals(-process.returncode).name
        except ValueError:
            name = f"signal {-process.returncode}"
        return Answer(error=f"the process was ended by {name}")
    if process.returncode:
        lines = (complained or said).strip().splitlines()
        return Answer(error=(" ".join(lines[-3:]) or f"it ended with status {process.returncode}")[:300])
    return Answer(said)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a driver cannot be killed
        process.communicate(timeout=5)


def _short(causes: tuple[str, ...], width: int = 200) -> str:
    """The error that showed and the one that it comes from, in one line."""
    if not causes:
        return "an error without a message"
    first, root = causes[0][:width], causes[-1][:width]
    return first if len(causes) == 1 else f"{first} (from {root})"
