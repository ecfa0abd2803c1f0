"""`trl-credit eval`."""

import pytest
import yaml

from trl_credit.evaluation.cli import main


# ---- the command


def run_main(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


EMBEDDED = ("--model", "trl_credit:quickstart", "--tasks", "trl_credit:arithmetic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--taks", "x"], "Unknown field `taks` on the command line. Did you mean 'tasks'"),
        (["--model", "./no/such/folder", "--tasks", "trl_credit:arithmetic"], "there is no folder"),
        (["--model", "no/such-model-xyz", "--tasks", "trl_credit:arithmetic"], "neither a folder with a model"),
        (["--tasks", "trl_credit:arithmetic"], "`model` is not set"),
        (["--model", "m", "--temperature", "-1"], "`temperature` must be non-negative, got -1.0"),
        (["--model", "m", "--n", "x"], "argument --n"),
        ([], "Nothing to do: give --config FILE.yaml"),
        (["reprot", "x"], "unknown command 'reprot'. Did you mean 'report'"),
        (["--config", "no.yaml"], "cannot read 'no.yaml'"),
        (
            [*EMBEDDED, "--plain_prompts", "false"],
            "chat template",
        ),
        (
            [*EMBEDDED, "--backend", "vllm"],
            "trl-credit[vllm]",
        ),
        (
            [*EMBEDDED, "--dtype", "int8"],
            "`dtype`: unknown",
        ),
        (["compare", "x", "y"], "There is no results.json in x"),
        (["report", "x"], "There is no results.json in x"),
    ],
)
def test_wrong_commands(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "outputs").exists()


def test_the_command_on_the_embedded_model(tmp_path, capsys):
    recipe = tmp_path / "eval.yaml"
    settings = {
        "model": "trl_credit:quickstart",
        "tasks": ["trl_credit:arithmetic"],
        "generated_dataset_size": 6,
        "n": 3,
    }
    recipe.write_text(yaml.safe_dump({**settings, "max_tokens": 40, "output_dir": str(tmp_path / "a")}))
    main(["--config", str(recipe)])
    output = capsys.readouterr().out
    assert "avg@3" in output
    assert "pass@3" in output
    main(["--config", str(recipe), "--output_dir", str(tmp_path / "b"), "--seed", "1"])
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    output = capsys.readouterr().out
    assert "The runs also differ in:\n  seed: 0 -> 1" in output
    assert {path.name for path in (tmp_path / "b" / "compare-a").iterdir()} == {
        *("comparison.json", "comparison.html", "comparison.png"),
    }
    main(["report", str(tmp_path / "a")])
    assert "avg@3" in capsys.readouterr().out
    assert run_main("--config", recipe, "--n", "4") == 2
    assert "n: 3 -> 4" in capsys.readouterr().err
