"""Finds what is wrong with a command line before torch and TRL are imported, which takes seconds."""

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .._util.retired import unknown_fields
from .._util.values import is_false, is_true
from .._util.yaml import read_mapping
from ..methods.spec import check_spec
from .names import parameter_hint, recipe_field_names


def words_of(argv: Sequence[str], file: str = "recipe") -> dict[str, Any]:
    """The fields of a command line and of its `--config`, as written. Of a field that is there twice, the last value counts.
    Of a file that is a pipe, which can be read once, or of two, nothing is known: `trainer` is `None`.

    Raises:
        ValueError: The file cannot be read.
    """
    given = [tuple(word.split("=", 1)) for word in argv if word.startswith("--") and "=" in word]
    given += [(word, value) for word, value in pairwise(argv) if word.startswith("--") and "=" not in word]
    values = {word.removeprefix("--").replace("-", "_"): value for word, value in given}
    path = Path(values.get("config", "")).expanduser()
    files = sum(word == "--config" for word, _ in given)
    if files > 1 or (files and path.exists() and not path.is_file()):
        return {"trainer": None} | values
    fields = read_mapping(values["config"], {}, file) if "config" in values else {}
    return fields | values


def check_early(argv: Sequence[str], file: str = "recipe", also: Collection[str] = ()) -> None:
    """Checks that the file of `--config` can be read, that its fields and those of the command line exist, and that `credit`
    names methods and parameters that exist. The rest is checked later.

    Args:
        argv: Words of the command line.
        file: Name of the file in messages.
        also: Fields of the command itself, besides the recipe's.

    Raises:
        ValueError, TypeError: The error that would come later.
    """
    values = words_of(argv, file)
    if {"--help", "-h"} & set(argv):
        return
    check_names(argv, values, file, also)
    refuse_empty_credit(values)
    if "credit" in values:
        check_spec(values["credit"])


def set_environment(values: Mapping[str, Any]) -> None:
    """Sets the environment variables of a recipe's `env` before libraries are imported that read them only then, and before
    processes are launched.

    Args:
        values: The recipe's fields, as of [`words_of`].
    """
    if isinstance(environment := values.get("env"), Mapping):
        os.environ.update({str(name): str(value) for name, value in environment.items()})


def precision_clash(launcher: Mapping[str, Any], name: str, fields: Mapping[str, Any]) -> str | None:
    """What keeps DeepSpeed from starting: it takes the precision of the launcher's file, and transformers refuses another.

    Args:
        launcher: The launcher's configuration.
        name: Its name in messages.
        fields: The recipe's, as of [`words_of`].
    """
    kind, precision = str(launcher.get("distributed_type")).upper(), launcher.get("mixed_precision")
    other = is_true(fields.get("fp16")) or is_true(fields.get("bf16_full_eval"))  # with which transformers goes on
    if kind == "DEEPSPEED" and precision == "bf16" and is_false(fields.get("bf16")) and not other:
        return f"`bf16` is off, and {name} starts DeepSpeed with `mixed_precision: bf16`"
    return None


def known_fields(values: Mapping[str, Any]) -> frozenset[str] | None:
    """The fields that a recipe with these values may have, by its `trainer`; `None` if they are not known yet."""
    trainer = values.get("trainer", "grpo")
    return recipe_field_names(trainer) if isinstance(trainer, str) else None


def check_names(
    argv: Sequence[str], values: Mapping[str, Any], file: str = "recipe", also: Collection[str] = ()
) -> None:
    """Raises `ValueError` if a field does not exist.

    Args:
        argv: Words of the command line.
        values: Its fields and those of its file, as of [`words_of`].
        file: Name of the file in messages.
        also: Fields that the command line may have, besides the recipe's.
    """
    known = known_fields(values)
    if known is None:
        return
    on_line = [word.removeprefix("--").partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    known = known | {"config", "env"}
    unknown = [name for name in on_line if name.removeprefix("no_") not in known | set(also)]
    in_file = {name: value for name, value in values.items() if name not in on_line}
    for found, where, fields in (
        (dict.fromkeys(unknown), "on the command line", known | set(also)),
        (in_file, f"in the {file}", known),
    ):
        if problem := unknown_fields(found, fields, where, parameter_hint):
            raise ValueError(problem)


def refuse_empty_credit(values: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a recipe has the line `credit:` without a value, which would silently be `uniform`."""
    if "credit" in values and values["credit"] is None:
        raise ValueError(
            "`credit` is empty. Name a method (`trl-credit methods` lists them), or remove the line, which means `uniform`."
        )
