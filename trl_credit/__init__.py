"""Token-level credit assignment for TRL's GRPOTrainer."""

from ._version import __version__, warn_if_untested


warn_if_untested()

from .config import CreditGRPOConfig  # noqa: E402
from .methods import DGPO, GCPO, METHODS, CreditInputs, CreditMethod, Paper, Uniform, build_credit  # noqa: E402
from .methods.base import mean_one  # noqa: E402
from .signals import NegativePromptLogps, PolicyForward, ReferenceHellinger, Signal, SignalSource  # noqa: E402
from .trainer import CreditGRPOTrainer, DGPOTrainer, GCPOTrainer  # noqa: E402


__all__ = [
    "DGPO",
    "GCPO",
    "METHODS",
    "CreditGRPOConfig",
    "CreditGRPOTrainer",
    "CreditInputs",
    "CreditMethod",
    "DGPOTrainer",
    "GCPOTrainer",
    "NegativePromptLogps",
    "Paper",
    "PolicyForward",
    "ReferenceHellinger",
    "Signal",
    "SignalSource",
    "Uniform",
    "__version__",
    "build_credit",
    "mean_one",
]
