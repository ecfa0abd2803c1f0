"""Untrusted text in terminals, logs and files."""

import io
import json
import logging
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from trl_credit._util.text import (
    SafeFormatter,
    command_without_folders,
    hub_id,
    prepare_terminal,
    redact,
    redact_url,
    redact_words,
    safe,
    safe_lines,
    safe_text,
    secrets_of,
    split_url,
    without_folders,
)


MARKUP = ["run[lr=1e-5]", "[/x]", "[red]x", "a[/]b", "x\\", "\\[b]", "run:100:", "[link=file:///etc]x[/link]"]

RAW = {
    "\x1b[31m": r"\x1b[31m",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "a\x08b": r"a\x08b",
    "\x9b2J": r"\x9b2J",
    "\u202eabc": r"\u202eabc",
    "\u2066x\u2069": r"\u2066x\u2069",
    "\u200bx": r"\u200bx",
    "\U000e0041": r"\U000e0041",
    "\x00\x7f": r"\x00\x7f",
    "a\u2028b": r"a\u2028b",
    "\ud800": r"\ud800",
    "caf\udce9": r"caf\udce9",  # a path that is not UTF-8
}

HOSTILE = "".join(RAW) + "[/x]:100:"

SHORT = "\x1b[3J\r\ud800[/x]"

DANGEROUS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ud800-\udfff]")


@pytest.mark.parametrize("text", RAW)
def test_controls_are_spelled_out(text):
    assert safe(text) == safe_lines(text) == RAW[text]
    safe(text).encode("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        *MARKUP,
        "Qwen/Qwen2.5",
        "na\u00efve \u6570\u5b66",
        "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645",
        "\U0001f469\u200d\U0001f52c",
    ],
)
def test_other_text_stays(text):
    assert safe(text) == text


def test_lines():
    assert safe("a\nb\tc") == r"a\nb\tc"
    assert safe_lines("a\nb\tc") == "a\nb\tc"
    assert safe(ValueError("x\x1b")) == r"x\x1b"


@pytest.mark.parametrize("text", MARKUP)
def test_rich_shows_markup_as_text(text):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor", no_color=False)
    table = Table(title=safe_text(text), caption=safe_text(text))
    table.add_column(safe_text(text))
    table.add_row(safe_text(text))
    console.print(table)
    console.print(safe_text(text), soft_wrap=True)
    shown = re.sub("\x1b\\[[0-9;]*m", "", console.file.getvalue())
    assert shown.count(text) == 5


def test_log_lines():
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "server said %s", ("\x1b]0;t\x07\r",), None)
    assert SafeFormatter("%(message)s").format(record) == r"server said \x1b]0;t\x07\r"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("utf-8", "backslashreplace"), ("ascii", "backslashreplace"), ("ascii:replace", "replace")],
)
def test_streams_take_any_text(given, expected, monkeypatch):
    encoding, _, errors = given.partition(":")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors or "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_terminal()
    assert stream.errors == expected
    print("\u00b1 \ud800", file=stream)


def test_streams_that_are_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", object())
    prepare_terminal()


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://host/v1?api_key=SECRET", "http://host/v1?api_key=***"),
        ("http://host/v1?a=SECRET&b=SECRET2", "http://host/v1?a=***&b=***"),
        ("http://host/v1?SECRET", "http://host/v1?***"),
        ("http://host/v1?", "http://host/v1"),
        ("http://user:SECRET@host/v1?k=SECRET#SECRET", "http://***@host/v1?k=***"),
        ("http://SECRET@host:8000", "http://***@host:8000"),
        ("http://user:SEC/RET@host/v1", "http://***@host/v1"),
        ("http://[::1/v1?key=SECRET", "http://[::1/v1?key=***"),
        ("host/v1?key=SECRET", "host/v1?key=***"),
        ("user:SECRET@host/v1", "***@host/v1"),
    ],
)
def test_redacted_addresses(url, expected):
    assert redact_url(url) == expected
    assert redact_url(expected) == expected


def test_the_query_goes_with_every_request():
    assert split_url("http://h/v1?api_key=a%20b&v=1#x") == ("http://h/v1", {"api_key": "a b", "v": "1"})
    assert split_url("http://h/v1") == ("http://h/v1", {})
    assert set(secrets_of("http://h/v1?key=SEC%2BRET&v=1")) == {"key=SEC%2BRET", "SEC%2BRET", "SEC+RET", "v=1"}


