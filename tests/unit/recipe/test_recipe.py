"""Recipes and command lines."""

import json
import math
import re

import pytest
import yaml
from datasets import Dataset
from helpers import ROOT
from support.recipes import parsed, settings_of
from support.settings import recipe
from support.train import line, write

from trl_credit import train
from trl_credit.recipe.recipe import Recipe, load_rollout


NO_GPU = ["--use_cpu", "true", "--bf16", "false"]


def test_misspelt_field_names_the_nearest(tmp_path):
    path = tmp_path / "recipe.yaml"
    names = {"learning_rat": "learning_rate", "reward_func": "reward_funcs", "lora_alfa": "lora_alpha"}
    for wrong, right in names.items():
        path.write_text((ROOT / "recipes" / "quickstart.yaml").read_text() + f"{wrong}: 1\n")
        with pytest.raises(ValueError, match=f"Unknown field `{wrong}` in the recipe. Did you mean '{right}'"):
            parsed(path)


def test_misspelt_credit_parameter_is_refused(tmp_path):
    settings = settings_of(ROOT / "recipes" / "qwen2.5-1.5b" / "dgpo.yaml")
    settings["credit"]["temprature"] = settings["credit"].pop("temperature")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises((ValueError, TypeError), match="temperature"):
        parsed(path)


def test_scientific_notation_without_a_point_still_trains(tmp_path):
    """YAML reads `1e-6` as text; the parser makes it a number, and the recipes write `1.0e-6`."""
    path = tmp_path / "recipe.yaml"
    text = (ROOT / "recipes" / "qwen2.5-1.5b" / "grpo.yaml").read_text()
    path.write_text(text.replace("learning_rate: 1.0e-6", "learning_rate: 1e-6"))
    assert math.isclose(parsed(path)[1].learning_rate, 1e-6)


BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"


def test_the_command_line_mends_a_recipe(tmp_path):
    assert recipe(tmp_path, "num_generations: 0\n", "--num_generations", "4")["num_generations"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe must be a YAML mapping"),
        ("{}", "the recipe must be a YAML mapping"),
        ("- a", "the recipe must be a YAML mapping"),
        ("seed: 1\nseed: 2", "not valid YAML: 'seed' is listed twice (line 2"),
        ("credit: {method: dgpo, method: gcpo}", "'method' is listed twice (line 1"),
        ("a:\n\tb: 1", "not valid YAML: found character"),
        ("seed: [", "not valid YAML"),
        ("1: 2", "a field's name must be text, got 1 on line 1"),
        ("seed: *x", "undefined alias"),
        ("seed: 1\0", "not valid YAML"),
        ("seed: !!python/object:os.system 1", "could not determine a constructor"),
        ("env: 3", "`env` must be a mapping"),
    ],
)
def test_what_is_no_recipe(text, message, tmp_path):
    with pytest.raises(ValueError, match=r"^`") as raised:
        recipe(tmp_path, text, base="")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("run_name: caf\xe9\n".encode("latin-1"))
    (tmp_path / "bom.yaml").write_text("﻿" + BASE + "seed: 7\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        Recipe.read(["--config", str(tmp_path / "latin.yaml")])
    with pytest.raises(ValueError, match="cannot read"):
        Recipe.read(["--config", str(tmp_path)])
    assert Recipe.read(["--config", str(tmp_path / "bom.yaml")])[1].seed == 7
    with pytest.raises(ValueError, match="`--config` is listed twice"):
        Recipe.read(["--config", str(tmp_path / "bom.yaml"), "--config", "b.yaml"])


def test_a_rollout_function_from_a_file(own_code):
    (own_code / "own_rollout.py").write_text("def rollout(prompts, trainer):\n    return {}\n\n\nnumber = 3\n")
    assert load_rollout(None) is None
    assert load_rollout("./own_rollout.py:rollout")([], None) == {}
    with pytest.raises(ValueError, match=r"`rollout_func`: cannot load .* Did you mean 'rollout'"):
        load_rollout("own_rollout.py:rolout")
    with pytest.raises(ValueError, match="is not a function, but int"):
        load_rollout("own_rollout:number")


def test_the_path_of_a_checkpoint_is_text(tmp_path):
    assert recipe(tmp_path, "resume_from_checkpoint: 0100")["resume_from_checkpoint"] == "0100"


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]

ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


