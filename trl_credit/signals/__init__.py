"""Signals: tensors that credit methods ask the trainer to compute."""

from .base import PolicyForward, Signal, SignalSource
from .negative_prompt import NegativePromptKL, NegativePromptLogps
from .reference import ReferenceHellinger
from .sampler_steps import StepShare


__all__ = [
    "NegativePromptKL",
    "NegativePromptLogps",
    "PolicyForward",
    "ReferenceHellinger",
    "Signal",
    "SignalSource",
    "StepShare",
]
