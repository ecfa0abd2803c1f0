"""Finds parameters out of range without importing the method, and so neither torch nor TRL.

The method's `validate` is run from its source, a statement at a time, on an object that has the parameters and nothing else.
A statement that needs more, such as a function of a signal's module, is left out: it speaks up when the method is built.
"""

import ast
import contextlib
import math
from collections.abc import Mapping
from typing import Any

from .._util.text import nearest
from .cards import source_of
from .schedule import check_schedule, ever_nonzero, points_of


# What a statement may use, besides the module's literal constants
_NAMES = {
    "math": math,
    "nearest": nearest,
    "check_schedule": check_schedule,
    "ever_nonzero": ever_nonzero,
    "points_of": points_of,
}


def require(method: str, condition: bool, field: str, value: Any, rule: str) -> None:
    """Raises `ValueError` that a method's parameter breaks a rule, unless the condition holds."""
    if not condition:
        raise ValueError(f"credit method {method!r}: `{field}` must be {rule}, got {value!r}.")


class _Parameters:
    """Stands in for the method's object; a class for each method has its defaults."""

    name: str

    def require(self, condition: bool, field: str, rule: str) -> None:
        require(self.name, condition, field, getattr(self, field), rule)


def check_ranges(method: str, given: Mapping[str, Any]) -> None:
    """Raises the `ValueError` of a registered method's `validate`, as far as it can be known.

    Args:
        method: The method's name.
        given: Its parameters that are set, in their types.
    """
    source, cls = source_of(method)
    module = ast.parse(source)
    (body,) = (node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls)
    constants = _literals(node for node in module.body if isinstance(node, ast.Assign))
    defaults = _literals(node for node in body if isinstance(node, ast.AnnAssign) and node.value is not None)
    own = type(cls, (_Parameters,), {"name": method, **defaults})()
    vars(own).update(given)
    names = {**_NAMES, **constants, "self": own}
    checks = (node.body for node in body if isinstance(node, ast.FunctionDef) and node.name == "validate")
    for statement in next(checks, []):
        try:
            exec(compile(ast.Module([statement], []), f"<validate of {method}>", "exec"), names)
        except ValueError:
            raise
        except Exception:  # needs what is not here
            continue


def _literals(assignments: Any) -> dict[str, Any]:
    """Names and values of assignments of literals."""
    found = {}
    for node in assignments:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        with contextlib.suppress(ValueError):
            value = ast.literal_eval(node.value)
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found
