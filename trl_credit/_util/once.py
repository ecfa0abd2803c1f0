"""Values that several readers of an object share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar


Value = TypeVar("Value")


class Once:
    """Base of objects that several hooks read in turn: what one of them has computed is there for the next.

    The values are those of this object; `dataclasses.replace` makes one without them.
    """

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` returned when it was first called with this key."""
        kept = self.__dict__.setdefault("_kept", {})
        if key not in kept:
            kept[key] = compute()
        return kept[key]

    def keep_from(self, other: Once) -> None:
        """Takes over what another object has computed, one that differs only in what none of it depends on."""
        self.__dict__["_kept"] = dict(other.__dict__.get("_kept", {}))
