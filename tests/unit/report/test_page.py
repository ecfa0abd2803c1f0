"""Text in HTML pages."""

import json
import re

import pytest
from support.evaluation_runs import HOSTILE, SHOWN, make_evaluation

from trl_credit.evaluation.page import write_evaluation_report
from trl_credit.report.page import clean, duration, embed, flatten, percent, points, visible


# ---- Without a browser


def test_no_text_can_leave_its_json():
    text = embed({HOSTILE: [HOSTILE, float("nan"), float("inf"), None]})
    assert not re.search("[<>&\u2028\u2029\x00\ud800]", text)
    (key,) = json.loads(text)
    assert key == HOSTILE.replace("\ud800", "\ufffd")
    assert json.loads(text)[key] == [key, None, None, None]


def test_controls_are_spelled_out():
    assert visible(HOSTILE) == SHOWN
    assert clean({"a": ("\udc00", 1.5)}) == {"a": ["\ufffd", 1.5]}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: percent(0.2534), "25.3 %"),
        (lambda: percent(None), "\u2013"),
        (lambda: percent(float("nan")), "\u2013"),
        (lambda: points(0.0421), "+4.2"),
        (lambda: points(-0.0421), "\u22124.2"),
        (lambda: points(-0.0001), "0.0"),
        (lambda: duration(3.21), "3.2 s"),
        (lambda: duration(75.4), "75 s"),
        (lambda: duration(1234.5), "21 min"),
        (lambda: duration(40_000), "11 h 7 min"),
        (lambda: duration(None), "\u2013"),
    ],
)
def test_numbers_as_text(call, text):
    assert call() == text


def test_settings_are_flattened():
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None, "e": {}, "f": "x"}) == [
        ("a.b", "1"),
        ("a.c", "[2]"),
        ("d", "\u2013"),
        ("e", "{}"),
        ("f", "x"),
    ]


def test_a_failure_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    data = make_evaluation(tasks=("aime24",), problems=1, n=1)
    data["problems"] = [{"question": object()}]
    with pytest.raises(TypeError):
        write_evaluation_report(path, **data)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
