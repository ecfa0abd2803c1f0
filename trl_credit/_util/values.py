"""Parses values that users write."""

import json


def mapping_of(name: str, value: dict | str | None) -> dict | None:
    """The mapping in a field, which is JSON text on the command line.

    Raises:
        ValueError: It is neither a mapping nor JSON of one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is not valid JSON: {error.msg}.") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping, got {value!r}.")
    return value
