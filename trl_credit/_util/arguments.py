"""Reads YAML files and command lines into dataclasses."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from .._trl import TrlParser
from .help import ParagraphsAndDefaults
from .retired import unknown_fields
from .settings import checked, takes_one_or_several, types_of, yaml_types_of
from .yaml import read_mapping


logger = logging.getLogger(__name__)

# Beginnings of environment variables that libraries read when they are imported
_AT_IMPORT = ("HF_HOME", "HF_HUB_", "HF_DATASETS_", "HF_XET_", "TRANSFORMERS_", "OMP_", "CUDA_VISIBLE_DEVICES")


def parse_arguments(
    argv: list[str],
    types: tuple[type, ...],
    prog: str,
    description: str | None = None,
    file: str = "config file",
    hint: Callable[[str], str | None] = lambda name: None,
) -> tuple:
    """Parses a YAML file and command-line fields into dataclasses.

    Args:
        argv: Command-line words; `--config FILE` names the YAML file.
        types: The dataclasses.
        prog: Name of the command in messages.
        description: The command's description in `--help`.
        file: What messages call the YAML file.
        hint: Says what to write instead of an unknown field, or returns `None`.

    Raises:
        ValueError: The file cannot be read, or a field is unknown (the message names the nearest).
    """
    parser = TrlParser(
        types,
        prog=prog,
        usage=f"{prog} [--config FILE.yaml] [--FIELD VALUE ...]",
        description=description,
        formatter_class=ParagraphsAndDefaults,
        allow_abbrev=False,
    )

    def fail(message: str):
        """One line instead of hundreds of usage."""
        raise ValueError(message)

    parser.error = fail
    argv = [part for text in argv for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    annotated = field_types(types)
    known = {f.name for kind in types for f in fields(kind) if f.init} | {"config", "env"}
    if not argv:
        raise ValueError("Nothing to do: give --config FILE.yaml, or the fields themselves (see --help).")
    if argv[-1] == "--config":
        raise ValueError(f"`--config` needs the path of a {file}.")
    recipe = {}
    if "--config" in argv:
        place = argv.index("--config")
        recipe = read_fields(argv[place + 1], types, file)
        argv = argv[:place] + argv[place + 2 :]
    if "--config" in argv:
        raise ValueError(
            f"`--config` is listed twice: one {file} has all fields, and the command line may change some."
        )
    on_line, left = parser.parse_known_args(argv)
    unknown = [text for text in left if text.startswith("--")]
    problem = unknown_fields(
        dict.fromkeys(map(field_of, unknown)), known, "on the command line", hint
    ) or unknown_fields(recipe, known - {"config"}, f"in the {file}", hint)
    if problem:
        raise ValueError(problem)
    for word in left:
        if not recipe and word.endswith((".yaml", ".yml")):
            raise ValueError(f"Pass the {file} with --config: write --config {word}.")
        raise ValueError(_left_over(word, argv, annotated))
    environment = recipe.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ValueError(f"`env` must be a mapping of environment variables, got {environment!r}.")
    given = {field_of(text) for text in argv if text.startswith("--")}
    given = {name if name in annotated else name.removeprefix("no_") for name in given}
    values = checked(recipe | {name: getattr(on_line, name) for name in given if name in annotated}, annotated)
    parser.set_defaults_with_config(**{name: values[name] for name in recipe})
    environment = {str(name): str(value) for name, value in environment.items()}
    late = [name for name in environment if name.startswith(_AT_IMPORT) and os.environ.get(name) != environment[name]]
    if late:
        logger.warning(
            "`env`: %s may have no effect, as libraries read it when they are imported, which was before. Set it in the "
            "shell.",
            ", ".join(late),
        )
    os.environ.update(environment)
    return parser.parse_args_and_config(argv)


def _left_over(word: str, argv: list[str], types: dict[str, Any]) -> str:
    """Says what is wrong with a word that belongs to no field."""
    place = argv.index(word)
    first = next((i for i in range(place - 1, -1, -1) if argv[i].startswith("--")), None)
    if first is None:
        if Path(word).exists():
            return f"{word!r} is {'a folder' if Path(word).is_dir() else 'a file'}, and a recipe's name ends in .yaml."
        return f"{word!r} belongs to no field: write --FIELD {word}."
    name, values = field_of(argv[first]), argv[first + 1 : place + 1]
    if takes_one_or_several(types.get(name)):  # whose list argparse would take for a text
        several = f"{name}: [{', '.join(values)}]"
        return f"`{name}` takes one value on the command line, but {word!r} follows it. In a recipe, write {several}."
    return (
        f"`{name}` takes one value, but {word!r} follows it. A list is written as JSON ({argv[first]} "
        f"'{json.dumps(values)}'), and a text with spaces needs quotes."
    )


def field_types(types: tuple[type, ...]) -> dict[str, Any]:
    """The types of all fields of the dataclasses, with their ranges."""
    return {name: hint for kind in types for name, hint in types_of(kind).items()}


def field_of(word: str) -> str:
    """The field that a command-line word sets."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def read_fields(
    path: str | Path, types: tuple[type, ...], file: str = "recipe", setting: str = "--config"
) -> dict[str, Any]:
    """Reads a YAML file's fields as written.

    Args:
        path: Path of the file.
        types: Dataclasses that define the fields.
        file: What messages call the file.
        setting: The setting that names the file.

    Raises:
        ValueError: The file cannot be read, or is not a mapping of fields to values.
    """
    hints = {name: hint for kind in types for name, hint in yaml_types_of(kind).items()}
    return read_mapping(path, hints, file, setting)
