"""Descriptions in `--help`: commands stay on lines of their own."""

import argparse

import pytest

from trl_credit import train
from trl_credit._util.help import Paragraphs, ParagraphsAndDefaults
from trl_credit.bench import advise
from trl_credit.bench import cli as bench
from trl_credit.bench.true import cli as true
from trl_credit.comparison import cli as comparison
from trl_credit.evaluation import cli as evaluation
from trl_credit.inspection import cli as inspection


@pytest.mark.parametrize("width", ["80", "200"])
@pytest.mark.parametrize("formatter", [Paragraphs, ParagraphsAndDefaults])
def test_indented_lines_stay_and_others_are_filled(formatter, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    long = "words " * 30
    parser = argparse.ArgumentParser(
        prog="p",
        formatter_class=formatter,
        description=f"{long}\n\n    p one\n    p two {'x' * 90}\n \nA line,\nand one.",
    )
    parser.add_argument("--field", default=7, help="meaning")
    shown = parser.format_help()
    lines = shown.splitlines()
    assert "    p one" in lines
    assert f"    p two {'x' * 90}" in lines
    assert "A line, and one." in lines
    words = [line for line in lines if line.startswith("words")]
    assert sum(line.count("words") for line in words) == 30
    assert len(words) == {"80": 3, "200": 1}[width]
    assert ("(default: 7)" in shown) == (formatter is ParagraphsAndDefaults)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (train, []),
        (evaluation, []),
        (inspection, []),
        (comparison, []),
        (bench, []),
        (bench, ["--true"]),
        (advise, []),
    ],
    ids=lambda value: getattr(value, "__name__", " ".join(value) if isinstance(value, list) else None),
)
def test_every_command_shows_its_examples_one_a_line(module, words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    described = true if words else module
    with pytest.raises(SystemExit) as exit_:
        module.main([*words, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    examples = [line.strip() for line in described.__doc__.splitlines() if line.startswith("    ")]
    assert " ".join(described.__doc__.split())[:60] in " ".join(shown.split())
    for example in examples:
        assert example in lines
