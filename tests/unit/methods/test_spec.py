"""What is wrong with a specification, found without the method."""

import dataclasses
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
        "no/such/file.py:Own", {"method": "gcpo", "top_mass": 7},
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
