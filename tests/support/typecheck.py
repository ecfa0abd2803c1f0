"""Checks the shapes and dtypes in signatures at each call. `conftest.py` installs it before importing the package."""

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray


_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for type checkers


def _has_shape(hint) -> bool:
    parts = getattr(hint, "__args__", ())
    return any(map(_has_shape, parts)) or (isinstance(hint, type) and issubclass(hint, AbstractArray))


def check(function):
    """Checks functions with a shape in their signature. Settings have checks of their own, with messages for users."""
    return _beartype(function) if any(map(_has_shape, function.__annotations__.values())) else function
