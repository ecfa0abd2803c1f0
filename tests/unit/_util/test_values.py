"""Mappings as text: JSON, and YAML as a recipe writes it."""

import re
from dataclasses import dataclass

import pytest

from trl_credit._util.values import mapping_of, parsed


@dataclass
class Inner:
    name: str = ""
    switch: bool = False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"num_terms": 5}', {"num_terms": 5}),
        ("{num_terms: 5}", {"num_terms": 5}),
        (" {num_terms: 5, } ", {"num_terms": 5}),
        ("{a: 1e-5, b: [1e-5, 1.], c: '1e-5'}", {"a": 1e-5, "b": [1e-5, 1.0], "c": "1e-5"}),
        ("{a: gcpo, b: 0.5 x, c: null, d: true}", {"a": "gcpo", "b": "0.5 x", "c": None, "d": True}),
        ("{enable_thinking: no, inner: {x: on}}", {"enable_thinking": False, "inner": {"x": True}}),
        ("{url: http://host:80/x, 'a:b': 1}", {"url": "http://host:80/x", "a:b": 1}),
        ("{'a': 1}", {"a": 1}),
        ("{a: 1, \n b: 2}", {"a": 1, "b": 2}),
        ("{}", {}),
        ("null", None),
    ],
)
def test_text_of_a_mapping(text, value):
    assert mapping_of("field", text) == value
    assert mapping_of("field", value) == value


def test_types_of_the_fields_count():
    assert mapping_of("field", "{name: no, switch: no}", Inner) == {"name": "no", "switch": "no"}
    assert mapping_of("field", "{name: no, switch: no}") == {"name": False, "switch": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "`field` is not valid JSON: Expecting ',' delimiter at character 8 of '{\"a\": 1'."),
        ("{a: 1", "`field` is not valid YAML: expected ',' or '}', but got '<stream end>' in '{a: 1'."),
        ("{a: 1, a: 2}", "'a' is listed twice in '{a: 1, a: 2}'."),
        ("{a:1}", "`field`: write a space after the colon of 'a:1'."),
        ("{b: [{a:1}]}", "`field`: write a space after the colon of 'a:1'."),
        ("a: 1", "`field` is not valid YAML"),
        ("{a: 1}\nb: 2", "`field` must be one value"),
        ("[1, 2]", "`field` must be a mapping, got [1, 2]."),
        ("gcpo", "`field` must be a mapping, got 'gcpo'."),
        ("", "`field` is empty: ''."),
        ("# x", "`field` is empty: '# x'."),
        ("[" * 100_000, "`field` is nested too deeply."),
    ],
    ids=lambda text: text[:20],
)
def test_wrong_text(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        mapping_of("field", text)
    assert str(error.value).endswith("Write a mapping, such as '{name: value}' (JSON or YAML).")


def test_other_values_as_text():
    assert parsed("field", "[gcpo, {method: dgpo, temperature: 1e-3}]") == [
        "gcpo",
        {"method": "dgpo", "temperature": 1e-3},
    ]
    assert parsed("field", "7") == 7
