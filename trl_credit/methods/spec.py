"""Specifications of credit methods: how they are written, and which names, parameters and types they may have.

Needs no method, and so neither torch nor TRL: [`check_spec`] finds what is wrong with a specification at once, from the
methods' source. What depends on values is found when the method is built ([`~trl_credit.build_credit`]).
"""

import builtins
import contextlib
import functools
import json
import operator
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .._util.imports import is_dotted
from .._util.text import nearest
from .._util.values import parsed
from .table import MIX, TABLE


REQUIRED = "(required)"
# Messages
EMPTY_LIST = "`credit` is an empty list of methods. Name at least one, or leave `credit` out."
NESTED_LIST = "it is a list itself: write one list"


def read_spec(credit: Any) -> Any:
    """`credit`, with the mapping or list in JSON or, as in a recipe, YAML text parsed: `[gcpo, otb]`.

    Raises:
        ValueError: The text is neither.
    """
    if not (isinstance(credit, str) and credit.lstrip().startswith(("{", "["))):
        return credit
    try:
        return parsed("credit", credit)
    except ValueError as error:
        raise ValueError(
            f"{error} Write it as in a recipe, '{{method: dgpo, temperature: 0.5}}' or '[gcpo, dgpo]', or as JSON."
        ) from None


def name_of(credit: Mapping[str, Any]) -> str:
    """The method that a mapping names. Raises `ValueError` if it names none."""
    name = credit.get("method")
    if isinstance(name, str):
        return name
    if isinstance(name, Sequence) and len(credit) == 1:
        raise ValueError(
            f"`credit`: `method` is one method. Several are just the list: {json.dumps(name, default=str)}."
        )
    if isinstance(name, Sequence):
        written = json.dumps({**credit, "method": MIX, "parts": name}, default=str)
        raise ValueError(f"`credit`: `method` is one method. Several are the `parts` of {MIX!r}: {written}.")
    meant = next((key for key in credit if key in TABLE), None)  # as in {gcpo: {top_mass: 0.9}}
    if meant is not None and len(credit) == 1 and isinstance(credit[meant], (Mapping, type(None))):
        written = json.dumps({"method": meant, **(credit[meant] or {})}, default=str)
        raise ValueError(f"`credit` mapping has no `method` name: {dict(credit)}. Write {written}.")
    raise ValueError(f"`credit` mapping has no `method` name: {dict(credit)}. Add one. {nearest('', TABLE)}")


def check_name(name: str) -> None:
    """Raises `ValueError` unless the name is a registered method's or a path."""
    if name in (*TABLE, MIX):
        return
    if name.strip().lower() in ("", "null"):
        raise ValueError(f"`credit` is {name!r}, no method. Leave it out for `uniform`. {nearest('', TABLE)}")
    parts = [part for part in re.split(r"[\s,+]+", name) if part]
    if len(parts) > 1 and all(part in TABLE for part in parts):
        raise ValueError(
            f"Unknown credit method {name!r}. Several methods at once are a list, [{', '.join(parts)}]; several to compare "
            f"or inspect are words of their own, --methods {' '.join(parts)}."
        )
    if not is_dotted(name):
        raise ValueError(f"Unknown credit method {name!r}. {nearest(name, TABLE)}")


def check_kind(credit: Any) -> None:
    """Raises `TypeError` unless `credit` is the name of a method, a mapping or a list."""
    if not isinstance(credit, (str, Mapping, Sequence)):
        raise TypeError(
            f"`credit` must be the name of a method, a mapping, a list of those or a CreditMethod object, got {credit!r} "
            f"({type(credit).__name__})."
        )


def check_parameters(method: str, given: Collection[str], known: Collection[str], required: Collection[str]) -> None:
    """Raises `ValueError` if a parameter is unknown or missing.

    Args:
        method: Name of the method.
        given: Parameters that are set.
        known: All parameters.
        required: Those without a default.
    """
    for key in given:
        if key not in known:
            raise ValueError(f"credit method {method!r} has no parameter {key!r}. {nearest(key, known)}")
    for key in required:
        if key not in given:
            raise ValueError(
                f"credit method {method!r} needs a value for `{key}`. Write {{method: {method}, {key}: ...}}."
            )


@contextlib.contextmanager
def part_of_list(place: int) -> Iterator[None]:
    """Says of an error in which part of a list it is, by its place from 0."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"part {place + 1} of the list: {error}") from None


def converted(method: str, parameter: str, value: Any, hint: Any) -> Any:
    """A parameter's value in its type. Text that spells a number or a boolean becomes one: YAML 1.1 reads `1e-3` as text.

    Raises:
        TypeError: It has another type.
    """
    if isinstance(value, str) and _matches(0.0, hint):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, str) and _matches(True, hint) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not _matches(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint)
        quoted = (
            isinstance(value, str)
            and value.lstrip().startswith(("{", "["))
            and (_matches({}, hint) or _matches([], hint))
        )
        raise TypeError(
            f"credit method {method!r}: `{parameter}` must be {expected}, got {value!r} ({type(value).__name__})."
            + (" Write it without quotes." if quoted else "")
        )
    return value


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


def check_spec(credit: Any) -> None:
    """Finds what is wrong with the names, parameters and types of a specification, with the message of `build_credit`.

    Classes of your own and values out of range are left for that.

    Raises:
        ValueError, TypeError: As in [`~trl_credit.build_credit`].
    """
    credit = read_spec(credit)
    check_kind(credit)
    if isinstance(credit, str):
        _check_method(credit, {})
    elif isinstance(credit, Mapping):
        parameters = {key: value for key, value in credit.items() if key != "method"}
        _check_method(name_of(credit), parameters)
    elif len(credit) == 1:
        check_spec(credit[0])
    else:
        _check_parts(credit)


def _check_method(name: str, parameters: Mapping[str, Any]) -> None:
    from .cards import card_of

    check_name(name)
    if is_dotted(name):
        return
    known = {parameter.name: parameter for parameter in card_of(name).parameters}
    required = [key for key, parameter in known.items() if parameter.default == REQUIRED]
    check_parameters(name, parameters, known, required)
    for key, value in parameters.items():
        hint = _type(known[key].type)
        if hint is not None:
            converted(name, key, value, hint)
    if name == MIX and isinstance(parameters["parts"], list):
        _check_parts(parameters["parts"])


def _check_parts(parts: Sequence[Any]) -> None:
    if not parts:
        raise ValueError(EMPTY_LIST)
    for place, part in enumerate(parts):
        with part_of_list(place):
            check_spec(part)
    for part in map(read_spec, parts):
        several = isinstance(part, list) and len(part) > 1
        if several or (isinstance(part, Mapping) and part["method"] == MIX):
            raise ValueError(f"credit method {MIX!r} cannot be part of a list: {NESTED_LIST}.")


def _type(annotation: str) -> Any:
    """The type that an annotation of built-in types spells, such as `float | None`; `None` for others."""
    names = annotation.split(" | ")
    if not all(hasattr(builtins, name) for name in names):
        return None
    return functools.reduce(operator.or_, (getattr(builtins, name) for name in names))
