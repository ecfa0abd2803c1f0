"""Errors that need neither torch nor TRL are those that would come later."""

import importlib.util
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from trl_credit._util.arguments import field_types
from trl_credit.cli import main
from trl_credit.recipe import names
from trl_credit.recipe.early import check_early
from trl_credit.recipe.recipe import Recipe, recipe_classes
from trl_credit.trainer.table import TRAINERS


WRONG = [
    ["--config", "no/such/recipe.yaml"],
    ["--config=no/such/recipe.yaml"],
    ["--config", "list.yaml"],
    ["--config", "broken.yaml"],
    ["--config", "typo.yaml"],
    ["--config", "mapping.yaml"],
    ["--max_steps", "1", "--credit", "gpco"],
    ["--credit=gpco"],
    ["--credit", '{"method": "gpco"}'],
    ["--credit", '{"method": "gcpo", "sharpnes": 3}'],
    ["--credit", "{method: gcpo, sharpnes: 3}"],
    ["--credit", '{"method": "gcpo", "top_mass": "high"}'],
    ["--credit", '{"method": "gcpo", "top_mass": true}'],
    ["--credit", '["gcpo", {"method": "dgpo", "temperatur": 1}]'],
    ["--credit", '["gcpo", 3]'],
    ["--credit", '{"method": "mix", "parts": ["gcpo", "dgop"]}'],
    ["--credit", "teacher"],
    ["--credit", "{broken"],
    ["--credit", '{"temperature": 1}'],
    ["--config", "nothing.yaml"],
    ["--config", "number.yaml"],
    ["--config", "fields.yaml"],
    ["--config", "fine.yaml", "--learning_rat", "1"],
    ["--config", "fine.yaml", "--no_bf17", "--temperatur=1"],
    ["--config", "fine.yaml", "--top_mass", "0.9"],
    ["--config", "fine.yaml", "--guidance_scale", "3"],
]


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    files = {
        "list": "- 1",
        "broken": "a: [",
        "typo": "credit: gpco",
        "mapping": "credit: {method: gpco}",
        "fine": "credit: dgpo",
        "nothing": "max_steps: 1\ncredit:\n",
        "number": "credit: 3",
        "fields": "max_step: 3\nlr: 1e-5\nnonsense: 1\nentropy_exponent: 2\n",
        "section": "trainer: {name: grpo}",
        "images": "trainer: diffusion\nguidance_scale: 3\ncredit: pcpo",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)


def test_the_environment_is_set_before_libraries_are_imported(tmp_path, monkeypatch, caplog):
    """`env` of a recipe, of which huggingface_hub reads some when it is imported."""
    (tmp_path / "env.yaml").write_text(
        f"env: {{HF_HOME: {tmp_path}, OWN: 3}}\nuse_cpu: true\nbf16: false\noutput_dir: x\n"
    )
    script = (
        "import sys\nfrom trl_credit.recipe import launch\n"
        "launch.importlib.import_module = lambda name: sys\n"
        "sys.main = lambda words: print(__import__('huggingface_hub.constants', fromlist=['HF_HOME']).HF_HOME)\n"
        "launch.launch(['--config', 'env.yaml'], 'train', 'trl_credit.train')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert shown.stdout.strip() == str(tmp_path), shown.stderr
    for name in ("HF_HOME", "OWN"):
        monkeypatch.delenv(name, raising=False)
    Recipe.read(["--config", "env.yaml"])
    assert os.environ["OWN"] == "3"
    assert "`env`: HF_HOME may have no effect" in caplog.text
    caplog.clear()
    Recipe.read(["--config", "env.yaml"])
    assert not caplog.records


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_the_message_is_the_later_one(words, capsys):
    with pytest.raises((ValueError, TypeError), match=r".") as early:
        check_early(words)
    with pytest.raises(early.type, match=r".") as late:
        Recipe.read([*words, "--output_dir", "x"])
    assert str(early.value) == str(late.value)
    with pytest.raises(SystemExit) as error:
        main(["train", *words])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"trl-credit train: error: {early.value}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--config"],
        ["--config", "fine.yaml"],
        ["--config", "typo.yaml", "--credit", "gcpo"],
        ["--credit", "./own.py:Method"],
        ["--credit", "my_module.Method"],
        ["--credit", '{"method": "gcpo", "top_mass": 2}'],
        ["--credit", '{"method": "gcpo", "top_mass": "0.9"}'],
        ["--credit", '{"method": "rlsd", "strength": {"from": 1}}'],
        ["--credit"],
        ["--config", "images.yaml"],
        ["--no_bf16", "--no-bf16", "--learning-rate", "1e-5"],
        ["--credit", "gpco", "--help"],
        ["--config", "section.yaml", "--nonsense", "1"],
        ["--config", "fine.yaml", "--config", "no/such.yaml"],
        ["--credit", "gpco", "--credit", "gcpo"],
        ["--run_name=--credit", "--output_dir", "y"],
        ["--config", "/dev/stdin"],
    ],
    ids=" ".join,
)
def test_the_rest_is_left_for_later(words):
    check_early(words)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_names_in_the_source_are_the_fields(trainer):
    assert names.recipe_field_names(trainer) == set(field_types(recipe_classes(["--trainer", trainer])))


@pytest.mark.parametrize("before", [[], ["--num_processes", "2"]])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_file_that_stands_first_needs_no_option(command, before, capsys):
    messages = []
    for words in (["fields.yaml"], ["--config", "fields.yaml"]):
        with pytest.raises(SystemExit) as error:
            main([command, *(before if command == "train" else []), *words, "--output_dir", "x"])
        assert error.value.code == 2
        messages.append(capsys.readouterr().err)
    assert messages[0] == messages[1]
    assert "`nonsense`" in messages[0]


def test_fields_beside_a_file_that_stands_first():
    found = Recipe.read(["fine.yaml", "--output_dir", "x", "--use_cpu", "true", "--bf16", "false"])
    assert (found.training.credit["method"], found.training.output_dir) == ("dgpo", "x")
    with pytest.raises(ValueError, match="`--config` is listed twice"):
        Recipe.read(["fine.yaml", "--config", "fine.yaml"])


def test_a_release_that_has_moved_a_class_is_left_for_later(monkeypatch):
    for source in (names._Source("trl", "trainer/no_such_file.py", "X"), names._Source("trl", "__init__.py", "NoSuch")):
        monkeypatch.setattr(names, "_COMMON", (source,))
        names.recipe_field_names.cache_clear()
        assert names.recipe_field_names() is None
        check_early(["--nonsense", "1"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names.recipe_field_names.cache_clear()
    assert names.recipe_field_names() is None
    monkeypatch.undo()
    names.recipe_field_names.cache_clear()


def test_a_recipe_from_a_pipe_may_have_any_trainer(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_early(["--config", str(pipe), "--num_inference_steps", "8"])
    with pytest.raises(ValueError, match="Unknown credit method 'gpco'"):
        check_early(["--config", str(pipe), "--credit", "gpco"])
