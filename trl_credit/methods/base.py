"""The base of credit methods: parameters, the signals they need, and a pure function of (B, T) tensors."""

import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch

from .._util.imports import dotted_path
from .._util.moved import moved_names
from .._util.text import nearest
from ..signals.base import Signal
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION


__getattr__ = moved_names(__name__)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from: title, arXiv id and BibTeX entry."""

    title: str
    id: str
    citation: str


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


@dataclass(frozen=True)
class CreditMethod(ABC):
    """Base of all credit methods; subclasses are frozen dataclasses whose fields are the method's parameters.

    Most methods *reweight*: they implement [`weights`], non-negative and with mean 1 over each completion's mask, and
    the token advantage is `A_i * w_i,t`. A method that is not of this form sets `reweights = False`, may return `None`
    for the weights, and overrides [`token_advantages`].

    Class attributes:
        name: The name in recipes and on the command line.
        paper: Citation, for `trl-credit methods` and the model card.
        differences: What differs from the paper or its official code, one sentence each, in order.
        reweights: Whether weights have mean 1 over each completion, so that anything that sums the ratio over the
            completion would cancel them.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    differences: ClassVar[tuple[str, ...]] = ()
    reweights: ClassVar[bool] = True

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if isinstance(value, str) and _matches(0.0, hint):
                # YAML reads `1e-3` as text
                try:
                    value = float(value)
                    object.__setattr__(self, field.name, value)
                except ValueError:
                    pass
            if not _matches(value, hint):
                expected = hint.__name__ if isinstance(hint, type) else str(hint)
                raise TypeError(
                    f"credit method {self.name!r}: `{field.name}` must be {expected}, got {value!r} "
                    f"({type(value).__name__})."
                )
        self.validate()

    def validate(self) -> None:  # noqa: B027 (most methods have nothing to check)
        """Raises `ValueError` for parameters out of range; types have been checked already."""

    def require(self, condition: bool, field: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"credit method {self.name!r}: `{field}` must be {rule}, got {getattr(self, field)!r}.")

    def signals(self) -> tuple[Signal, ...]:
        """The signals beyond the policy's own log-probs and entropy that the trainer must compute."""
        return ()

    @abstractmethod
    def weights(self, inputs: CreditInputs) -> torch.Tensor | None:
        """(B, T) float weights: >= 0, 0 off the mask, mean 1 over each completion's mask, no gradient.

        Those of a completion depend on its own inputs only: which others are in the micro-batch is the trainer's choice.
        """

    def token_advantages(
        self, advantages: torch.Tensor, weights: torch.Tensor | None, inputs: CreditInputs
    ) -> torch.Tensor:
        """The advantages that enter TRL's loss, (B, T) or (B,), from the (B,) sequence advantages."""
        return advantages.unsqueeze(1) * weights.to(advantages.dtype)

    @property
    def credits_zero_advantage(self) -> bool:
        """True if completions whose advantage is zero still get token advantages, so that none may be skipped."""
        return not self.reweights or type(self).token_advantages is not CreditMethod.token_advantages

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """(B, T) quantities to log as `credit/<name>`, each averaged over the mask's finite entries."""
        return {}

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """True if the method was uniform in effect, which defeats its purpose.

        Args:
            metrics: Of some completions: `credit/effective_fraction`, and those of [`metrics`] as `credit/<name>`.

        Returns:
            `None` where that cannot be said: nothing was weighted, or the method has no weights.
        """
        fraction = metrics.get("credit/effective_fraction")
        return None if fraction is None or math.isnan(fraction) else fraction > UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        """The advice for a method that is uniform in effect on `inputs`: the end of a sentence."""
        return f"`trl-credit methods {self.to_dict()['method']}` shows its parameters."

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `build_credit` turns back into this method: its name (a dotted path for a class that is
        not registered) and every parameter."""
        from .registry import METHODS

        cls = type(self)
        name = self.name if METHODS.get(self.name) is cls else dotted_path(cls)
        return {"method": name, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> "CreditMethod":
        """Builds the method from a mapping of its parameters; unknown and missing keys are errors."""
        known = {field.name: field for field in fields(cls)}
        for key in parameters:
            if key not in known:
                raise ValueError(f"credit method {cls.name!r} has no parameter {key!r}. {nearest(key, known)}")
        for key, field in known.items():
            if key not in parameters and field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"credit method {cls.name!r} needs a value for `{key}`.")
        return cls(**parameters)
