"""Token-level credit assignment for TRL's GRPOTrainer."""

from typing import TYPE_CHECKING

from ._util import moved
from ._util.lazy import lazy_names
from ._version import __version__


if TYPE_CHECKING:
    from .methods.base import CreditMethod, Paper
    from .methods.certainty import Certainty
    from .methods.delta import DelTA
    from .methods.dgpo import DGPO
    from .methods.fipo import FIPO
    from .methods.forking import Forking
    from .methods.gcpo import GCPO
    from .methods.gigpo import GiGPO
    from .methods.inputs import CreditInputs
    from .methods.mix import Mix
    from .methods.ops import mean_one
    from .methods.otb import OTB
    from .methods.pcpo import PCPO
    from .methods.random import RandomTokens
    from .methods.registry import METHODS, build_credit
    from .methods.rlcsd import RLCSD
    from .methods.rlsd import RLSD
    from .methods.rollout import Continuations, Rollout, SegmentValues
    from .methods.shuffled import Shuffled
    from .methods.teacher import Teacher
    from .methods.turn import TurnRewards
    from .methods.uniform import Uniform
    from .methods.vine import Vine
    from .methods.vppo import VPPO
    from .signals.base import PolicyForward, Signal, SignalSource
    from .signals.damaged_image import DamagedImageLogps
    from .signals.hint import HintLogps
    from .signals.negative_prompt import NegativePromptLogps
    from .signals.other_model import OtherModelLogps
    from .signals.reference import ReferenceHellinger
    from .signals.sampler_steps import StepShare
    from .signals.second_prompt import HasSecondPrompt
    from .signals.sibling import SiblingLogps
    from .signals.thought_tokens import ThoughtTokens
    from .trainer.async_grpo import AsyncCreditGRPOConfig, AsyncCreditGRPOTrainer
    from .trainer.config import CreditGRPOConfig
    from .trainer.diffusion import DiffusionGRPOTrainer, PCPOTrainer
    from .trainer.diffusion_config import DiffusionGRPOConfig
    from .trainer.grpo import CreditGRPOTrainer, DGPOTrainer, GCPOTrainer
    from .trainer.image_tokens import ImageTokenGRPOTrainer
    from .trainer.image_tokens_config import ImageTokenGRPOConfig

# Importing TRL takes seconds, so `trl-credit --help` and the evaluation's statistics do without it
_HOMES = {
    "AsyncCreditGRPOConfig": ".trainer.async_grpo",
    "AsyncCreditGRPOTrainer": ".trainer.async_grpo",
    "DGPO": ".methods.dgpo",
    "FIPO": ".methods.fipo",
    "Forking": ".methods.forking",
    "DelTA": ".methods.delta",
    "GCPO": ".methods.gcpo",
    "METHODS": ".methods.registry",
    "Continuations": ".methods.rollout",
    "CreditGRPOConfig": ".trainer.config",
    "CreditGRPOTrainer": ".trainer.grpo",
    "CreditInputs": ".methods.inputs",
    "CreditMethod": ".methods.base",
    "DGPOTrainer": ".trainer.grpo",
    "DamagedImageLogps": ".signals.damaged_image",
    "DiffusionGRPOConfig": ".trainer.diffusion_config",
    "DiffusionGRPOTrainer": ".trainer.diffusion",
    "GCPOTrainer": ".trainer.grpo",
    "GiGPO": ".methods.gigpo",
    "ImageTokenGRPOConfig": ".trainer.image_tokens_config",
    "ImageTokenGRPOTrainer": ".trainer.image_tokens",
    "Certainty": ".methods.certainty",
    "OTB": ".methods.otb",
    "PCPO": ".methods.pcpo",
    "OtherModelLogps": ".signals.other_model",
    "PCPOTrainer": ".trainer.diffusion",
    "RLCSD": ".methods.rlcsd",
    "RLSD": ".methods.rlsd",
    "HasSecondPrompt": ".signals.second_prompt",
    "HintLogps": ".signals.hint",
    "NegativePromptLogps": ".signals.negative_prompt",
    "Mix": ".methods.mix",
    "Paper": ".methods.base",
    "RandomTokens": ".methods.random",
    "Rollout": ".methods.rollout",
    "SegmentValues": ".methods.rollout",
    "Shuffled": ".methods.shuffled",
    "PolicyForward": ".signals.base",
    "ReferenceHellinger": ".signals.reference",
    "SiblingLogps": ".signals.sibling",
    "Signal": ".signals.base",
    "SignalSource": ".signals.base",
    "StepShare": ".signals.sampler_steps",
    "Teacher": ".methods.teacher",
    "ThoughtTokens": ".signals.thought_tokens",
    "TurnRewards": ".methods.turn",
    "Uniform": ".methods.uniform",
    "Vine": ".methods.vine",
    "VPPO": ".methods.vppo",
    "build_credit": ".methods.registry",
    "mean_one": ".methods.ops",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
moved.install()

__all__ = [
    "DGPO",
    "FIPO",
    "GCPO",
    "METHODS",
    "OTB",
    "PCPO",
    "RLCSD",
    "RLSD",
    "VPPO",
    "AsyncCreditGRPOConfig",
    "AsyncCreditGRPOTrainer",
    "Certainty",
    "Continuations",
    "CreditGRPOConfig",
    "CreditGRPOTrainer",
    "CreditInputs",
    "CreditMethod",
    "DGPOTrainer",
    "DamagedImageLogps",
    "DelTA",
    "DiffusionGRPOConfig",
    "DiffusionGRPOTrainer",
    "Forking",
    "GCPOTrainer",
    "GiGPO",
    "HasSecondPrompt",
    "HintLogps",
    "ImageTokenGRPOConfig",
    "ImageTokenGRPOTrainer",
    "Mix",
    "NegativePromptLogps",
    "OtherModelLogps",
    "PCPOTrainer",
    "Paper",
    "PolicyForward",
    "RandomTokens",
    "ReferenceHellinger",
    "Rollout",
    "SegmentValues",
    "Shuffled",
    "SiblingLogps",
    "Signal",
    "SignalSource",
    "StepShare",
    "Teacher",
    "ThoughtTokens",
    "TurnRewards",
    "Uniform",
    "Vine",
    "__version__",
    "build_credit",
    "mean_one",
]
