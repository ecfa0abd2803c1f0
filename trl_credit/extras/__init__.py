"""TRL's GRPOTrainer with dynamic sampling, exact resume and guards, independent of credit."""

from typing import TYPE_CHECKING

from .._util.lazy import lazy_names


if TYPE_CHECKING:
    from .config import GRPOExtrasConfig
    from .trainer import GRPOExtrasTrainer

__getattr__, __dir__ = lazy_names(__name__, {"GRPOExtrasConfig": ".config", "GRPOExtrasTrainer": ".trainer"})

__all__ = ["GRPOExtrasConfig", "GRPOExtrasTrainer"]
