"""Runs several methods on the same inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..signals.base import Signal
from . import CreditInputs, CreditMethod, Paper
from .registry import build_credit


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

    def signals(self) -> tuple[Signal, ...]:
        return tuple(dict.fromkeys(signal for method in self.methods for signal in build_credit(method).signals()))

    def weights(self, inputs: CreditInputs) -> None:
        return None

    def token_advantages(self, advantages, weights, inputs):
        return advantages


def labelled(methods: Sequence[str | Mapping | CreditMethod]) -> dict[str, CreditMethod]:
    """Methods by label: the name, plus the parameters that differ if several methods share it."""
    built = [build_credit(method) for method in methods]
    labels: dict[str, CreditMethod] = {}
    for method in built:
        label = method.name
        others = [other.to_dict() for other in built if other.name == label]
        if len(others) > 1:
            label += "".join(
                f" {name}={value}"
                for name, value in method.to_dict().items()
                if name != "method" and any(other.get(name, method) != value for other in others)
            )
        if label in labels:
            raise ValueError(f"The method {label!r} is listed twice.")
        labels[label] = method
    return labels


def inputs_of(method: CreditMethod, inputs: CreditInputs) -> CreditInputs:
    """The inputs with only the signals that `method` requests."""
    return replace(inputs, signals={signal: inputs.signals[signal] for signal in method.signals()})


def credit_of(
    methods: Mapping[str, CreditMethod], inputs: CreditInputs, advantages: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(B, T) weights and (B, T) token advantages by method label. Methods without weights have no weights entry."""
    weights, token_advantages = {}, {}
    for label, method in methods.items():
        seen = inputs_of(method, inputs)
        found = method.weights(seen)
        if found is not None:
            weights[label] = found
        result = method.token_advantages(advantages, found, seen)
        result = result.unsqueeze(1).expand_as(inputs.mask) if result.dim() == 1 else result
        token_advantages[label] = torch.where(inputs.mask, result, 0.0)
    return weights, token_advantages
