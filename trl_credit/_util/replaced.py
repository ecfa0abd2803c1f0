"""Attributes of an object that are others for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Replaces attributes of an object and puts back what it had, whatever they are by then."""
    with contextlib.ExitStack() as stack:
        for name, value in attributes.items():
            if name in vars(target):
                stack.callback(setattr, target, name, vars(target)[name])
            else:
                stack.callback(delattr, target, name)
            setattr(target, name, value)
        yield
