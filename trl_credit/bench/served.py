"""Which methods the benchmark can serve: by what a method declares, not by its name."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..methods import CreditMethod
from ..methods.registry import METHODS
from .baselines import is_control


# Columns that the benchmark's problems have
COLUMNS = ("answer", "solution")
# The parameter that names another model, which a policy that was trained further can fill
_MODEL = "model"


def required_parameters(cls: type[CreditMethod]) -> list[str]:
    """Names of the parameters without a default."""
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]


def reason_left_out(method: CreditMethod) -> str | None:
    """Why the benchmark cannot score a method, to stand after its name; `None` if it can."""
    signals = method.signals()
    if "tokens" not in method.policies or any(signal.policy != "tokens" for signal in signals):
        return "weights the steps of an image model's sampler"
    if method.needs_old_policy:
        return "has no effect where every update is on-policy, as here"
    if any(part.needs_turns for part in method.components().values()):
        return "credits turns, and these completions have none"
    sources = [signal.source() for signal in signals]
    if any(source.needs_images for source in sources):
        return "reads images, and these prompts have none"
    unknown = [column for source in sources for column in source.columns if column not in COLUMNS]
    if unknown:
        return f"reads the column {unknown[0]!r}, and these problems have only {' and '.join(COLUMNS)}"
    return None


def served_methods(later: str | None) -> tuple[dict[str, str | Mapping[str, Any]], dict[str, str]]:
    """The registered methods that are scored by default, as they are given to `build_credit`, and the reasons of those left
    out.

    The controls are in neither: they are among the baselines.

    Args:
        later: What to write for the model of a method that needs another one; `None` if there is none.
    """
    served: dict[str, str | Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name, cls in METHODS.items():
        if is_control(cls):
            continue
        given = with_later(name, later)
        missing = [
            parameter for parameter in required_parameters(cls) if isinstance(given, str) or parameter not in given
        ]
        if missing == [_MODEL]:
            left_out[name] = "needs another model, which a run with drift has, or which `--methods` may name"
            continue
        if missing:
            left_out[name] = f"needs {' and '.join(missing)}, which `--methods` may give"
            continue
        reason = reason_left_out(cls.from_mapping({} if isinstance(given, str) else {_MODEL: given[_MODEL]}))
        if reason is None:
            served[name] = given
        else:
            left_out[name] = reason
    return served, left_out


def with_later(name: str, later: str | None) -> str | dict[str, Any]:
    """A registered method's name, or if it requires another model, a mapping that names it."""
    if later is not None and name in METHODS and _MODEL in required_parameters(METHODS[name]):
        return {"method": name, _MODEL: later}
    return name
