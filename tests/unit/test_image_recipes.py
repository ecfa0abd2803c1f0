"""The shipped recipes of diffusion models."""

import pytest
import support.recipes
from datasets import Dataset
from support.recipes import parsed, settings_of

from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer, build_credit
from trl_credit.recipe.recipe import trainer_arguments


RECIPES = [path for path in support.recipes.RECIPES if settings_of(path).get("trainer") == "diffusion"]
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@every_recipe
def test_every_field_is_used(path):
    recipe = parsed(path, "--fp16", "false")
    _, training, model, _ = recipe
    assert recipe.trainer is DiffusionGRPOTrainer
    assert isinstance(training, DiffusionGRPOConfig)
    settings = settings_of(path)
    assert settings.keys() <= recipe.fields().keys()
    for name, value in settings.items():
        if name in ("bf16", "fp16", "use_cpu", "credit", "reward_weights", "compare", "report_to"):
            continue
        owner = next(part for part in recipe if hasattr(part, name))
        assert str(getattr(owner, name)) == str(value) or getattr(owner, name) == value, name
    if "credit" in settings:
        assert training.credit == build_credit(settings["credit"]).to_dict()
    assert training.gradient_accumulation_steps <= training.steps_per_generation
    assert training.max_completion_length == (training.train_steps_drawn or len(training.trained_steps))
    assert bool(model.use_peft) == ("lora" in path.stem)


@every_recipe
def test_recipe_reaches_the_trainer(path, monkeypatch):
    arguments = parsed(path, "--fp16", "false")
    rows = {"prompt": ["a fox"] * 64, "Prompt": ["a fox"] * 64, "digit": [3] * 64}
    monkeypatch.setattr(
        "trl_credit.recipe.recipe.load_splits", lambda *args, **kwargs: {"train": Dataset.from_dict(rows)}
    )
    made = trainer_arguments(*arguments)
    assert made["reward_funcs"]
    prompt = made["train_dataset"][0]["prompt"]
    assert prompt == "a fox"
    if arguments.model.use_peft:
        assert set(made["peft_config"].target_modules) == set(settings_of(path)["lora_target_modules"])
        assert made["peft_config"].lora_dropout == 0


def test_there_are_recipes_for_the_families():
    assert {path.stem for path in RECIPES} >= {"digits", "sd15_pcpo_lora", "sd35_pcpo_lora", "flux_pcpo_lora"}
