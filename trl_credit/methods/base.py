"""Base class of credit methods: parameters, required signals, and a pure function from (B, T) tensors to weights."""

import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.imports import dotted_path
from .._util.moved import moved_names
from .._util.text import nearest
from ..signals.base import Signal
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION


__getattr__ = moved_names(__name__)


@dataclass(frozen=True)
class Paper:
    """The paper that defines a method: title, arXiv id and BibTeX entry."""

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
    """Base of all credit methods. Subclasses are frozen dataclasses whose fields are the method's parameters.

    Most methods *reweight*: [`weights`] returns non-negative weights with mean 1 over each completion's mask, and the
    token advantage is `A_i * w_i,t`. Any other method sets `reweights = False` and overrides [`token_advantages`]; its
    [`weights`] may return `None`.

    Class attributes:
        name: The name in recipes and on the command line.
        paper: Citation, for `trl-credit methods` and the model card.
        differences: Differences from the paper or its official code, one sentence each, in order.
        reweights: True if the weights have mean 1 over each completion. A sequence-level ratio would then cancel them,
            because its gradient sums over the completion.
        mean_one: False if the weights are positive but have another mean; metrics then do not take it for 1.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    differences: ClassVar[tuple[str, ...]] = ()
    reweights: ClassVar[bool] = True
    mean_one: ClassVar[bool] = True

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
        """Raises `ValueError` if a parameter is out of range. Types are already checked."""

    def require(self, condition: bool, field: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"credit method {self.name!r}: `{field}` must be {rule}, got {getattr(self, field)!r}.")

    def signals(self) -> tuple[Signal, ...]:
        """Signals the trainer must compute, besides the policy's own log-probs and entropy."""
        return ()

    @abstractmethod
    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
        """Returns (B, T) float weights: >= 0, 0 off the mask, mean 1 over each completion's mask, no gradient.

        A completion's weights may depend only on its own inputs, because the trainer chooses which rows share a
        micro-batch.
        """

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"] | Float[Tensor, " batch"]:
        """Turns the (B,) sequence advantages into the (B, T) or (B,) advantages that TRL's loss uses."""
        return advantages.unsqueeze(1) * weights.to(advantages.dtype)

    @property
    def shapes_ratio(self) -> bool:
        """True if the weights enter through [`ratio_logps`]. The loss must then clip a ratio."""
        return False

    def ratio_logps(
        self,
        logps: Float[Tensor, "batch tokens"],
        old_logps: Float[Tensor, "batch tokens"],
        weights: Float[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens"]:
        """Returns the (B, T) log-probs from which the loss makes its ratio to `old_logps`. Called if [`shapes_ratio`].

        Args:
            logps: (B, T) the live policy's log-probs, with gradient.
            old_logps: (B, T) those of the policy that generated; `logps` without gradient if it is the live one.
            weights: (B, T) the method's weights; 1 in rows that need no credit.
        """
        return logps

    @property
    def credits_zero_advantage(self) -> bool:
        """True if completions with zero advantage can still get token advantages and so must not be skipped."""
        return not self.reweights or type(self).token_advantages is not CreditMethod.token_advantages

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """(B, T) tensors to log as `credit/<name>`, each averaged over the finite entries on the mask."""
        return {}

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """True if the weights were effectively uniform, which defeats the method's purpose.

        Args:
            metrics: Averages over some completions: `credit/effective_fraction`, and [`metrics`] as `credit/<name>`.

        Returns:
            `None` if unknown: no completion was weighted, or the method has no weights.
        """
        fraction = metrics.get("credit/effective_fraction")
        return None if fraction is None or math.isnan(fraction) else fraction > UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        """Advice for when the weights are effectively uniform on `inputs`, phrased to end a sentence."""
        return f"`trl-credit methods {self.to_dict()['method']}` shows its parameters."

    def to_dict(self) -> dict[str, Any]:
        """The mapping from which `build_credit` rebuilds this method: every parameter, and the method's name (a dotted
        path if the class is not registered)."""
        from .registry import METHODS

        cls = type(self)
        name = self.name if METHODS.get(self.name) is cls else dotted_path(cls)
        return {"method": name, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> "CreditMethod":
        """Builds the method from a mapping of its parameters. Unknown or missing keys raise `ValueError`."""
        known = {field.name: field for field in fields(cls)}
        for key in parameters:
            if key not in known:
                raise ValueError(f"credit method {cls.name!r} has no parameter {key!r}. {nearest(key, known)}")
        for key, field in known.items():
            if key not in parameters and field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"credit method {cls.name!r} needs a value for `{key}`.")
        return cls(**parameters)
