"""Finds what is wrong with a command line before torch and TRL are imported, which takes seconds."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .._util.imports import is_dotted
from .._util.text import nearest
from .._util.yaml import read_mapping
from ..methods.table import MIX, TABLE


def words_of(argv: Sequence[str], file: str = "recipe") -> dict[str, Any]:
    """The fields of a command line and of its `--config`, as written; none if the file is a pipe, which can be read
    once, or there are two. Of a field that is there twice, the last value counts.

    Raises:
        ValueError: The file cannot be read.
    """
    given = [tuple(word.split("=", 1)) for word in argv if word.startswith("--") and "=" in word]
    given += [(word, value) for word, value in pairwise(argv) if word.startswith("--") and "=" not in word]
    values = {word.removeprefix("--").replace("-", "_"): value for word, value in given}
    path = Path(values.get("config", "")).expanduser()
    files = sum(word == "--config" for word, _ in given)
    if files > 1 or (files and path.exists() and not path.is_file()):
        return {}
    fields = read_mapping(values["config"], {}, file) if "config" in values else {}
    return fields | values


def check_early(argv: Sequence[str], file: str = "recipe") -> None:
    """Checks that the file of `--config` can be read and that `credit` names a method. The rest is checked later.

    Args:
        argv: Words of the command line.
        file: Name of the file in messages.

    Raises:
        ValueError: The recipe cannot be read, or there is no such method.
    """
    credit = words_of(argv, file).get("credit")
    if isinstance(credit, str) and credit.lstrip().startswith(("{", "[")):
        try:
            credit = json.loads(credit)
        except json.JSONDecodeError:
            return
    for part in credit if isinstance(credit, list) else [credit]:
        name = part.get("method") if isinstance(part, Mapping) else part
        if isinstance(name, str) and name not in (*TABLE, MIX) and not is_dotted(name):
            raise ValueError(f"Unknown credit method {name!r}. {nearest(name, TABLE)}")