def test_dataset_mixture(tmp_path, tiny_model, capsys):
    recipe = tmp_path / "recipe.yaml"
    files = [write(tmp_path / f"{name}.jsonl", ROWS[:4]) for name in "ab"]
    recipe.write_text(json.dumps({"datasets": [{"path": "json", "data_files": file} for file in files]}))
    rest = line(tmp_path, tiny_model)
    both = ["--config", str(recipe), *rest]
    with pytest.raises(SystemExit):
        train.main(both)
    assert "Both `datasets` and `dataset_name` are set" in capsys.readouterr().err
    place = rest.index("--dataset_name")
    arguments = Recipe.read([*both[:2], *rest[:place], *rest[place + 2 :]]).trainer_arguments()
    assert len(arguments["train_dataset"]) == 8


def mixture(tmp_path, tiny_model, **fields):
    recipe = tmp_path / "mixture.yaml"
    files = [write(tmp_path / f"{name}.jsonl", ROWS) for name in "ab"]
    entries = {"datasets": [{"path": "json", "data_files": file} for file in files]}
    recipe.write_text(json.dumps(entries | fields))
    rest = line(tmp_path, tiny_model)
    place = rest.index("--dataset_name")
    return Recipe.read(["--config", str(recipe), *rest[:place], *rest[place + 2 :]])


def test_a_mixture_is_split_alike_in_every_process_and_run(tmp_path, tiny_model):
    splits = {"test_split_size": 8, "eval_strategy": "steps", "per_device_eval_batch_size": 4}
    first, second, other = (
        mixture(tmp_path, tiny_model, **splits, seed=seed).trainer_arguments() for seed in (1, 1, 2)
    )
    assert first["train_dataset"]["problem"] == second["train_dataset"]["problem"]
    assert first["train_dataset"]["problem"] != other["train_dataset"]["problem"]
    assert (len(first["train_dataset"]), len(first["eval_dataset"])) == (16, 8)
    assert len(mixture(tmp_path, tiny_model, test_split_size=8).trainer_arguments()["train_dataset"]) == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"streaming": True, "test_split_size": 4}, "`test_split_size` (4) cannot split a stream"),
        (
            {"datasets": [{"path": "json", "fraction": 0}]},
            "`fraction` must be at least 0, and above 0 somewhere, got [0",
        ),
        ({"datasets": [{"id": "a/b", "weight": 0.5}]}, "`datasets`: an entry has no field 'id'. Write `path`."),
        ({"datasets": [{"path": "a/b", "weight": 0.5}]}, "such as `split: train[:50%]`"),
        ({"datasets": [{"path": "a/b", "colums": []}]}, "has no field 'colums'. Did you mean 'columns'"),
        ({"datasets": {"datasets": []}}, "`datasets`: an entry has no field 'datasets'."),
        ({"datasets": [{"split": "train"}]}, "`datasets` is a list of mappings with a `path`"),
        ({"datasets": ["a/b"]}, "got a/b. For a single dataset, or on the command line, set `dataset_name`."),
        ({"datasets": "a/b"}, "got a/b. For a single dataset, or on the command line, set `dataset_name`."),
    ],
)
def test_mixtures_that_cannot_be_made(fields, message, tmp_path, tiny_model):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(tmp_path, tiny_model, **fields).trainer_arguments()


def test_what_is_wrong_with_a_part_of_a_mixture(tmp_path, tiny_model):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"problem": "a"}\n{"problem": \n')
    numbers = write(tmp_path / "numbers.jsonl", [{"problem": "a", "answer": 1, "extra": "x"}])
    texts = write(tmp_path / "texts.jsonl", [{"problem": "a", "answer": "1", "extra": "x"}])

    def entries(*files):
        return [{"path": "json", "data_files": str(file), "split": "train"} for file in files]

    for files, message in (((broken,), "`datasets`: cannot be read: "), ((numbers, texts), "`columns` chooses which")):
        with pytest.raises(ValueError, match=message):
            mixture(tmp_path, tiny_model, datasets=entries(*files)).trainer_arguments()
    with pytest.raises(ValueError, match=r"is a file: write \{path: json, data_files: "):
        mixture(tmp_path, tiny_model, datasets=[{"path": str(texts)}])
    (tmp_path / "lines.txt.gz").touch()
    with pytest.raises(ValueError, match=r"is a file: write \{path: text, data_files: .*lines\.txt\.gz\}"):
        mixture(tmp_path, tiny_model, datasets=[{"path": str(tmp_path / "lines.txt.gz")}])


def test_a_mixture_on_the_command_line(tmp_path, tiny_model):
    words = line(tmp_path, tiny_model)
    place = words.index("--dataset_name")
    words[place : place + 2] = ["--datasets", '[{"path": "a/b"}]']
    with pytest.raises(ValueError, match="on the command line, set `dataset_name`"):
        Recipe.read(words).trainer_arguments()


def test_splits_of_a_folder_of_somebody_else(tmp_path, tiny_model, monkeypatch):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path / "data"))
    words = line(tmp_path, tiny_model)
    words[words.index("--dataset_name") + 1] = str(tmp_path / "data")
    more = ["--test_split_size", "0.25", "--eval_strategy", "steps", "--per_device_eval_batch_size", "4"]
    arguments = Recipe.read([*words, *more]).trainer_arguments()
    assert (len(arguments["train_dataset"]), len(arguments["eval_dataset"])) == (9, 3)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


