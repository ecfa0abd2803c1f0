"""The trainers that a recipe can name, one line each."""

import importlib
from typing import Any


# Name -> (module in this package, config, trainer)
TRAINERS: dict[str, tuple[str, str, str]] = {
    "grpo": (".grpo", "CreditGRPOConfig", "CreditGRPOTrainer"),
    "diffusion": (".diffusion", "DiffusionGRPOConfig", "DiffusionGRPOTrainer"),
    "image_tokens": (".image_tokens", "ImageTokenGRPOConfig", "ImageTokenGRPOTrainer"),
}


def config_class(name: str) -> Any:
    """The config of a trainer."""
    module, config, _ = TRAINERS[name]
    return getattr(importlib.import_module(module, __package__), config)


def trainer_class(name: str) -> Any:
    """The trainer of that name."""
    module, _, trainer = TRAINERS[name]
    return getattr(importlib.import_module(module, __package__), trainer)
