"""Reads a recipe as so many GPUs would, on a machine that may have none."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .._util.arguments import parse_arguments
from .._util.replaced import replaced
from .._util.values import is_true
from ..recipe.early import refuse_empty_credit, words_of
from ..recipe.names import parameter_hint
from ..recipe.recipe import Recipe, recipe_classes
from ..trainer.config import CreditGRPOConfig
from .config import PlanConfig


@dataclass(frozen=True)
class Given:
    """What a user wrote.

    Args:
        fields: Fields of the recipe's file and of the command line.
        launch: The same words for the command that trains: the file, and the options that are not the plan's own.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    launch: str = "--config RECIPE"

    @property
    def on_cpu(self) -> bool:
        """Whether the recipe trains on a CPU."""
        return is_true(self.fields.get("use_cpu"))


def read(argv: list[str], description: str | None = None) -> tuple[Recipe, PlanConfig, Given]:
    """The recipe, the command's settings and what the user wrote.

    Args:
        argv: Command-line words.
        description: The command's description in `--help`.

    Raises:
        ValueError: As [`Recipe.read`], with batches as of so many processes; or the recipe chooses a layout itself.
    """
    import torch

    words = words_of(argv)
    refuse_empty_credit(words)
    for name in ("deepspeed", "fsdp"):
        if words.get(name) and str(words[name]).lower() != "false":
            raise ValueError(
                f"`{name}` ({words[name]!r}) chooses a layout, as the plan does in recipes/accelerate. Remove it, or name "
                "the plan's with `--layout`."
            )
    given = Given(words, launch_words(argv))
    if not torch.cuda.is_available():
        argv = [*argv, "--use_cpu", "true"]  # or transformers would refuse bfloat16 here
    gpus = words.get("gpus", PlanConfig.gpus)
    size = int(gpus) if str(gpus).isdigit() and int(gpus) > 0 else 1  # else the parser refuses it
    classes = (PlanConfig, *recipe_classes(argv))
    with replaced(CreditGRPOConfig, world_size=property(lambda self: size)):
        config, *parts = parse_arguments(argv, classes, "trl-credit plan", description, "recipe", hint=parameter_hint)
    return Recipe(*parts), config, given


def launch_words(argv: Iterable[str]) -> str:
    """The words of a command line that train, quoted for a shell."""
    kept, keeps = [], False
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            keeps = not {name, name.removeprefix("no_")} & PlanConfig.__dataclass_fields__.keys()
        if keeps:
            kept.append(word)
    return shlex.join(kept)
