"""Runs several methods on the same inputs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..signals.base import Signal
from . import CreditInputs, CreditMethod, Paper
from .mix import inputs_of, rollout_stages, shared_continuations, shared_rows, shared_signals, weights_of
from .registry import build_credit
from .rollout import Continuations, Rollout


@dataclass(frozen=True)
class AllSignals(CreditMethod):
    """Requests the signals of several methods; each token gets its completion's advantage unchanged.

    Args:
        methods: The methods, as mappings.
    """

    methods: list

    name = "all_signals"
    paper = Paper(title="", id="", citation="")
    reweights = False

    @functools.cached_property
    def _built(self) -> list[CreditMethod]:
        return [build_credit(method) for method in self.methods]

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for method in self._built for need in method.rollout_needs))

    @property
    def has_rollout_stage(self) -> bool:
        return any(method.has_rollout_stage for method in self._built)

    def signals(self) -> tuple[Signal, ...]:
        return shared_signals(self._built)

    def continuations(self) -> tuple[Continuations, ...]:
        return shared_continuations(self._built)

    def rollout_rows(self, rollout: Rollout) -> torch.Tensor | None:
        return shared_rows(self._built, rollout)

    def rollout_stage(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        return rollout_stages(self._built, rollout)

    def weights(self, inputs: CreditInputs) -> None:
        return None

    def token_advantages(self, advantages, weights, inputs):
        return advantages


def title_of(method: CreditMethod) -> str:
    """A method's name; of a list, those of its parts."""
    return " + ".join(part.name for part in method.components().values())


def labelled(methods: Sequence[str | Mapping | CreditMethod]) -> dict[str, CreditMethod]:
    """Methods by label: the name (of a list, the names of its parts), plus the parameters that differ if several methods
    share it."""
    built = [build_credit(method) for method in methods]
    labels: dict[str, CreditMethod] = {}
    for method in built:
        label = title_of(method)
        others = [other.to_dict() for other in built if title_of(other) == label]
        if len(others) > 1:
            label += "".join(
                f" {name}={value}"
                for name, value in method.to_dict().items()
                if name != "method" and any(other.get(name, method) != value for other in others)
            )
        if label in labels:
            raise ValueError(f"The method {label!r} is listed twice. Leave one out, or change a parameter of it.")
        labels[label] = method
    return labels


def credit_of(
    methods: Mapping[str, CreditMethod], inputs: CreditInputs, advantages: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(B, T) weights and (B, T) token advantages by method label. Methods without weights have no weights entry."""
    weights, token_advantages = {}, {}
    for place, (label, method) in enumerate(methods.items()):
        seen = inputs_of(method, inputs, place)
        found = weights_of(method, seen, inputs)
        if found is not None:
            weights[label] = found
        result = method.token_advantages(advantages, found, seen)
        result = result.unsqueeze(1).expand_as(inputs.mask) if result.dim() == 1 else result
        token_advantages[label] = torch.where(inputs.mask, result, 0.0)
    return weights, token_advantages
