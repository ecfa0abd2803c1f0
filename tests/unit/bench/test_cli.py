"""Errors of `trl-credit bench`."""

import pytest
from transformers import AutoModelForCausalLM

from trl_credit.bench import cli, run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--groups", "8", "--target_groups", "9"], (8, 9)),
        (["--quick"], (16, 64)),
        (["--quick", "--groups", "8"], (8, 64)),
        (["--no_gradients"], (0, 1024)),
        ([], (256, 1024)),
    ],
)
def test_numbers_of_groups(arguments, expected, monkeypatch):
    seen = []

    def stop(settings, **kwargs):
        seen.append(settings)
        raise ValueError("seen")

    monkeypatch.setattr(run, "run", stop)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert (seen[0].groups, seen[0].target_groups) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "plantederror"], "Did you mean 'planted_error'"),
        (["--methods", "gcppo"], "Did you mean 'gcpo'"),
        (["--methods", '{"method": "gcpo", "top_mas": 1}'], "Did you mean 'top_mass'"),
        (["--methods", "no.such.Method"], "Cannot load the credit method"),
        (["--num_items", "0"], "at least 2"),
        (["--num_items", "x"], "invalid int value"),
        (["--groups", "-1"], "`groups` must be at least 0"),
        (["--target_groups", "1"], "`target_groups` must be at least 2"),
        (["--modle", "x"], "unrecognized arguments"),
        (["--model", "/no/such/model"], "`model`: there is no folder '/no/such/model'"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("trl-credit bench: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer(tmp_path, bench_model, capsys):
    AutoModelForCausalLM.from_pretrained(bench_model).save_pretrained(tmp_path / "bare")
    with pytest.raises(SystemExit):
        cli.main(["--model", str(tmp_path / "bare"), "--output_dir", str(tmp_path / "out")])
    assert "has no tokenizer" in capsys.readouterr().err


def test_missing_packages(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main([])
    assert "CreditBench needs matplotlib: pip install 'trl-credit[analysis]'" in capsys.readouterr().err
