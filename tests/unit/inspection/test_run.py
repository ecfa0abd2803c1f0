"""Errors of `trl-credit inspect`."""

import pytest

from trl_credit.inspection import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./none", "--prompts", "a"], "there is no folder"),
        (["--modell", "x"], "Did you mean 'model'"),
        (
            ["--model", "trl_credit:quickstart", "--prompts", "a", "--output_dir", __file__],
            "it is a file, not a folder",
        ),
        (["--completions", "none.jsonl"], "there is no file or folder 'none.jsonl'"),
        (
            ["--model", "trl_credit:quickstart", "--dataset_name", "trl_credit:arith"],
            "Did you mean 'trl_credit:arithmetic'",
        ),
        (
            ["--model", "trl_credit:quickstart", "--prompts", "a", "--reward_funcs", "accuracy"],
            "'accuracy' needs a column 'solution'",
        ),
        (
            ["--model", "trl_credit:quickstart", "--prompts", "a", "--methods", "gcpo", '["turn", "gcpo"]'],
            "turn + gcpo: the method needs turns, and completions that are generated here have one turn each",
        ),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("trl-credit inspect: error: ")
    assert message in line
