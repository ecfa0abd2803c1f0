"""Numbers that may change with the updates, such as a term's coefficient.

A schedule is a list of points `[update, value]`, between which the value moves in straight lines: `[[0, 0.0], [100, 1.0],
[500, 0.0]]` warms up and decays. Before the first point and after the last one it stays. A single line may be a mapping:
`{from: 1.0, to: 0.0, updates: 100}`, with `start: N` for N updates before it begins.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from .._util.text import nearest


KEYS = ("from", "to", "updates", "start")
_FORM = "Write {from: 0.0, to: 1.0, updates: 100}, with `start: N` for N updates before it begins."
_POINTS = "Write points [update, value], such as [[0, 0.0], [100, 1.0], [500, 0.0]]."


def check_schedule(value: float | Mapping[str, Any] | list, method: str, field: str) -> None:
    """Raises `ValueError` unless `value`, a parameter of a method, is a finite number or a schedule (see the module)."""
    field = f"credit method {method!r}: `{field}`"
    if isinstance(value, Mapping):
        _check_line(value, field)
    elif isinstance(value, list):
        _check_points(value, field)
    elif not math.isfinite(value):
        raise ValueError(f"{field} must be finite, got {value!r}.")


def _check_line(value: Mapping[str, Any], field: str) -> None:
    for key in value:
        if key not in KEYS:
            raise ValueError(f"{field} has no key {key!r}. {nearest(key, KEYS)} {_FORM}")
    if missing := [key for key in KEYS[:3] if key not in value]:
        raise ValueError(f"{field} lacks {', '.join(f'`{key}`' for key in missing)}. {_FORM}")
    for key in ("from", "to"):
        if not _is_finite(value[key]):
            raise ValueError(f"{field}: `{key}` must be a finite number, got {value[key]!r}.")
    for key, least in (("updates", 1), ("start", 0)):
        if not _is_count(value.get(key, least), least):
            raise ValueError(f"{field}: `{key}` must be a whole number of at least {least}, got {value[key]!r}.")


def _check_points(value: list, field: str) -> None:
    if len(value) < 2:
        raise ValueError(f"{field} must have at least two points, got {value!r}. {_POINTS}")
    before = -1
    for place, point in enumerate(value):
        name = f"{field}: point {place + 1}"
        if not isinstance(point, (list, tuple)) or len(point) != 2:
            raise ValueError(f"{name} must be [update, value], got {point!r}. {_POINTS}")
        update, number = point
        if not _is_count(update, 0) or update <= before:
            after = f" above that of the point before ({before})" if place else ""
            raise ValueError(
                f"{name}: the update must be a whole number of at least 0{after}, got {update!r}. {_POINTS}"
            )
        if not _is_finite(number):
            raise ValueError(f"{name}: the value must be a finite number, got {number!r}.")
        before = update


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_schedule(value: Any) -> bool:
    """True if a checked parameter is a schedule, not a number."""
    return isinstance(value, (Mapping, list))


def points_of(value: float | Mapping[str, Any] | list) -> list[tuple[int, float]]:
    """The points of a number or schedule: updates and values, in order."""
    if isinstance(value, Mapping):
        start = value.get("start", 0)
        return [(start, float(value["from"])), (start + value["updates"], float(value["to"]))]
    return [(update, float(number)) for update, number in value] if isinstance(value, list) else [(0, float(value))]


def value_at(value: float | Mapping[str, Any] | list, step: int) -> float:
    """The value after `step` updates."""
    points = points_of(value)
    for (first, before), (last, after) in itertools.pairwise(points):
        if step < last:
            return before + max((step - first) / (last - first), 0.0) * (after - before)
    return points[-1][1]


def ever_nonzero(value: float | Mapping[str, Any] | list) -> bool:
    """False if the value is 0 at every step."""
    return any(number for _, number in points_of(value))
