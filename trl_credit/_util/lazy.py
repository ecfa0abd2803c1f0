"""Package names that are imported on first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562), which import a name's module on first use.

    Args:
        package: The package's `__name__`.
        homes: Each name's module, relative to the package (`.trainer.grpo`).
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name], package), name)
        vars(importlib.import_module(package))[name] = value
        return value

    return get, lambda: sorted({*vars(importlib.import_module(package)), *homes})
