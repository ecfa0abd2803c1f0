"""Credit methods: how a completion's advantage is distributed over its tokens.

To add a method, write a module with a [`CreditMethod`] subclass and add one line to [`TABLE`].
"""

from typing import TYPE_CHECKING

from .._util.lazy import lazy_names
from .table import TABLE


if TYPE_CHECKING:
    from .base import CreditMethod, Paper
    from .certainty import Certainty
    from .delta import DelTA
    from .dgpo import DGPO
    from .fipo import FIPO
    from .forking import Forking
    from .gcpo import GCPO
    from .gigpo import GiGPO
    from .inputs import CreditInputs
    from .mix import Mix
    from .otb import OTB
    from .pcpo import PCPO
    from .random import RandomTokens
    from .registry import METHODS, build_credit, get_method_class
    from .rlcsd import RLCSD
    from .rlsd import RLSD
    from .rollout import Rollout
    from .shuffled import Shuffled
    from .teacher import Teacher
    from .turn import TurnRewards
    from .uniform import Uniform
    from .vine import Vine
    from .vppo import VPPO

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DGPO": ".dgpo",
        "FIPO": ".fipo",
        "Forking": ".forking",
        "DelTA": ".delta",
        "GCPO": ".gcpo",
        "Certainty": ".certainty",
        "OTB": ".otb",
        "PCPO": ".pcpo",
        "RLCSD": ".rlcsd",
        "RLSD": ".rlsd",
        "METHODS": ".registry",
        "CreditInputs": ".inputs",
        "CreditMethod": ".base",
        "Mix": ".mix",
        "Paper": ".base",
        "RandomTokens": ".random",
        "Rollout": ".rollout",
        "Shuffled": ".shuffled",
        "Teacher": ".teacher",
        "GiGPO": ".gigpo",
        "TurnRewards": ".turn",
        "Uniform": ".uniform",
        "Vine": ".vine",
        "VPPO": ".vppo",
        "build_credit": ".registry",
        "get_method_class": ".registry",
    },
)

__all__ = [
    "DGPO",
    "FIPO",
    "GCPO",
    "METHODS",
    "OTB",
    "PCPO",
    "RLCSD",
    "RLSD",
    "TABLE",
    "VPPO",
    "Certainty",
    "CreditInputs",
    "CreditMethod",
    "DelTA",
    "Forking",
    "GiGPO",
    "Mix",
    "Paper",
    "RandomTokens",
    "Rollout",
    "Shuffled",
    "Teacher",
    "TurnRewards",
    "Uniform",
    "Vine",
    "build_credit",
    "get_method_class",
]
