"""What is wrong with a specification, found without the method."""

import dataclasses
import math
import re
import typing

import pytest

from trl_credit import METHODS, build_credit
from trl_credit.methods.cards import card_of
from trl_credit.methods.mix import Mix
from trl_credit.methods.spec import _type, check_spec


WRONG = [
    "gcpoo", "teacher", 3, None, {"temperature": 1}, "{a", '["gcpo", 3]', {"method": 3}, ["gcpo", "dgop"],
    {"method": "gcpo", "sharpnes": 1}, {"method": "gcpo", "top_mass": None}, {"method": "mix", "parts": "gcpo"},
    {"method": "mix", "parts": ["gcpo", {"method": "dgpo", "temperature": []}]}, {"method": "dgpo", "reference": 1},
    {"method": "mix", "guard": True}, [["gcpoo"]], "gcpo, dgpo", "gcpo+otb", {"gcpo": {"top_mass": 0.9}}, {"name": "gcpo"},
    {"method": "rlsd", "strength": "{from: 1, to: 0, updates: 3}"},
    {"method": ["gcpo", "otb"]}, {"method": ["gcpo", "otb"], "guard": True},
    {"method": "gcpo", "top_mass": 7}, {"method": "dgpo", "temperature": "hot"}, {"method": "random", "fraction": "2"},
    ["gcpo", {"method": "forking", "fraction": 0}], {"method": "mix", "parts": ["gcpo", "rlsd"], "advantage": [[0]]},
    [], "[]", "", "null", [["gcpo", "otb"], "rlsd"], ["rlsd", {"method": "mix", "parts": ["gcpo", "otb"]}],
]  # fmt: skip


@pytest.mark.parametrize("spec", WRONG, ids=str)
def test_the_message_is_that_of_building_it(spec):
    with pytest.raises((ValueError, TypeError)) as late:
        build_credit(spec)
    with pytest.raises(late.type) as early:
        check_spec(spec)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gcpo, dgpo", "Several methods at once are a list, [gcpo, dgpo]; several to compare or inspect are words"),
        ("uniform gcpo", "--methods uniform gcpo"),
        ({"gcpo": {"top_mass": 0.9}}, 'Write {"method": "gcpo", "top_mass": 0.9}.'),
        ({"gcpo": None}, 'Write {"method": "gcpo"}.'),
        ({"gcpo": 3}, "Add one. Known:"),
        ({"method": ["gcpo", "otb"]}, 'Several are just the list: ["gcpo", "otb"].'),
        ({"method": ["gcpo"], "guard": True}, '{"method": "mix", "guard": true, "parts": ["gcpo"]}.'),
        ({"method": "rlsd", "strength": "{from: 1, to: 0, updates: 3}"}, "Write it without quotes."),
    ],
    ids=str,
)
def test_the_way_out(spec, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        build_credit(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "gcpo", ["gcpo", "dgpo"], '["gcpo"]', "[gcpo, otb]", [["gcpo"], "otb"],
        "no/such/file.py:Own", {"method": "gcpo", "negative_prompt": "no slot"},
        {"method": "gcpo", "top_mass": "0.5"}, {"method": "shuffled", "of": "nothing"},
    ],
    ids=str,
)  # fmt: skip
def test_the_rest_is_left_for_later(spec):
    check_spec(spec)


@pytest.mark.parametrize("method", [*METHODS.values(), Mix], ids=lambda method: method.name)
def test_types_in_the_source_are_the_types(method):
    hints = typing.get_type_hints(method)
    types = {parameter.name: _type(parameter.type) for parameter in card_of(method.name).parameters}
    assert types == {field.name: hints[field.name] for field in dataclasses.fields(method)}


VALUES = [-1, 0, 0.5, 1, 2, 7.5, math.inf, math.nan, "", "x", "0.5", None, True, [], {"from": 0, "to": 0, "updates": 1}]
NEEDED = {"teacher": {"model": "x"}, "shuffled": {"of": "gcpo"}}
# Checked by a signal's module, by another method or by more than a parameter
LATER = {
    "gcpo": {"negative_prompt"},
    "rlcsd": {"template"},
    "rlsd": {"template", "column"},
    "shuffled": {"of"},
    "vine": {"every"},
}


def outcome(check, spec):
    try:
        check(spec)
    except (ValueError, TypeError) as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("name", METHODS)
def test_values_out_of_range_are_found_without_the_method(name):
    found = 0
    for parameter in card_of(name).parameters:
        for value in VALUES:
            spec = {"method": name, **NEEDED.get(name, {}), parameter.name: value}
            early, late = outcome(check_spec, spec), outcome(build_credit, spec)
            if parameter.name in LATER.get(name, ()):
                assert early in (None, late)
            else:
                assert early == late, spec
            found += early is not None
    assert found or not card_of(name).parameters
