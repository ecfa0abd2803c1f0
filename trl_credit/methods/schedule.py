"""Numbers that may change with the updates, such as a term's coefficient."""

import math
from collections.abc import Mapping
from typing import Any

from .._util.text import nearest


KEYS = ("from", "to", "updates", "start")


def check_schedule(value: float | Mapping[str, Any], method: str, field: str) -> None:
    """Raises `ValueError` unless `value`, a parameter of a method, is a finite number or a schedule (see [`value_at`])."""
    field = f"credit method {method!r}: `{field}`"
    if not isinstance(value, Mapping):
        if not math.isfinite(value):
            raise ValueError(f"{field} must be finite, got {value!r}.")
        return
    form = "Write {from: 0.0, to: 1.0, updates: 100}, with `start: N` for N updates before it begins."
    for key in value:
        if key not in KEYS:
            raise ValueError(f"{field} has no key {key!r}. {nearest(key, KEYS)} {form}")
    if missing := [key for key in KEYS[:3] if key not in value]:
        raise ValueError(f"{field} lacks {', '.join(f'`{key}`' for key in missing)}. {form}")
    for key in ("from", "to"):
        if isinstance(value[key], bool) or not isinstance(value[key], (int, float)) or not math.isfinite(value[key]):
            raise ValueError(f"{field}: `{key}` must be a finite number, got {value[key]!r}.")
    for key, least in (("updates", 1), ("start", 0)):
        number = value.get(key, least)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{field}: `{key}` must be a whole number of at least {least}, got {number!r}.")


def value_at(value: float | Mapping[str, Any], step: int) -> float:
    """The value after `step` updates.

    Args:
        value: A number, or a mapping: `from`, `to`, `updates` (over how many the value moves in a straight line) and
            optionally `start` (how many it first stays at `from`).
        step: Number of updates so far.
    """
    if not isinstance(value, Mapping):
        return float(value)
    share = min(max((step - value.get("start", 0)) / value["updates"], 0.0), 1.0)
    return float(value["from"]) + share * (float(value["to"]) - float(value["from"]))


def ever_nonzero(value: float | Mapping[str, Any]) -> bool:
    """False if the value is 0 at every step."""
    return any((value["from"], value["to"])) if isinstance(value, Mapping) else value != 0
