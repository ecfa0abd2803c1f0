"""Every command, from start to end, at its smallest."""

import json
import re

import pytest
from helpers import ROOT

from trl_credit.cli import main


def run(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def train(capsys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    recipe = ROOT / "recipes" / "quickstart.yaml"
    evaluation = '{"tasks": ["trl_credit:arithmetic"], "n": 1, "generated_dataset_size": 4}'
    run(capsys, "train", "--config", recipe, "--output_dir", out, "--max_steps", 1, "--eval", evaluation)
    assert (out / "model.safetensors").exists()


def evaluate(capsys, tmp_path, monkeypatch):
    for name, seed in (("a", 0), ("b", 1)):
        run(
            capsys, "eval", "--model", "trl_credit:quickstart", "--tasks", "trl_credit:arithmetic", "--max_tokens", 30,
            "--generated_dataset_size", 4, "--n", 2, "--seed", seed, "--output_dir", tmp_path / name,
        )  # fmt: skip
    assert (tmp_path / "a" / "report.html").exists()
    run(capsys, "eval", "compare", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path / "both")
    assert (tmp_path / "both" / "comparison.html").exists()


def methods(capsys, tmp_path, monkeypatch):
    assert "2605.29198" in run(capsys, "methods")


def inspect(capsys, tmp_path, monkeypatch):
    said = run(
        capsys, "inspect", "--model", "trl_credit:quickstart", "--prompts", "12+34=", "--methods", "gcpo", "dgpo",
        "--max_completion_length", 20, "--output_dir", tmp_path,
    )  # fmt: skip
    assert "gcpo" in said
    assert list(tmp_path.glob("**/*.html"))


def compare(capsys, tmp_path, monkeypatch):
    """Each run is a process of its own; with nothing left to run, none is started."""
    recipe = ROOT / "recipes" / "quickstart.yaml"
    with pytest.raises(SystemExit) as error:
        run(capsys, "compare", "--config", recipe, "--methods", "gcppo", "--output_dir", tmp_path)
    assert error.value.code == 2
    assert "Did you mean 'gcpo'" in capsys.readouterr().err


def bench(capsys, tmp_path, monkeypatch):
    said = run(
        capsys, "bench", "--methods", "gcpo", "--tasks", "planted_error", "--num_items", 4, "--no_drift",
        "--no_gradients", "--output_dir", tmp_path,
    )  # fmt: skip
    assert "planted_error" in said
    assert json.loads((tmp_path / "bench.json").read_text())


def advise(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        run(capsys, "advise")
    assert "name a recipe" in capsys.readouterr().err
    said = run(
        capsys, "advise", ROOT / "recipes" / "quickstart.yaml", "--num_prompts", 3, "--num_generations", 2, "--least", 2,
        "--most", 2, "--stderr", 0.5, "--methods", "gcpo", "--output_dir", tmp_path,
    )  # fmt: skip
    assert "3 prompts are too few" in " ".join(said.split())
    advice = json.loads((tmp_path / "advice.json").read_text())
    assert advice["method"] is None
    said = run(capsys, "advise", "--values", tmp_path, "--methods", "certainty", "--output_dir", tmp_path / "again")
    assert "3 prompts are too few" in " ".join(said.split())
    assert "No recommendation" in (tmp_path / "advice.md").read_text()


def plan(capsys, tmp_path, monkeypatch):
    said = run(capsys, "plan", ROOT / "recipes" / "quickstart.yaml", "--gpus", 1, "--gpu", "rtx-4090", "--json")
    assert json.loads(said)["fits"]


def doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trl_credit.doctor.facts._IMPORTS", {"math-verify": ("math_verify",)}
    )  # all of them take longer
    said = run(capsys, "doctor", ROOT / "recipes" / "quickstart.yaml", "--output_dir", tmp_path, "--json")
    assert json.loads(said)["works"]


def quickstart(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_credit.quickstart.EVAL_PROBLEMS", 8)
    run(capsys, "quickstart", "--max_steps", 1, "--methods", "gcpo", "--output_dir", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())


_NAMED = (train, methods, inspect, compare, bench, advise, plan, doctor, quickstart)
COMMANDS = {"eval": evaluate} | {command.__name__: command for command in _NAMED}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, capsys, tmp_path, monkeypatch):
    COMMANDS[command](capsys, tmp_path, monkeypatch)


def test_no_command_is_left_out(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(re.search(r"{([\w,]+)}", capsys.readouterr().out)[1].split(",")) == set(COMMANDS)
