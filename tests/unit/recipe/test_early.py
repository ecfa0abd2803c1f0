"""Errors that need neither torch nor TRL are those that would come later."""

import pytest

from trl_credit.cli import main
from trl_credit.recipe.early import check_early
from trl_credit.recipe.recipe import Recipe


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
]


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    files = {
        "list": "- 1",
        "broken": "a: [",
        "typo": "credit: gpco",
        "mapping": "credit: {method: gpco}",
        "fine": "credit: dgpo",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_the_message_is_the_later_one(words, capsys):
    with pytest.raises(ValueError, match=r".") as early:
        check_early(words)
    with pytest.raises(ValueError, match=r".") as late:
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
        ["--credit", "{broken"],
        ["--credit", '{"temperature": 1}'],
        ["--credit"],
        ["--config", "fine.yaml", "--config", "no/such.yaml"],
        ["--credit", "gpco", "--credit", "gcpo"],
        ["--run_name=--credit", "--output_dir", "y"],
        ["--config", "/dev/stdin"],
    ],
    ids=" ".join,
)
def test_the_rest_is_left_for_later(words):
    check_early(words)
