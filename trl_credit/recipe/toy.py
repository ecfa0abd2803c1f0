"""Credit methods for the embedded model."""

from collections.abc import Mapping
from typing import Any

from ..methods import GCPO
from ..methods.registry import build_credit
from ..toy.arithmetic import NEGATIVE_MARK


def quickstart_credit(method: str | Mapping) -> dict[str, Any]:
    """A method's full mapping. GCPO's default negative prompt becomes the one that the embedded model knows, within a list
    of methods and a shuffled one too."""
    credit = build_credit(method).to_dict()
    for key in ("parts", "of"):
        if isinstance(credit.get(key), list):
            credit[key] = [quickstart_credit(part) for part in credit[key]]
        elif key in credit:
            credit[key] = quickstart_credit(credit[key])
    if credit["method"] == GCPO.name and credit["negative_prompt"] == GCPO.negative_prompt:
        credit["negative_prompt"] = NEGATIVE_MARK + "{prompt}"
    return credit


def default_credit(method: str | Mapping, model: str | None) -> str | Mapping:
    """The method as given, or [`quickstart_credit`] of it for the embedded model."""
    return quickstart_credit(method) if model == "trl_credit:quickstart" else method
