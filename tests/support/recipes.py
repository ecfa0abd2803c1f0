"""Reads the shipped recipes."""

from pathlib import Path

import yaml
from helpers import ROOT

from trl_credit.recipe.recipe import Recipe


NO_GPU = ["--use_cpu", "true", "--bf16", "false"]


# All but the configurations of launchers and clusters
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if not {"accelerate", "cluster"} & set(path.parts))


def settings_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def parsed(path: Path, *overrides: str) -> tuple:
    return Recipe.read(["--config", str(path), *NO_GPU, *overrides])
