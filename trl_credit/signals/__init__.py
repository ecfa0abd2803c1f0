"""What credit methods can ask the trainer to compute."""

from .base import PolicyForward, Signal, SignalSource
from .negative_prompt import NegativePromptLogps
from .reference import ReferenceHellinger


__all__ = ["NegativePromptLogps", "PolicyForward", "ReferenceHellinger", "Signal", "SignalSource"]