def test_redacted_settings():
    settings = {
        "base_url": "http://h/v1?api_key=SECRET",
        "hub_token": "hf_SECRET",
        "vllm_kwargs": {"hf_token": "hf_SECRET", "eos_token": "<|end|>"},
        "tasks": ["mine=https://h/x.jsonl?sig=SECRET", "aime24"],
        "system_prompt": "See https://h/?q=1 for help",
        "n": 4,
        "push_to_hub_token": None,
    }
    found = redact(settings)
    assert "SECRET" not in json.dumps(found)
    assert found["vllm_kwargs"]["eos_token"] == "<|end|>"
    assert found["system_prompt"] == settings["system_prompt"]
    assert found["tasks"] == ["mine=https://h/x.jsonl?sig=***", "aime24"]
    assert found["push_to_hub_token"] is None
    assert redact(found) == found
    words = [
        "--hub_token",
        "hf_SECRET",
        "--hub-token=hf_SECRET",
        "--vllm_server_base_url",
        "http://h?k=SECRET",
        "--n",
        "4",
    ]
    assert redact_words(words) == [
        "--hub_token",
        "***",
        "--hub-token=***",
        "--vllm_server_base_url",
        "http://h?k=***",
        "--n",
        "4",
    ]


# --- paths ------------------------------------------------------------------------------------------------------------


def test_folders_are_left_out():
    settings = {
        "model": "/home/jane/secret-project/model/",
        "reference": "~jane/models/x",
        "tasks": ["mine=/data/jane/x.jsonl", "data/y.jsonl", "aime24"],
        "system_prompt": "/no_think",
        "sampling": {"stop": ["/end/of"]},
        "hub": "Qwen/Qwen2.5-1.5B",
        "windows": "C:\\Users\\jane\\model",
        "n": 3,
    }
    assert without_folders(settings) == settings | {
        "model": "model",
        "reference": "x",
        "tasks": ["mine=x.jsonl", "data/y.jsonl", "aime24"],
        "windows": "model",
    }
    command = "trl-credit compare --config /home/jane/r.yaml --output_dir=/home/jane/o --system_prompt '/no_think now'"
    assert (
        command_without_folders(command)
        == "trl-credit compare --config r.yaml --output_dir=o --system_prompt '/no_think now'"
    )


def test_a_credit_page_has_no_folders(tmp_path):
    from trl_credit.records.page import write_credit_report

    about = {
        "title": "Token credit",
        "model": "/home/jane/model",
        "completions": "/home/jane/rollouts.jsonl",
        "seed": 0,
    }
    write_credit_report(tmp_path / "credit.html", [], about)
    text = (tmp_path / "credit.html").read_text()
    assert "jane" not in text
    assert "rollouts.jsonl" in text


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "gsm8k").mkdir()
    for name in ("open-r1/DAPO-Math-17k-Processed", "gsm8k", "trl-lib/ultrafeedback_binarized"):
        assert hub_id(name) == name
    for name in (
        *("openai/gsm8k", "/data/x.jsonl", "./x", "../x", "~/x", "data/a/b", "reasoning_gym:chain_sum", "", None),
        *("trl_credit:arithmetic", "C:\\x\\y"),
    ):
        assert hub_id(name) is None


# --- the commands -----------------------------------------------------------------------------------------------------


def evaluation(name: str) -> dict:
    part = {
        "problems": 2, "unjudged": 0, "avg": 0.5, "stderr": 0.0, "pass": {"1": 0.5}, "maj": {"1": 0.5}, "truncated": 0.0,
        "unparsed": 0.0, "empty": 0.0, "tokens": None, "unverified": 1,
        "per_problem": [{"problem": 0, "correct": None}],
    }  # fmt: skip
    return {
        "model": name,
        "tasks": {name: part, "b": part},
        "overall": part,
        "settings": {"n": 1, "notes": [name]},
        "session": {"tokens_per_second": None, "seconds": 1},
    }


def check(shown: str, name: str, least: int) -> None:
    assert shown.count(safe(name)) >= least, shown
    assert not DANGEROUS.search(shown)


@pytest.mark.parametrize("name", [*MARKUP, SHORT])
def test_eval_shows_names_as_they_are(name, capsys, monkeypatch):
    from trl_credit.evaluation.terminal import show, show_comparison

    monkeypatch.setenv("COLUMNS", "400")
    show(evaluation(name))
    check(capsys.readouterr().out, name, 5)
    row = {"problem": 0, "moved": "up"}
    part = {"level": 0.95, "low": 0.0, "high": 0.0, "difference": 0.0, "a_avg": 0.0, "b_avg": 0.0, "per_problem": [row]}
    side = {"path": name}
    differences = [{"field": name, "a": "[/x]", "b": "\x1b"}]
    show_comparison(
        {"a": side, "b": side, "tasks": {name: part}, "overall": part, "left_out": [name], "differences": differences}
    )
    check(capsys.readouterr().out, name, 6)


