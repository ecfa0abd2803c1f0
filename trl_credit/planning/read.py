"""Reads a recipe as so many GPUs would, on a machine that may have none."""

from .._util.arguments import parse_arguments
from .._util.replaced import replaced
from ..recipe.early import refuse_empty_credit, words_of
from ..recipe.names import parameter_hint
from ..recipe.recipe import Recipe, recipe_classes
from ..trainer.config import CreditGRPOConfig
from .config import PlanConfig


def read(argv: list[str], description: str | None = None) -> tuple[Recipe, PlanConfig, str | None]:
    """The recipe, the command's settings and the recipe's file.

    Args:
        argv: Command-line words.
        description: The command's description in `--help`.

    Raises:
        ValueError: As [`Recipe.read`], with batches as of so many processes.
    """
    import torch

    words = words_of(argv)
    refuse_empty_credit(words)
    if not torch.cuda.is_available():
        argv = [*argv, "--use_cpu", "true"]  # or transformers would refuse bfloat16 here
    gpus = words.get("gpus", PlanConfig.gpus)
    size = int(gpus) if str(gpus).isdigit() and int(gpus) > 0 else 1  # else the parser refuses it
    classes = (PlanConfig, *recipe_classes(argv))
    with replaced(CreditGRPOConfig, world_size=property(lambda self: size)):
        config, *parts = parse_arguments(argv, classes, "trl-credit plan", description, "recipe", hint=parameter_hint)
    file = words.get("config")
    return Recipe(*parts), config, None if file is None else str(file)
