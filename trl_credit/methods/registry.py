"""Looks up and builds credit methods by name."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from .._util.imports import load_dotted
from .base import CreditMethod, Paper
from .mix import Mix
from .spec import check_kind, check_name, name_of, read_spec
from .table import MIX, TABLE


METHODS: dict[str, type[CreditMethod]] = {
    name: getattr(importlib.import_module(module, __package__), cls) for name, (module, cls) in TABLE.items()
}


def methods_for(policy: str) -> list[str]:
    """Names of the registered methods that work with a kind of policy, `"tokens"` or `"steps"`."""
    return [name for name, cls in METHODS.items() if policy in cls.policies]


def standalone_methods() -> list[str]:
    """Names of the registered methods that can score any completion of a language model as they are: without a parameter
    that must be set, rewards, a group, a column of the data, images or an older policy."""
    names = []
    for name in methods_for("tokens"):
        required = any(f.default is MISSING and f.default_factory is MISSING for f in fields(METHODS[name]))
        if required or METHODS[name].needs_old_policy:
            continue
        method = METHODS[name]()
        sources = [signal.source() for signal in method.signals()]
        needy = any(source.columns or source.needs_groups or source.needs_images for source in sources)
        if not method.has_rollout_stage and not needy:
            names.append(name)
    return names


def get_method_class(name: str) -> type[CreditMethod]:
    """The class of a registered method or of a path: `my_package.my_module.MyMethod` or `my_file.py:MyMethod`.

    Raises:
        ValueError: Unknown name (the message suggests the nearest one), a path that cannot be loaded or is not a
            `CreditMethod` subclass, or a class without `name` and `paper`.
    """
    if name in METHODS:
        return METHODS[name]
    if name == MIX:
        return Mix
    check_name(name)
    try:
        cls = load_dotted(name)
    except ImportError as error:
        raise ValueError(f"Cannot load the credit method {name!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, CreditMethod)):
        raise ValueError(f"{name!r} is not a subclass of trl_credit.CreditMethod.")
    if not (isinstance(getattr(cls, "name", None), str) and isinstance(getattr(cls, "paper", None), Paper)):
        raise ValueError(f"{name!r} needs the class attributes `name` (text) and `paper` (a trl_credit.Paper).")
    return cls


def build_credit(credit: "str | Mapping[str, Any] | Sequence | CreditMethod") -> CreditMethod:
    """Builds a credit method from the user's specification.

    Args:
        credit: A name (`"dgpo"`) or path of a class, a mapping (`{"method": "dgpo", "temperature": 0.5}`), a list of
            those ([`~trl_credit.methods.mix.Mix`]; a list of one is that method), a mapping or list as JSON or YAML text, or
            a method object, which is returned unchanged.

    Raises:
        ValueError: Invalid JSON, unknown method or parameter (the message suggests the nearest one), a missing
            parameter, or a value out of range.
        TypeError: `credit` is not text, a mapping or a method, or a parameter has the wrong type.
    """
    if isinstance(credit, CreditMethod):
        return credit
    credit = read_spec(credit)
    check_kind(credit)
    if isinstance(credit, str):
        return get_method_class(credit).from_mapping({})
    if isinstance(credit, Mapping):
        cls = get_method_class(name_of(credit))
        return cls.from_mapping({key: value for key, value in credit.items() if key != "method"})
    return build_credit(credit[0]) if len(credit) == 1 else Mix(list(credit))
