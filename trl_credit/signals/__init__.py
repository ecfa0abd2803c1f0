"""Signals: tensors that credit methods ask the trainer to compute."""

from .base import PolicyForward, Signal, SignalSource
from .hint import HintLogps
from .negative_prompt import NegativePromptKL, NegativePromptLogps
from .other_model import OtherModelLogps
from .reference import ReferenceHellinger
from .sampler_steps import StepShare
from .second_prompt import HasSecondPrompt
from .sibling import SiblingLogps
from .thought_tokens import ThoughtTokens


__all__ = [
    "HasSecondPrompt",
    "HintLogps",
    "NegativePromptKL",
    "NegativePromptLogps",
    "OtherModelLogps",
    "PolicyForward",
    "ReferenceHellinger",
    "SiblingLogps",
    "Signal",
    "SignalSource",
    "StepShare",
    "ThoughtTokens",
]
