"""Credit methods: how a completion's advantage is distributed over its tokens.

To add a method, write a module with a [`CreditMethod`] subclass and add one line to [`TABLE`].
"""

from typing import TYPE_CHECKING

from .._util.lazy import lazy_names
from .table import TABLE


if TYPE_CHECKING:
    from .base import CreditMethod, Paper
    from .delta import DelTA
    from .dgpo import DGPO
    from .gcpo import GCPO
    from .gigpo import GiGPO
    from .inputs import CreditInputs
    from .otb import OTB
    from .pcpo import PCPO
    from .registry import METHODS, build_credit, get_method_class
    from .turn import TurnRewards
    from .uniform import Uniform

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DGPO": ".dgpo",
        "DelTA": ".delta",
        "GCPO": ".gcpo",
        "OTB": ".otb",
        "PCPO": ".pcpo",
        "METHODS": ".registry",
        "CreditInputs": ".inputs",
        "CreditMethod": ".base",
        "GiGPO": ".gigpo",
        "Paper": ".base",
        "TurnRewards": ".turn",
        "Uniform": ".uniform",
        "build_credit": ".registry",
        "get_method_class": ".registry",
    },
)

__all__ = [
    "DGPO",
    "GCPO",
    "METHODS",
    "OTB",
    "PCPO",
    "TABLE",
    "CreditInputs",
    "CreditMethod",
    "DelTA",
    "GiGPO",
    "Paper",
    "TurnRewards",
    "Uniform",
    "build_credit",
    "get_method_class",
]
