"""`trl-credit methods` and errors of the commands."""

import dataclasses

import pytest
from helpers import ROOT

from trl_credit import DGPO, METHODS
from trl_credit.cli import main
from trl_credit.methods import cards
from trl_credit.recipe.launch import launch


def test_methods(capsys):
    main(["methods"])
    output = capsys.readouterr().out
    for name, method in METHODS.items():
        assert name in output
        assert method.paper.id in output
    assert "[gcpo, otb]" in output


def test_the_card_of_a_list(capsys):
    main(["methods", "mix"])
    assert "guard" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(METHODS))
def test_one_method(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods", name])
    output = capsys.readouterr().out
    method = METHODS[name]
    assert method.paper.citation in output
    for number, difference in enumerate(method.differences, 1):
        assert f"{number}. {difference}" in output
    for field in dataclasses.fields(method):
        assert field.name in output
        required = field.default is dataclasses.MISSING
        assert ("(required)" if required else repr(field.default)) in output


def test_a_method_without_a_paper(capsys):
    main(["methods", "shuffled"])
    output = capsys.readouterr().out
    assert "1. The permutation is a hash" in output
    for text in ("arXiv", "none", "Citation", "paper"):
        assert text not in output


@pytest.mark.parametrize("name", list(METHODS))
def test_a_card_read_from_the_source_is_that_of_the_class(name):
    assert cards.card_of(name) == cards._from_class(METHODS[name])


def test_the_card_of_ones_own_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom trl_credit import DGPO\n\n@dataclass(frozen=True)\nclass Own(DGPO):\n"
        '    """Mine.\n\n    Args:\n        sharpness: How sharp.\n    """\n\n    sharpness: float = 2.0\n    name = "own"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods", "own.py:Own"])
    output = capsys.readouterr().out
    assert "own: Mine." in output
    for text in ("entropy_exponent", "sharpness", "How sharp.", "2.0", DGPO.paper.citation):
        assert text in output


def test_unknown_method(capsys):
    with pytest.raises(SystemExit):
        main(["methods", "gcppo"])
    assert "Did you mean 'gcpo'" in capsys.readouterr().err


def test_bad_quickstart_method(capsys):
    with pytest.raises(SystemExit):
        main(["quickstart", "--methods", "gcppo"])
    assert "Did you mean 'gcpo'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "eval"])
def test_no_processes(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--num_processes", "0"])
    assert exit_.value.code == 2
    assert "`--num_processes` must be at least 1, got 0" in capsys.readouterr().err


def test_more_processes_than_accelerators(capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--num_processes", "2", "--max_steps", "1"])
    assert exit_.value.code == 2
    assert "`--num_processes` is 2, but this machine has 1 accelerator." in capsys.readouterr().err
    started = []
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    for words in (["--use_cpu", "true"], ["--use_cpu"], ["--use_cpu", "--max_steps", "1"]):
        main(["train", "--num_processes", "2", *words])
    launch(["--num_processes", "2", "spec.json"], "compare", "trl_credit.comparison.worker", ["--use_cpu", "true"])
    assert [job.nproc_per_node for job in started] == ["2"] * 4


def test_machines_need_a_launcher_configuration(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "recipes/quickstart.yaml", "--machine_rank", "1"])
    assert exit_.value.code == 2
    assert "`--machine_rank` needs `--accelerate_config`" in capsys.readouterr().err


def test_deepspeed_in_another_precision_is_refused_before_anything_starts(capsys):
    recipes = ROOT / "recipes"
    words = [
        "--config",
        str(recipes / "quickstart.yaml"),
        "--accelerate_config",
        str(recipes / "accelerate/zero3.yaml"),
    ]
    with pytest.raises(SystemExit) as exit_:
        main(["train", *words])
    assert exit_.value.code == 2
    assert "`bf16` is off, and " in capsys.readouterr().err


def test_a_launcher_s_file_that_is_not_yaml(tmp_path, capsys):
    file = tmp_path / "launcher.yaml"
    file.write_text("a: [")
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--config", str(ROOT / "recipes" / "quickstart.yaml"), "--accelerate_config", str(file)])
    assert exit_.value.code == 2
    assert "error: `--accelerate_config`: " in capsys.readouterr().err