def test_unbroken_paths(capsys, monkeypatch):
    from trl_credit.evaluation.terminal import show

    monkeypatch.setenv("COLUMNS", "40")
    show(evaluation("x") | {"model": "/a long path/" + "m" * 60})
    assert "/a long path/" + "m" * 60 + ": 1 samples" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*MARKUP, SHORT])
def test_bench_shows_labels_as_they_are(name, capsys, monkeypatch, tmp_path):
    from trl_credit.bench import report

    monkeypatch.setenv("COLUMNS", "400")
    tables = [(f"Tasks {name}", [name, "x"], [[name, name]])]
    monkeypatch.setattr(report, "_tables", lambda results: tables)
    settings = {"model": name, "seed": 0, "rendering": name}
    results = {"baselines": [name], "sentences": [f"{name} is best."], "notes": [name], "settings": settings}
    report.show(results)
    check(capsys.readouterr().out, name, 5)
    report.write_markdown(results, tmp_path / "bench.md", [])
    check((tmp_path / "bench.md").read_text(encoding="utf-8"), name, 6)
    assert "$" not in report._short("a$\\frac{$").replace(r"\$", "")


@pytest.mark.parametrize("name", [*MARKUP, SHORT])
def test_compare_shows_labels_as_they_are(name, capsys, monkeypatch):
    from trl_credit.comparison import output, results

    monkeypatch.setenv("COLUMNS", "400")
    row = dict.fromkeys(results._HEADINGS, name)
    for module in (results, output):
        monkeypatch.setattr(module, "rows_of", lambda comparison: [row])
        monkeypatch.setattr(module, "sentences", lambda comparison: [name])
    monkeypatch.setattr(results, "basis", lambda comparison: "")
    comparison = {"level": 0.95, "baseline": name, "notes": [name]}
    output.show(comparison)
    check(capsys.readouterr().out, name, 9)
    text = results.to_markdown(comparison)
    check(text, name, 9)
    text.encode("utf-8")


@pytest.mark.parametrize("name", [*MARKUP, SHORT])
def test_the_quickstart_shows_labels_as_they_are(name, capsys, monkeypatch):
    from trl_credit.quickstart import report

    monkeypatch.setenv("COLUMNS", "400")
    numbers = ("accuracy_before", "accuracy_after", "mean_reward", "weight_std", "seconds_per_update")
    report({name: dict.fromkeys(numbers, 0.5) | {"effective_fraction": 1.0, "credit": {"method": name}}})
    check(capsys.readouterr().out, name, 3)


def test_methods_of_others_are_shown_as_they_are(capsys, monkeypatch):
    from trl_credit import cli
    from trl_credit.methods import GCPO, cards

    class Hostile(GCPO):
        """Credit of [b]brackets[/x] \x1b[31m :100:."""

    monkeypatch.setattr("trl_credit.methods.registry.get_method_class", lambda name: Hostile)
    monkeypatch.setenv("COLUMNS", "200")
    cli._describe("my.Hostile")
    assert r"Credit of [b]brackets[/x] \x1b[31m :100:." in capsys.readouterr().out
    card = cards.card_of("my.Hostile")
    monkeypatch.setattr(cards, "card_of", lambda name: card)
    cli._list()
    assert r"Credit of [b]brackets[/x] \x1b[31m :100:." in capsys.readouterr().out


def test_errors_of_the_commands(capsys, monkeypatch):
    """What a message quotes from a file, a server or the command line."""
    from trl_credit.bench import cli as bench
    from trl_credit.comparison import cli as compare
    from trl_credit.evaluation import cli as evaluation_cli

    for fail in (
        lambda: bench._fail(HOSTILE),
        lambda: compare._fail(HOSTILE),
        lambda: evaluation_cli._fail("eval", ValueError(HOSTILE), 2),
        lambda: evaluation_cli.main([HOSTILE]),
    ):
        with pytest.raises(SystemExit):
            fail()
        error = capsys.readouterr().err
        assert not DANGEROUS.search(error)
        assert r"\x1b[31m" in error


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_terminals_of_any_encoding(encoding):
    """The results come at the end of hours: nothing in them may be what a terminal cannot take."""
    code = (
        "import json, sys; from trl_credit._util.text import prepare_terminal; prepare_terminal();"
        "from trl_credit.evaluation.cli import show; show(json.loads(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(evaluation("\ud800\u00e9[/x]"))],
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "PATH": "", "COLUMNS": "200", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode(encoding)
    assert rb"\ud800" in done.stdout
