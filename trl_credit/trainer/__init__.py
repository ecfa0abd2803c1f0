"""TRL's GRPOTrainer with token-level credit, and its config."""

from typing import TYPE_CHECKING

from .._util.lazy import lazy_names


if TYPE_CHECKING:
    from .async_grpo import AsyncCreditGRPOConfig, AsyncCreditGRPOTrainer
    from .config import CreditGRPOConfig
    from .diffusion import DiffusionGRPOTrainer, PCPOTrainer
    from .diffusion_config import DiffusionGRPOConfig
    from .grpo import CreditGRPOTrainer, DGPOTrainer, GCPOTrainer
    from .image_tokens import ImageTokenGRPOTrainer
    from .image_tokens_config import ImageTokenGRPOConfig

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AsyncCreditGRPOConfig": ".async_grpo",
        "AsyncCreditGRPOTrainer": ".async_grpo",
        "CreditGRPOConfig": ".config",
        "CreditGRPOTrainer": ".grpo",
        "DiffusionGRPOConfig": ".diffusion_config",
        "DiffusionGRPOTrainer": ".diffusion",
        "PCPOTrainer": ".diffusion",
        "DGPOTrainer": ".grpo",
        "GCPOTrainer": ".grpo",
        "ImageTokenGRPOConfig": ".image_tokens_config",
        "ImageTokenGRPOTrainer": ".image_tokens",
    },
)

__all__ = [
    "AsyncCreditGRPOConfig",
    "AsyncCreditGRPOTrainer",
    "CreditGRPOConfig",
    "CreditGRPOTrainer",
    "DGPOTrainer",
    "DiffusionGRPOConfig",
    "DiffusionGRPOTrainer",
    "GCPOTrainer",
    "ImageTokenGRPOConfig",
    "ImageTokenGRPOTrainer",
    "PCPOTrainer",
]