@pytest.mark.parametrize("more", [[], ["--problem_column", "prompt"]])  # as it is, and mapped, which hides its columns
def test_missing_columns_of_streams_are_errors(more, tmp_path, tiny_model):
    words = line(tmp_path, tiny_model)
    words[words.index("--dataset_name") + 1] = write(tmp_path / "x.jsonl", [{"prompt": "a", "other": "b"}] * 4)
    for name in ("--problem_column", "--answer_column"):
        if name in words:
            place = words.index(name)
            del words[place : place + 2]
    place = words.index("--reward_funcs") + 1
    words[place : place + 2] = ["accuracy"]
    with pytest.raises(ValueError, match=r"'accuracy\w*' needs a dataset column 'solution' \(set `answer_column`\)"):
        Recipe.read([*words, *more, "--dataset_streaming", "true"]).trainer_arguments()


def test_a_column_named_like_a_bound_argument(tmp_path, tiny_model):
    words = line(tmp_path, tiny_model)
    place = words.index("--reward_funcs") + 1
    words[place : place + 2] = ["{name: helpers.letter_reward, extra: 3}"]
    with pytest.raises(ValueError, match="has the argument 'extra', and the data a column of that name"):
        Recipe.read(words).trainer_arguments()


def test_a_rollout_function_may_add_columns(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "added.py").write_text(
        "def rollout(prompts, trainer):\n    pass\ndef reward(completions, played, **kwargs):\n    pass\n"
    )
    words = line(tmp_path, tiny_model, "--reward_funcs", "./added.py:reward")
    with pytest.raises(ValueError, match="needs a dataset column 'played'"):
        Recipe.read(words).trainer_arguments()
    Recipe.read([*words, "--rollout_func", "./added.py:rollout"]).trainer_arguments()


def test_evaluation_data_with_other_columns(tmp_path, tiny_model):
    other = write(tmp_path / "aime.jsonl", [{"question": "1+1?", "truth": "2"}] * 4)
    evaluation = ["--eval_dataset_name", other, "--eval_problem_column", "question", "--eval_answer_column", "truth"]
    parsed = Recipe.read(
        line(tmp_path, tiny_model, *evaluation, "--eval_strategy", "steps", "--per_device_eval_batch_size", "4")
    )
    arguments = parsed.trainer_arguments()
    assert arguments["eval_dataset"][0]["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert arguments["eval_dataset"][0]["solution"] == "2"
    assert arguments["train_dataset"][1]["solution"] == "2"


def test_too_few_rows_because_most_have_no_answer(tmp_path, tiny_model):
    data = write(tmp_path / "rows.jsonl", [{"problem": "1+1?", "answer": "2"}, *[{"problem": "1+2?"}] * 9])
    words = line(tmp_path, tiny_model, "--dataset_name", data, "--steps_per_generation", "8")
    with pytest.raises(ValueError, match=r"has 1 row, but .* 9 of 10 rows were left out, .*: see `problem_column` and"):
        Recipe.read(words).trainer_arguments()
    data = write(tmp_path / "rows.jsonl", [{"problem": "1+1?", "answer": "2"}])
    with pytest.raises(ValueError, match=r"has 1 row, but .* processes \(1\)\.$"):
        Recipe.read(words).trainer_arguments()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "Unknown field `lerning_rate` in the recipe. Did you mean 'learning_rate'"),
        ("- a list", "must be a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("trim_padding: 3", "`trim_padding` must be true, false or unset, got 3"),
    ],
)
def test_bad_recipes(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        train.main(["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert message in error
    assert "usage" not in error


def test_one_reward_as_text(tmp_path, tiny_model):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward_funcs: accuracy")
    script_args, *_ = Recipe.read(["--config", str(recipe), "--output_dir", "out", *ON_CPU])
    assert script_args.reward_funcs == ["accuracy"]


def test_rewards_know_the_length_of_the_run(tmp_path, tiny_model):
    rewards = ["--reward_funcs", "soft_overlong_punishment", "--max_completion_length", "40"]
    arguments = Recipe.read(line(tmp_path, tiny_model, *rewards)).trainer_arguments()
    (reward,) = arguments["reward_funcs"]
    assert (reward.max_completion_len, reward.soft_punish_cache) == (40, 8)
