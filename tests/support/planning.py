"""Plans of recipes without a hub: models are configs in tests/data/model_configs."""

from pathlib import Path

from helpers import ROOT

from trl_credit.planning.config import PlanConfig
from trl_credit.planning.plan import make_plan
from trl_credit.planning.read import read
from trl_credit.recipe.recipe import Recipe


CONFIGS = ROOT / "tests" / "data" / "model_configs"


def config_of(path: Path) -> Path | None:
    """The folder with the config of a shipped recipe's model, if that is on the hub or to be made first."""
    names = (path.parent.name, *path.stem.split("_"))
    return next((CONFIGS / name for name in names if (CONFIGS / name).is_dir()), None)


def words_for(recipe: str, *words: str) -> list[str]:
    """Words of the command line for a shipped recipe."""
    path = ROOT / "recipes" / recipe
    folder = config_of(path)
    named = [] if folder is None else ["--model_name_or_path", str(folder)]
    return ["--config", str(path), *named, *words]


def read_recipe(recipe: str, *words: str) -> tuple[Recipe, PlanConfig, str | None]:
    return read(words_for(recipe, *words))


def plan_of(recipe: str, *words: str) -> dict:
    return make_plan(*read_recipe(recipe, *words))
