"""Credit records in a terminal."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from support.credit_report import about, awkward_records, make_record
from support.evaluation_runs import HOSTILE

from trl_credit.records.terminal import render


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip

ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


def printed(records, colours=None, about_=None, **options):
    console = Console(file=io.StringIO(), width=200, force_terminal=colours is not None, color_system=colours,
                      no_color=False, _environ={})  # fmt: skip
    render(records, about_ or {}, console, **options)
    return console.file.getvalue()


def test_terminal_without_colours():
    record = make_record(["a", " [bold]", "4", "\n", "z"], seed=3, masked=(4,))
    weights = np.array([0.5, 2.6, 0.25, 0.65, 0], np.float32)
    record = replace(record, weights={"gcpo": weights}, token_advantages={})
    text = printed([record, replace(record, advantage=-1.0)], about_=about())
    assert "gcpo: a [bold][2.6]4⏎\nz\n" in text
    assert "\x1b" not in text
    assert "▲ advantage +1.25: made likelier · reward 1 · 5 tokens, 4 in the loss" in text
    assert "▼ advantage -1: made less likely" in text
    assert "gcpo puts half of the weight on" in text
    assert "1 more of 2 completions are not shown." in printed([record, record], limit=1)


def test_terminal_with_colours():
    record = make_record(["low", "even", "high", "off"], masked=(3,))
    weights = np.array([0.1, 1.0, 3.5, 0], np.float32)
    record = replace(record, weights={"gcpo": weights, "other": weights}, token_advantages={})
    text = printed([record], "truecolor", method="gcpo")
    assert "other" not in text
    codes = {name: re.search(rf"\x1b\[([\d;]*)m{name}", text)[1] for name in ("low", "even", "high", "off")}
    backgrounds = {name: code.split("48;2;")[-1] for name, code in codes.items()}
    assert len(set(backgrounds.values())) == 4
    low, high = ([int(v) for v in backgrounds[name].split(";")] for name in ("low", "high"))
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert codes["high"].startswith("1;4;")
    assert not codes["low"].startswith(("1;", "4;"))
    assert codes["off"] == "2"
    with pytest.raises(ValueError, match=r"no method 'nope' here\. Known: gcpo, other"):
        printed([record], method="nope")


def test_terminal_shows_token_advantages():
    record = make_record(["up", "even", "down", "off"], masked=(3,), advantage=1.0)
    term = np.array([3.25, 0.0, -1.75, 9], np.float32)
    weights = np.array([0.5, 2, 0.5, 0], np.float32)
    record = replace(
        record,
        weights={"gcpo": weights, "gcpo + teacher": weights},
        token_advantages={"gcpo": weights, "gcpo + teacher": weights + term, "teacher": term},
    )
    text = printed([record])
    assert "\nteacher, token advantages: up[+3.2]evendown[-1.8]off\n" in text
    assert "\ngcpo: upeven[2.0]downoff\n" in text
    assert "gcpo, token" not in text
    # Of weights and a term, both
    assert "\ngcpo + teacher: upeven[2.0]downoff\ngcpo + teacher, token advantages: up[+3.8]even[+2.0]downoff\n" in text
    assert "A signed number after a token is its token advantage" in text
    assert re.search(r"teacher +1\.67 +2 +33\.3% +-1\.75 +\+3\.25 +1\n", text)

    text = printed([record], "truecolor", method="teacher")
    codes = {name: re.search(rf"\x1b\[([\d;]*)m{name}", text)[1] for name in ("up", "even", "down", "off")}
    up, down = ([int(v) for v in codes[name].split("48;2;")[-1].split(";")] for name in ("up", "down"))
    assert up[0] > up[2]
    assert down[2] > down[0]
    assert codes["up"].startswith("1;4;")
    assert codes["down"].startswith("4;")
    assert codes["off"] == "2"
    assert "weight " not in text.split("completion 1")[0]


def test_terminal_of_awkward_records(monkeypatch):
    for colours in (None, "truecolor"):
        text = printed(awkward_records(), colours, {"title": HOSTILE, "advice": {"dgpo": HOSTILE}})
        assert "\u202e" not in text
        assert "\x00" not in text
        assert "(no tokens)" in text
        assert "additive has no weights here; its token advantages are +1 to +1" in text
        assert not re.search(r"\bnan\b", text.replace("reward nan", ""))
    assert printed([]) == ""


def test_notebook_has_colours_and_wraps(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append((list(segments), text)))
    record = make_record(["low", "high", *["word "] * 60])
    weights = np.array([0.1, 3.5, *[1.0] * 60], np.float32)
    record = replace(record, weights={"gcpo": weights}, token_advantages={})
    render([record], {}, Console(force_jupyter=True, width=80, no_color=False, _environ={}))
    styles = {segment.text: segment.style for segments, _ in shown for segment in segments}
    assert styles["low"].bgcolor != styles["high"].bgcolor
    assert max(len(line) for _, text in shown for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()) <= 80
