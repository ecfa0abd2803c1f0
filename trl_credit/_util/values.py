"""Parses values that users write."""

import json
from collections.abc import Mapping
from typing import Any

from .yaml import load_mapping


# As YAML 1.1 and command lines have them
TRUE, FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")


def is_true(value: Any) -> bool:
    """Whether a value, as written, is yes."""
    return str(value).lower() in TRUE


def is_false(value: Any) -> bool:
    """Whether a value, as written, is no. One that is missing is neither yes nor no."""
    return str(value).lower() in FALSE


def parsed(name: str, text: str, of: Any = None) -> Any:
    """The value in JSON text or, as in a recipe, in YAML: `{num_terms: 5}`.

    Args:
        name: The field, for messages.
        text: The text.
        of: A mapping's dataclass, in whose types YAML is read.

    Raises:
        ValueError: The text is neither.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"`{name}` is nested too deeply.") from None
    except json.JSONDecodeError as error:
        problem = f"JSON: {error.msg} at character {error.pos + 1} of {text!r}"
    try:
        found = load_mapping(f"{name}: {text}", {name: of})
    except ValueError as error:
        if '"' not in text:  # so it was not meant as JSON
            reason = str(error).removeprefix("not valid YAML: ").partition(" (line ")[0]
            problem = f"YAML: {reason} in {text!r}"
        raise ValueError(f"`{name}` is not valid {problem}.") from None
    if found[name] is None and text.strip().lower() not in ("null", "~"):  # nothing, or a comment
        raise ValueError(f"`{name}` is empty: {text!r}.")
    if list(found) != [name]:
        raise ValueError(f"`{name}` must be one value, got {text!r}.")
    _check_colons(name, found[name])
    return found[name]


def _check_colons(name: str, value: Any) -> None:
    """Raises `ValueError` for `{a:1}`, which to YAML is the key `a:1`."""
    if isinstance(value, list):
        for item in value:
            _check_colons(name, item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is None and isinstance(key, str) and ":" in key:
                raise ValueError(f"`{name}`: write a space after the colon of {key!r}.")
            _check_colons(name, inner)


def mapping_of(name: str, value: dict | str | None, of: type | None = None) -> dict | None:
    """The mapping in a field, which is text on the command line.

    Args:
        name: The field.
        value: The mapping, or JSON or YAML text of one.
        of: As in [`parsed`].

    Raises:
        ValueError: It is neither a mapping nor text of one.
    """
    example = "Write a mapping, such as '{name: value}' (JSON or YAML)."
    if isinstance(value, str):
        try:
            value = parsed(name, value, of)
        except ValueError as error:
            raise ValueError(f"{error} {example}") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping, got {value!r}. {example}")
    return value
